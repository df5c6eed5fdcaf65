"""A mixer over both sides of every site, for encoders: no language model takes it.

Letters: B batch, N sites, D width, H heads, K value channels per head, F = 2 (1 + K) features.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from bkray.nn.bk import BAND, POTENTIAL_GAIN, RAW_ETA, bounded
from bkray.ops.tridiagonal import two_sided_resolvent

N_HEADS, N_VALUES = 16, 6
"""As many as a language model's resolvent has by default."""


class TwoSidedMixer(nn.Module):
    """Mix by ``u = (H - z)^-1 x`` of the whole row, one ``z = E + i eta`` per head.

    The features ``Re G, Im G, Re u, Im u`` are normed, gated by the site and projected back to
    the width, as those of ``BKMixer`` are. No parameter depends on the number of sites.
    """

    causal = False

    def __init__(self, d_model: int, n_heads: int = N_HEADS, n_values: int = N_VALUES) -> None:
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
        self.energy = nn.Parameter(torch.linspace(*BAND, n_heads)[torch.randperm(n_heads)])
        self.raw_eta = nn.Parameter(torch.linspace(*RAW_ETA, n_heads))

    def forward(self, hidden_BND: Tensor, position_BN: Tensor) -> Tensor:
        eta_H = softplus(self.raw_eta)
        h_BNH = bounded(self.potential(hidden_BND)) - 2.0
        x_BNKH = self.values(hidden_BND).unflatten(-1, (self.n_values, self.n_heads))
        features_BNFH = two_sided_resolvent(h_BNH, x_BNKH * eta_H.sqrt(), self.energy, eta_H)
        seen = features_BNFH.flatten(-2).to(hidden_BND.dtype)
        mixed: Tensor = self.out(self.norm(seen) * silu(self.gate(hidden_BND)))
        return mixed
