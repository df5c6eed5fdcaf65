"""The BK mixer: the causal resolvent of a tridiagonal operator, read at every site.

Letters: B batch, N sites, D width, H heads, K value channels per head, F = 2 (1 + K) features, R
rank of the low-rank branch, C = K H channels.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import silu, softplus

from bkray.nn.mixer import State, last_own
from bkray.nn.semiseparable import LowRankBranch
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
    ``|g|`` by ``1/eta``. With a ``rank`` the values also run through a low-rank branch, whose
    channels join the features: ``H`` is then semiseparable. The state of a stream is the features
    of the last site, (B, F, H), and with it the state of the branch, (B, R, C). Without values
    ``g`` is all there is: one complex number per head. Energies not ``spread`` start at 0.

    ``in_float64`` raises the scan to float64, whatever the model's dtype, and with it what goes
    in: its rounding costs as much as the scan's own.
    """

    causal = True
    in_float64 = False

    def __init__(
        self, d_model: int, n_heads: int, n_values: int, rank: int = 0, *, spread: bool = True
    ) -> None:
        super().__init__()
        self.n_heads, self.n_values = n_heads, n_values
        n_features = (2 * (1 + n_values) + (n_values if rank else 0)) * n_heads
        self.potential = nn.Linear(d_model, n_heads)
        with torch.no_grad():
            self.potential.weight.mul_(POTENTIAL_GAIN)
        self.values = nn.Linear(d_model, n_values * n_heads, bias=False) if n_values else None
        self.norm = nn.RMSNorm(n_features)
        self.gate = nn.Linear(d_model, n_features)
        self.out = nn.Linear(n_features, d_model, bias=False)
        band = torch.linspace(*BAND, n_heads) if n_heads > 1 else torch.tensor([sum(BAND) / 2])
        shuffled = band[torch.randperm(n_heads)]  # drawn in any case: what follows starts alike
        self.energy = nn.Parameter(shuffled if spread else torch.zeros(n_heads))
        self.raw_eta = nn.Parameter(torch.linspace(*RAW_ETA, n_heads))
        self.low_rank = LowRankBranch(d_model, rank) if rank else None

    @property
    def eta(self) -> Tensor:
        """Imaginary part of each head's ``z``, above 0."""
        return softplus(self.raw_eta)

    def forward(self, hidden_BND: Tensor, position_BN: Tensor) -> Tensor:
        return self._mixed(hidden_BND, None, None)[0]

    def stream(
        self,
        hidden_BND: Tensor,
        position_BN: Tensor,
        there_BN: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        mixed_BND, behind, _ = self._mixed(hidden_BND, there_BN, state)
        return mixed_BND, behind

    def scatter(
        self,
        hidden_BND: Tensor,
        position_BN: Tensor,
        there_BN: Tensor | None,
        state: State | None,
        head: int,
    ) -> tuple[Tensor, State, Tensor]:
        """Return what ``stream`` does, and how each site scatters one head's wave, (B, N, 2): the
        phase of its ``g``, from 0 to pi, and ``|g| eta``, at most 1; without gradients."""
        mixed_BND, behind, features_BNFH = self._mixed(hidden_BND, there_BN, state)
        real_BN, imag_BN = features_BNFH[:, :, :2, head].detach().unbind(-1)
        resonance_BN = torch.hypot(real_BN, imag_BN) * self.eta[head].detach()
        return mixed_BND, behind, torch.stack([torch.atan2(imag_BN, real_BN), resonance_BN], -1)

    def green(self, hidden_BND: Tensor) -> Tensor:
        """Return each head's left Green's function of whole rows, complex, (B, N, H)."""
        h_BNH = bounded(self.potential(hidden_BND)) - 2.0
        none_BN0H = h_BNH.new_zeros(*h_BNH.shape[:2], 0, self.n_heads)
        g_BN2H = causal_resolvent(h_BNH, none_BN0H, self.energy, self.eta)
        return torch.complex(g_BN2H[:, :, 0], g_BN2H[:, :, 1])

    def _mixed(
        self, hidden_BND: Tensor, there_BN: Tensor | None, state: State | None
    ) -> tuple[Tensor, State, Tensor]:
        """Return the mixed sites, the state behind the last one and the features."""
        scan_state, branch_state = state if isinstance(state, tuple) else (state, None)
        eta_H = softplus(self.raw_eta.double()) if self.in_float64 else self.eta
        u_BNH = self._said(self.potential, hidden_BND)
        x_BNC = u_BNH[..., :0]
        if self.values is not None:
            x_BNC = self._said(self.values, hidden_BND)
        h_BNH = bounded(u_BNH) - 2.0
        x_BNKH = x_BNC.view(*x_BNC.shape[:2], self.n_values, self.n_heads) * eta_H.sqrt()
        features_BNFH = causal_resolvent(h_BNH, x_BNKH, self.energy, eta_H, scan_state)
        seen = features_BNFH.flatten(-2).to(hidden_BND.dtype)
        scan_behind = last_own(features_BNFH, there_BN, scan_state)
        behind: State = scan_behind
        if self.low_rank is not None:
            branch_BNC, branch_state = self.low_rank(hidden_BND, x_BNC, there_BN, branch_state)
            seen, behind = torch.cat([seen, branch_BNC], dim=-1), (scan_behind, branch_state)
        mixed: Tensor = self.out(self.norm(seen) * silu(self.gate(hidden_BND)))
        return mixed, behind, features_BNFH

    def _said(self, layer: nn.Linear, hidden_BND: Tensor) -> Tensor:
        if self.in_float64:
            return in_double(layer, hidden_BND)
        said: Tensor = layer(hidden_BND)
        return said


def in_double(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return what the layer would say in float64; its hooks hear it."""
    raised = {name: value.double() for name, value in layer.named_parameters()}
    said: Tensor = functional_call(layer, raised, (x.double(),))
    return said


def bounded(u_BNH: Tensor) -> Tensor:
    """Return the potential that a raw one stands for, between ``-V_MAX`` and ``V_MAX``.

    In float32 at least: beside ``E`` bf16 would be off by up to 1/64, as noise on every site.
    """
    precise_BNH = u_BNH.to(torch.promote_types(u_BNH.dtype, torch.float32))
    return V_MAX * torch.tanh(precise_BNH / V_MAX)
