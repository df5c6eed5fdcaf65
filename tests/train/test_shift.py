"""How far states have moved: against sums written out, and where nothing moved."""

import math

import pytest
import torch
from torch import Tensor

from bkray.train.shift import energy_of_halves, energy_test, shift


def states(n_rows: int, seed: int, *, n_sites: int = 3, width: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    row = torch.randn(n_rows, 1, width, generator=draw, dtype=torch.float64)
    return row + torch.randn(n_rows, n_sites, width, generator=draw, dtype=torch.float64)


def test_the_energy_distance_is_the_sum_written_out() -> None:
    a, b = states(4, 0), states(4, 1) + 0.5
    x, y = a.flatten(0, 1), b.flatten(0, 1)
    far = [
        sum(float((p - q).norm()) for p in one for q in other) / (len(one) * len(other))
        for one, other in ((x, y), (x, x), (y, y))
    ]
    expected = (2 * far[0] - far[1] - far[2]) / (2 * far[0])
    assert energy_test(a, b)[0] == pytest.approx(expected, abs=1e-10)
    assert energy_test(b, a)[0] == pytest.approx(expected, abs=1e-10)


def test_equal_states_have_not_moved() -> None:
    a = states(8, 0)
    seen = shift(a, a.clone())
    assert seen[:4] == pytest.approx((0.0, 1.0, 0.0, 0.0), abs=1e-10)
    assert seen.p == 1.0
    assert seen.energy_null > 0.01


def test_what_moved_is_found_and_what_moved_further_is_further() -> None:
    a = states(12, 0)
    near, far = shift(a + 0.3, a), shift(a + 2.0, a)
    assert near.p <= 0.002 and far.p <= 0.002
    assert 0 < near.energy < far.energy < 1
    total = float(a.flatten(0, 1).var(0).sum())
    assert far.mean == pytest.approx(2.0 * 4**0.5 / total**0.5, rel=1e-6)
    assert near.energy < near.energy_null < far.energy


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


def test_halves_of_rows_of_several_kinds_are_further_apart() -> None:
    alike = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    kinds = alike + 4 * torch.arange(8)[:, None, None]
    assert energy_of_halves(kinds) > 2 * energy_of_halves(alike)


def test_a_nan_is_told() -> None:
    a = states(4, 0)
    b = a.clone()
    b[0, 0, 0] = math.nan
    seen = shift(b, a)
    assert all(map(math.isnan, (seen.mean, seen.variance, seen.energy, seen.p)))
