"""How far back a mixer looks: over which distances its weights spread, and how evenly.

Letters: B rows, H heads, N sites, Q queries.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Reach(NamedTuple):
    """Of the weights ``w_s >= 0`` that a site gives to the sites up to itself, as shares of 1."""

    tokens: Tensor
    """Mean distance, ``sum w_s (t - s)``."""
    entropy_nats: Tensor
    """``-sum w_s log w_s``: 0 for a single site, ``log n`` for ``n`` equal ones."""


def of_shares(share_BHQN: Tensor, place_Q: Tensor) -> Reach:
    """Return the reach of shares that sum to 1 over N, for queries at ``place``, (B, H, Q)."""
    place_N = torch.arange(share_BHQN.shape[-1], device=share_BHQN.device)
    distance_QN = (place_Q[:, None] - place_N).to(share_BHQN.dtype)
    entropy = torch.special.entr(share_BHQN).sum(-1)
    return Reach((share_BHQN * distance_QN).sum(-1), entropy)


def of_gates(gate_BNH: Tensor) -> Reach:
    """Return the reach of ``w_ts`` in proportion to ``|gate_s ... gate_t|``, (B, N, H) in float64.

    That is how strongly ``y_t = gate_t (x_t - y_{t-1})`` depends on ``x_s``: of the causal
    resolvent ``|G_ts|``. In one sweep: mass ``m_t = a_t (1 + m_{t-1})``, first moment
    ``f_t = a_t (f_{t-1} + m_{t-1})`` and ``q_t = sum w log w`` of the weights before they are
    shares, ``a_t = |gate_t|``.

    Args:
        gate_BNH: real or complex; not 0.
    """
    a_BNH = gate_BNH.abs().double()
    mass = moment = spread = torch.zeros_like(a_BNH[:, 0])
    told: list[tuple[Tensor, Tensor]] = []
    for a in a_BNH.unbind(1):
        moment = a * (moment + mass)
        mass, before = a * (1 + mass), mass
        spread = a * (spread + a.log() * (1 + before))
        told.append((moment / mass, mass.log() - spread / mass))
    tokens, entropy = (torch.stack(values, 1) for values in zip(*told, strict=True))
    return Reach(tokens, entropy)
