"""Semiseparable matrices ``H = T + U V^T``: tridiagonal plus low rank, everything in O(N R).

Letters: B rows, N sites, R rank, C channels, M right sides, or chunks of T sites.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bkray.ops.chain import Array, Factored, Tridiagonal
from bkray.ops.linear_recurrence import doubling

CHUNK = 64
"""Sites that the causal form takes at once."""


class Semiseparable(NamedTuple):
    """``T + U V^T``, on the CPU; ``u`` and ``v`` are (N, R), of any dtypes."""

    chain: Tridiagonal
    u_NR: Array
    v_NR: Array

    def times(self, x: Array) -> Array:
        """Return the product with ``x``, (N,) or (N, M)."""
        image: Array = self.chain.times(x) + self.u_NR @ (self.v_NR.T @ x)
        return image

    def factored(self) -> "FactoredSemiseparable":
        """Return what ``solve`` needs: O(N R^2) once.

        Raises:
            ConfigError: ``T`` is singular.
        """
        chain = self.chain.factored()
        solved_NR = chain.solve(self.u_NR.astype(np.result_type(self.u_NR, chain.factors[1])))
        inner_RR = np.eye(self.u_NR.shape[1]) + self.v_NR.T @ solved_NR
        return FactoredSemiseparable(chain, solved_NR, self.v_NR, inner_RR)


class FactoredSemiseparable(NamedTuple):
    """``T + U V^T``, ready to be solved with."""

    chain: Factored
    solved_NR: Array
    """``T^-1 U``."""
    v_NR: Array
    inner_RR: Array
    """``I + V^T T^-1 U``."""

    def solve(self, b: Array) -> Array:
        """Return ``x`` with ``(T + U V^T) x = b``, (N,) or (N, M), in O(N R) each.

        ``x = s - T^-1 U (I + V^T T^-1 U)^-1 V^T s`` with ``s = T^-1 b``. Source: Woodbury 1950.

        Raises:
            LinAlgError: the matrix is singular though ``T`` is not.
        """
        first = self.chain.solve(b.astype(np.result_type(b, self.chain.factors[1])))
        correction = np.linalg.solve(self.inner_RR, self.v_NR.T @ first)
        return first - self.solved_NR @ correction  # type: ignore[no-any-return]  # an array


def causal_low_rank(
    u_BNR: Tensor,
    v_BNR: Tensor,
    x_BNC: Tensor,
    decay: Tensor,
    there_BN: Tensor | None = None,
    state_BRC: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``y_t = U_t . sum_{j <= t} decay^(t - j) V_j x_j`` and the state behind the last.

    The lower part of ``U V^T``, weighted by age: at most ``max|U| max|V| max|x| / (1 - decay)``
    however long the sequence. The state is that sum, (B, R, C); ``None`` before the first site.

    Args:
        there_BN: False where a row is padded behind its own sites, ``None`` for no padding. A
            row's state is that of its last own site.
        decay: scalar or (1,), between 0 and 1, of the dtype of the rest.
    """
    n_rows, n_sites, rank = u_BNR.shape
    if state_BRC is None:
        state_BRC = x_BNC.new_zeros(n_rows, rank, x_BNC.shape[2])
    n_own_B = torch.full((n_rows,), n_sites, device=x_BNC.device)
    if there_BN is not None:
        n_own_B = there_BN.sum(1)
        # Filled, not multiplied by 0: a NaN in the padding would pass into the state.
        v_BNR = v_BNR.masked_fill(~there_BN[..., None], 0)
        x_BNC = x_BNC.masked_fill(~there_BN[..., None], 0)
    size = min(CHUNK, n_sites)
    u_BMTR, v_BMTR, x_BMTC = (_in_chunks(whole, size) for whole in (u_BNR, v_BNR, x_BNC))
    begin_M = size * torch.arange(u_BMTR.shape[1], device=x_BNC.device)
    n_here_BM1 = (n_own_B[:, None] - begin_M).clamp(0, size)[..., None]
    site_T = torch.arange(size, device=x_BNC.device)
    left_BMT = decay ** (n_here_BM1 - 1 - site_T).clamp(min=0)
    own_BMRC = (left_BMT[..., None] * v_BMTR).mT @ x_BMTC
    states_BMRC = _states(decay**n_here_BM1, own_BMRC, state_BRC)
    age_TT = (site_T[:, None] - site_T).clamp(min=0)
    within_BMTT = (u_BMTR @ v_BMTR.mT * decay**age_TT).tril()
    since_T1 = decay ** (site_T[:, None] + 1)
    y_BMTC = within_BMTT @ x_BMTC + since_T1 * (u_BMTR @ states_BMRC[:, :-1])
    return y_BMTC.flatten(1, 2)[:, :n_sites], states_BMRC[:, -1]


def _in_chunks(whole_BNC: Tensor, size: int) -> Tensor:
    """Return (B, M, T, C), the last chunk filled up with 0."""
    missing = -whole_BNC.shape[1] % size
    padded = torch.nn.functional.pad(whole_BNC, (0, 0, 0, missing))
    return padded.reshape(len(padded), -1, size, padded.shape[2])


def _states(gate_BM1: Tensor, own_BMRC: Tensor, first_BRC: Tensor) -> Tensor:
    """Return the state before every chunk and behind the last one, (B, M + 1, R, C)."""
    joined = torch.cat([first_BRC[:, None], own_BMRC], dim=1).flatten(2)
    gates = torch.cat([torch.ones_like(gate_BM1[:, :1]), gate_BM1], dim=1)
    return doubling(gates, joined).view(*joined.shape[:2], *first_BRC.shape[1:])
