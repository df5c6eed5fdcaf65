"""The downstream classifier sees class differences at any time scale, and none where none is."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bkray.ops.time_scales import (
    MOST_CHANNELS,
    TimeScales,
    nearest_mean_accuracy,
    shrunken_means,
)

L, D, ROWS = 96, 3, 80


def made(cycles: float, seed: int, *, free_phase: bool = False) -> tuple[Tensor, Tensor]:
    """Return rows of noise with a wave: its sign, or whether there is one, is the class."""
    draw = torch.Generator().manual_seed(seed)
    label_B = torch.arange(ROWS) % 2
    phase_B = torch.rand(ROWS, generator=draw) * 2 * math.pi if free_phase else torch.zeros(ROWS)
    angle_BL = 2 * math.pi * cycles * torch.arange(L) / L + phase_B[:, None]
    size_B = label_B.float() if free_phase else 2.0 * label_B - 1
    noise_BLD = torch.randn(ROWS, L, D, generator=draw).cumsum(1) / 10
    wave_BL = (3 if free_phase else 1) * angle_BL.cos() * size_B[:, None]
    return noise_BLD + wave_BL[..., None], label_B


def accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    scales = TimeScales.fit([train[0]], *train[0].shape[1:])
    means = shrunken_means(scales, ([train[0][train[1] == k]] for k in (0, 1)))
    return nearest_mean_accuracy(means, scales.features(test[0]), test[1])


@pytest.mark.parametrize("cycles", [1, 5, 40])
@pytest.mark.parametrize("free_phase", [False, True])
def test_a_difference_is_seen_at_any_time_scale(cycles: int, free_phase: bool) -> None:
    rows = [made(cycles, seed, free_phase=free_phase) for seed in (0, 1)]
    assert accuracy(rows[0], rows[1]) > 0.9


def test_without_a_difference_it_guesses() -> None:
    (train, label_B), (test, _) = made(5, 0), made(5, 1)
    train = train * (2 * label_B - 1)[:, None, None]
    test = test * (2 * label_B - 1)[:, None, None]  # the wave has one sign in all rows
    assert accuracy((train, label_B), (test, label_B)) == pytest.approx(0.5, abs=0.17)


def test_every_octave_counts_alike_however_little_power_it_has() -> None:
    x_BLD = made(5, 0)[0]
    scales = TimeScales.fit([x_BLD[:30], x_BLD[30:]], L, D)
    assert scales.octaves[0] == (0, 1) and scales.octaves[-1][1] == L // 2 + 1
    feature_BF = scales.features(x_BLD)
    edges = [2 * D * low for low, _ in scales.octaves] + [2 * D * (L // 2 + 1)]
    sizes = [float(feature_BF[:, a:b].square().sum(1).mean()) for a, b in pairwise(edges)]
    assert sizes == pytest.approx([1.0] * len(sizes), rel=1e-3)
    assert float(feature_BF[:, edges[-1] :].square().sum(1).mean()) == pytest.approx(1, abs=0.05)


def test_many_channels_are_projected_and_parts_do_not_matter() -> None:
    x_BLD = torch.randn(12, 32, MOST_CHANNELS + 8, generator=torch.Generator().manual_seed(0))
    scales = TimeScales.fit([x_BLD], 32, x_BLD.shape[2])
    n_coefficients = 2 * (32 // 2 + 1) + len(scales.octaves)
    assert scales.features(x_BLD).shape[1] == n_coefficients * MOST_CHANNELS
    whole, parts = (
        shrunken_means(scales, [cut(x_BLD[:6]), cut(x_BLD[6:])])
        for cut in (lambda rows: [rows], lambda rows: rows.split(4))
    )
    assert torch.allclose(whole, parts, atol=1e-6)


def test_what_tells_nothing_apart_counts_nowhere() -> None:
    x_BLD, label_B = made(5, 0)
    scales = TimeScales.fit([x_BLD], L, D)
    mean_KF = shrunken_means(scales, ([x_BLD[label_B == k]] for k in (0, 1)))
    differs_F = mean_KF[0] != mean_KF[1]
    wave = [2 * 5 * D + channel for channel in range(D)]  # real parts at 5 cycles
    assert differs_F[wave].all()
    assert differs_F.double().mean() < 0.02
