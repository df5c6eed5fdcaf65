"""How far states have moved: against sums written out, and where nothing moved."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from bkray.report.mismatch import SAFE_SHIFT
from bkray.train.shift import energy_noise, energy_test, shift


def states(n_rows: int, seed: int, *, n_sites: int = 3, width: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    row = torch.randn(n_rows, 1, width, generator=draw, dtype=torch.float64)
    return row + torch.randn(n_rows, n_sites, width, generator=draw, dtype=torch.float64)


def test_the_energy_coefficient_is_the_sum_written_out() -> None:
    a, b = states(4, 0), states(4, 1) + 0.5
    far = [
        sum(
            float((p - q).norm())
            for (i, j) in itertools.permutations(range(4), 2)
            for p, q in itertools.product(one[i], other[j])
        )
        / (4 * 3 * 3 * 3)
        for one, other in ((a, b), (a, a), (b, b))
    ]
    expected = (2 * far[0] - far[1] - far[2]) / (2 * far[0])
    assert energy_test(a, b)[0] == pytest.approx(expected, abs=1e-10)
    assert energy_test(b, a)[0] == pytest.approx(expected, abs=1e-10)


def test_equal_states_have_not_moved() -> None:
    a = states(8, 0)
    seen = shift(a, a.clone())
    assert seen[:4] == pytest.approx((0.0, 1.0, 0.0, 0.0), abs=1e-10)
    assert seen.p == 1.0
    assert seen.energy_noise > 0.01


def test_what_moved_is_found_and_what_moved_further_is_further() -> None:
    a = states(12, 0)
    near, far = shift(a + 0.3, a), shift(a + 2.0, a)
    assert near.p <= 0.002 and far.p <= 0.002
    assert 0 < near.energy < far.energy < 1
    total = float(a.flatten(0, 1).var(0).sum())
    assert far.mean == pytest.approx(2.0 * 4**0.5 / total**0.5, rel=1e-6)
    assert near.energy < SAFE_SHIFT < far.energy


@pytest.mark.parametrize("width", [1, 16])
def test_the_same_displacement_comes_to_the_same_however_many_rows(width: int) -> None:
    """Half of the spread is where states stop to be safe."""
    for n_rows, n_draws in ((4, 200), (16, 50), (256, 1)):
        seen = []
        for k in range(n_draws):
            a = torch.randn(n_rows, 2, width, generator=torch.Generator().manual_seed(k)).double()
            seen.append(energy_test(a + 0.5, a)[0])
        assert sum(seen) / n_draws == pytest.approx(SAFE_SHIFT, abs=0.015)


def test_variance_and_correlation_are_told_apart() -> None:
    a = states(40, 0)
    wider = shift(a * 3 - 2 * a.flatten(0, 1).mean(0), a)
    assert wider.variance == pytest.approx(9.0)
    assert (wider.mean, wider.correlation) == pytest.approx((0.0, 0.0), abs=1e-10)
    mixed = a.clone()
    mixed[..., 1] = a[..., 0]
    assert shift(mixed, a).correlation > 0.1


def test_what_can_change_places_is_called_moved_no_more_often_than_the_level() -> None:
    n_found = 0
    for seed in range(200):
        draw = torch.Generator().manual_seed(seed)
        text = torch.randn(10, 1, 4, generator=draw, dtype=torch.float64)
        a, b = (text + torch.randn(10, 3, 4, generator=draw).double() for _ in range(2))
        n_found += energy_test(a, b)[1] <= 0.05
    assert n_found <= 18  # 10 expected; above 18 in fewer than 1 of 100 cases


def test_rows_weigh_as_wholes() -> None:
    """States of a row are alike: their number must not make the test surer."""
    draw = torch.Generator().manual_seed(3)
    a, b = (torch.randn(4, 1, 4, generator=draw).double().expand(-1, 50, -1) for _ in range(2))
    assert energy_test(a, b)[1] >= 2 / 2**4 - 0.03


def test_the_noise_falls_with_the_rows_and_rises_with_their_differences() -> None:
    alike = torch.randn(64, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    kinds = alike + 4 * torch.arange(8).repeat(8)[:, None, None]
    assert energy_noise(kinds[:8]) > 2 * energy_noise(alike[:8])
    assert energy_noise(kinds) < energy_noise(kinds[:8]) / 2


def test_a_nan_is_told() -> None:
    a = states(4, 0)
    b = a.clone()
    b[0, 0, 0] = math.nan
    seen = shift(b, a)
    assert all(map(math.isnan, (seen.mean, seen.variance, seen.energy, seen.p)))
