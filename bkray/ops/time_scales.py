"""A plain classifier of sequences that sees all time scales alike: nearest shrunken class mean.

Letters: B rows, L frames, D channels, C channels looked at, S coefficients of a row, F features, K
classes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

MOST_CHANNELS = 64
"""More are projected to so many by a fixed random map, which nearly keeps distances."""

FLOOR = 0.1
"""Of a band's usual energy: less of it is as good as none."""

SHRINKAGE = 3.0
"""Standard errors that a difference between classes must be above to count at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeScales:
    """Features of rows of one length: Fourier coefficients by octave, and energies of octaves.

    An octave is the frequencies from 2^j to below 2^(j+1) cycles per row, with 0 cycles for
    itself. Each one is scaled by its power in the rows that the features were fitted to, so that
    none counts more than another, however little power it has: coefficients tell the shape of a
    row at that time scale, logarithms of energies how much happens there whatever the phase.
    """

    n_frames: int
    projection_DC: Tensor | None
    octaves: tuple[tuple[int, int], ...]
    """First coefficient of each and the one behind its last."""
    power_O: Tensor
    """Mean square of an octave's coefficients."""
    energy_mean_E: Tensor
    energy_deviation_E: Tensor

    @classmethod
    def fit(cls, parts: Iterable[Tensor], n_frames: int, n_channels: int) -> "TimeScales":
        """Return the features with the scales of these rows, (B, L, D) each."""
        projection_DC = None
        if n_channels > MOST_CHANNELS:
            draw = torch.Generator().manual_seed(0)
            projection_DC = torch.randn(n_channels, MOST_CHANNELS, generator=draw)
            projection_DC /= math.sqrt(n_channels)
        edges = [0, 1]
        while edges[-1] <= n_frames // 2:
            edges.append(2 * edges[-1])
        edges[-1] = n_frames // 2 + 1
        octaves = tuple(pairwise(edges))
        plain = cls(
            n_frames=n_frames,
            projection_DC=projection_DC,
            octaves=octaves,
            power_O=torch.ones(len(octaves)),
            energy_mean_E=torch.zeros(1),
            energy_deviation_E=torch.ones(1),
        )
        energy_BOC = torch.cat([plain._energies(plain._coefficients(part)) for part in parts])
        power_O = energy_BOC.mean((0, 2)).clamp(min=torch.finfo(energy_BOC.dtype).tiny)
        log_BE = _log_energies(energy_BOC, power_O)
        return cls(
            n_frames=n_frames,
            projection_DC=projection_DC,
            octaves=octaves,
            power_O=power_O,
            energy_mean_E=log_BE.mean(0),
            energy_deviation_E=log_BE.std(0).clamp(min=1e-6),
        )

    def features(self, x_BLD: Tensor) -> Tensor:
        """Return the features of rows, (B, F); over the rows that were fitted to, each octave, and
        all energies together, have a mean squared length of 1."""
        x_BSC = self._coefficients(x_BLD)
        log_BE = _log_energies(self._energies(x_BSC), self.power_O)
        energy_BE = (log_BE - self.energy_mean_E) / self.energy_deviation_E
        blocks = [
            x_BSC[:, 2 * low : 2 * high].flatten(1)
            / (self.power_O[i] * 2 * (high - low) * x_BSC.shape[2]).sqrt()
            for i, (low, high) in enumerate(self.octaves)
        ]
        return torch.cat([*blocks, energy_BE / math.sqrt(energy_BE.shape[1])], dim=1)

    def _coefficients(self, x_BLD: Tensor) -> Tensor:
        """Return real and imaginary parts in turn, (B, S, C)."""
        if self.projection_DC is not None:
            x_BLD = x_BLD @ self.projection_DC
        parts_BSC2 = torch.view_as_real(torch.fft.rfft(x_BLD, dim=1))
        return parts_BSC2.movedim(3, 2).flatten(1, 2) / math.sqrt(self.n_frames)

    def _energies(self, x_BSC: Tensor) -> Tensor:
        """Return mean squares by octave and channel, (B, O, C)."""
        return torch.stack(
            [x_BSC[:, 2 * low : 2 * high].square().mean(1) for low, high in self.octaves], dim=1
        )


def _log_energies(energy_BOC: Tensor, power_O: Tensor) -> Tensor:
    return (FLOOR + energy_BOC / power_O[:, None]).log().flatten(1)


def shrunken_means(scales: TimeScales, classes: Iterable[Iterable[Tensor]]) -> Tensor:
    """Return the mean features of each class, (K, F), in float64, shrunken to the overall mean.

    A class's difference from that mean loses ``SHRINKAGE`` standard errors, and what is left of
    its sign: a feature that tells nothing apart then counts nowhere.

    Args:
        classes: for each class its rows in parts, (B, L, D) each.

    Source: Tibshirani et al. 2002, PNAS 99(10), 6567-6572, with distances in the given scales.
    """
    counts, totals, squares = [], [], torch.zeros((), dtype=torch.float64)
    for parts in classes:
        n_rows, total_F = 0, torch.zeros((), dtype=torch.float64)
        for part in parts:
            feature_BF = scales.features(part).double()
            n_rows += len(feature_BF)
            total_F = total_F + feature_BF.sum(0)
            squares = squares + feature_BF.square().sum(0)
        counts.append(n_rows)
        totals.append(total_F)
    count_K1, mean_KF = torch.tensor(counts)[:, None], torch.stack(totals)
    n_all, overall_F = sum(counts), mean_KF.sum(0) / sum(counts)
    mean_KF = mean_KF / count_K1
    within_F = (squares - (count_K1 * mean_KF.square()).sum(0)).clamp(min=0)
    error_KF = (within_F / (n_all - len(counts)) * (1 / count_K1 - 1 / n_all)).sqrt()
    apart_KF = mean_KF - overall_F
    left_KF: Tensor = apart_KF.sign() * (apart_KF.abs() - SHRINKAGE * error_KF).clamp(min=0)
    return overall_F + left_KF


def nearest_mean_accuracy(mean_KF: Tensor, feature_BF: Tensor, label_B: Tensor) -> float:
    """Return the share of rows whose nearest class mean is that of their class.

    Nothing is random and nothing is tuned. It stays sane with far more features than rows, where
    a fitted map would lean on features that its training rows hardly have.
    """
    distance_BK = torch.cdist(feature_BF.double(), mean_KF)
    return float((distance_BK.argmin(1) == label_B).double().mean())
