"""The BK mixer: the causal resolvent of a tridiagonal operator, read at every site.

Letters: B batch, N sites, D width, H heads, K value channels per head, F = 2 (1 + K) features.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from bkray.ops.tridiagonal import causal_resolvent

V_MAX = 3.0
"""Largest potential; bounded, so that ``h`` stays near the energies ``E`` is spread over."""

BAND = (-3.5, -0.5)
"""Where ``E`` starts: inside the band of ``h``; at its edge memory fades within 10 tokens."""

POTENTIAL_GAIN = 0.3
"""The potential starts small: a strong random one scatters the waves that carry content."""

RAW_ETA = (-4.0, 0.55)
"""``eta = softplus`` of these, from head to head: ``1 / asinh(eta / 2)`` is 110 to 2 tokens."""


class BKMixer(nn.Module):
    """Mix by ``y = (H - z)^-1 x`` of the sites seen so far, one ``z = E + i eta`` per head.

    Values enter scaled by ``sqrt(eta)``, which gives every head about the same power whatever its
    reach. The features ``Re g, Im g, Re y, Im y`` are normed, gated by the token and projected
    back to the width. ``E`` and ``eta`` are learned; ``eta > 0`` by softplus, which is what bounds
    ``|g|`` by ``1/eta``.
    """

    causal = True

    def __init__(self, d_model: int, n_heads: int, n_values: int) -> None:
        super().__init__()
        self.n_heads, self.n_values = n_heads, n_values
        n_features = 2 * (1 + n_values) * n_heads
        self.potential = nn.Linear(d_model, n_heads)
        with torch.no_grad():
            self.potential.weight.mul_(POTENTIAL_GAIN)
        self.values = nn.Linear(d_model, n_values * n_heads, bias=False)
        self.norm = nn.RMSNorm(n_features)
        self.gate = nn.Linear(d_model, n_features)
        self.out = nn.Linear(n_features, d_model, bias=False)
        spread = torch.linspace(*BAND, n_heads) if n_heads > 1 else torch.tensor([sum(BAND) / 2])
        self.energy = nn.Parameter(spread[torch.randperm(n_heads)])
        self.raw_eta = nn.Parameter(torch.linspace(*RAW_ETA, n_heads))

    def forward(self, hidden_BND: Tensor, position_BN: Tensor) -> Tensor:
        u_BNH = self.potential(hidden_BND)
        h_BNH = V_MAX * torch.tanh(u_BNH / V_MAX) - 2.0
        eta_H = softplus(self.raw_eta)
        x_BNKH = self.values(hidden_BND).unflatten(-1, (self.n_values, self.n_heads))
        features_BNFH = causal_resolvent(h_BNH, x_BNKH * eta_H.sqrt(), self.energy, eta_H)
        normed = self.norm(features_BNFH.flatten(-2).to(hidden_BND.dtype))
        gated = normed * silu(self.gate(hidden_BND))
        mixed: Tensor = self.out(gated)
        return mixed
