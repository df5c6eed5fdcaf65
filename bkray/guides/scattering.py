"""The guides' scattering parts: resolvent with its monitor, router, semiseparable matrix.

Letters: B batch, N sites, R rank, M right sides.
"""

import torch
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.guides.standard import check_length
from bkray.nn import routers
from bkray.ops.chain import Tridiagonal
from bkray.ops.semiseparable import FactoredSemiseparable, Semiseparable
from bkray.ops.tridiagonal import causal_resolvent
from bkray.train.spectrum import chain_numbers

BAND_CENTRE = -2.0
"""Energy in the middle of the band of ``tridiag(1, -2, 1)``."""


class BirmanSchwingerCore(nn.Module):
    """The causal resolvent's diagonal of one potential, and how hard it scatters.

    ``z = energy + i epsilon`` for ``H = tridiag(1, -2 + v, 1)``; up to ``n_seq`` sites.

    Raises:
        ConfigError: ``epsilon`` is not above 0.
    """

    def __init__(self, n_seq: int, epsilon: float = 1.0, energy: float = BAND_CENTRE) -> None:
        super().__init__()
        if not epsilon > 0:
            raise ConfigError(f"epsilon must be above 0, got {epsilon}: the resolvent needs it")
        self.n_seq, self.epsilon, self.energy = n_seq, epsilon, energy

    def forward(self, v: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return ``Re g, Im g`` at every site, (B, N, 2), and the monitor's numbers.

        ``v`` is (B, N). ``schatten_s1`` (its bound above 512 sites) and ``schatten_s2`` are means
        over rows, ``condition_number`` is the largest.
        """
        check_length(v.shape[1], self.n_seq)
        energy_H, eta_H = v.new_tensor([self.energy]), v.new_tensor([self.epsilon])
        no_values = v.new_zeros(*v.shape, 0, 1)
        features = causal_resolvent(v[..., None] - 2.0, no_values, energy_H, eta_H)
        seen = chain_numbers(v.detach()[..., None], energy_H, eta_H)
        monitor = {name: float(value.mean()) for name, value in seen.items()}
        monitor["condition_number"] = float(seen["condition_number"].max())
        return features.squeeze(-1), monitor


class ScatteringRouter(nn.Module):
    """Experts from phases, without parameters; ``calibrate`` sets bins that share tokens evenly.

    ``g`` is complex, or has its real and imaginary part in a last dimension of 2.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.router = routers.ScatteringRouter(num_experts, head=0, resonance=1.0)

    def forward(self, g: Tensor) -> Tensor:
        """Return the expert of every token, whole numbers from 0."""
        phase = self._phase(g)
        experts: Tensor = self.router(phase.flatten(), torch.zeros_like(phase.flatten())).expert_P
        return experts.view(phase.shape)

    def calibrate(self, g: Tensor) -> None:
        """Set the bins to quantiles of these phases."""
        with routers.calibrated(self):
            self(g)

    def _phase(self, g: Tensor) -> Tensor:
        return g.angle() if g.is_complex() else torch.atan2(g[..., 1], g[..., 0])


class SemiseparableMatrix:
    """``H = T + U V^T`` over ``n_seq`` sites; everything in O(N R), on the CPU in float64.

    Starts as ``tridiag(1, -2, 1)`` without a low-rank part. ``diagonal`` (N,), ``coupling``
    (N - 1,), ``u`` and ``v`` (N, R) may be set; ``factorize`` anew after that.
    """

    def __init__(self, n_seq: int, rank: int = 16) -> None:
        if n_seq < 1 or rank < 1:
            raise ConfigError(f"n_seq and rank must be at least 1, got {n_seq} and {rank}")
        self.diagonal = torch.full((n_seq,), -2.0, dtype=torch.float64)
        self.coupling = torch.ones(n_seq - 1, dtype=torch.float64)
        self.u = torch.zeros(n_seq, rank, dtype=torch.float64)
        self.v = torch.zeros(n_seq, rank, dtype=torch.float64)
        self._factored: FactoredSemiseparable | None = None

    def matvec(self, x: Tensor) -> Tensor:
        """Return ``H x``, (N,) or (N, M)."""
        return torch.from_numpy(self._matrix(0.0).times(x.detach().cpu().numpy()))

    def factorize(self, z: complex = 0.0) -> None:
        """Prepare ``solve`` with ``H - z``.

        Raises:
            ConfigError: ``T - z`` is singular.
        """
        self._factored = self._matrix(z).factored()

    def solve(self, b: Tensor) -> Tensor:
        """Return ``(H - z)^-1 b``, (N,) or (N, M).

        Raises:
            ConfigError: nothing was factorized.
        """
        if self._factored is None:
            raise ConfigError("solve needs factors: call factorize first")
        return torch.from_numpy(self._factored.solve(b.detach().cpu().numpy()))

    def _matrix(self, z: complex) -> Semiseparable:
        diagonal = self.diagonal.numpy() - z
        side = self.coupling.numpy().astype(diagonal.dtype)
        return Semiseparable(Tridiagonal(side, diagonal, side), self.u.numpy(), self.v.numpy())
