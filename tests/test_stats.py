"""The bootstrap of a mean and the sign-flip test: known values, an independent enumeration, and
what must not matter."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from bkray.errors import ConfigError
from bkray.stats import Interval, bootstrap_interval, sign_flip_p

SAMPLES = [
    [1.0, 2.0],
    [3.0, 3.0, 3.0],
    [0.0, 0.0, 1.0],
    [1.0, 2.0, 4.0, 8.0],
    [2.5, -1.0, 0.25, 7.0, 7.0],
    [0.1, 0.4, 0.2, 0.9, 0.3, 0.8],
    list(np.random.default_rng(1).lognormal(size=17)),
]


def brute(values: Sequence[float], level: float) -> tuple[float, float]:
    """Every resample by name: cut the share (1 - level) / 2 of the ordered means at each end."""
    means = sorted(math.fsum(s) / len(s) for s in itertools.product(values, repeat=len(values)))
    n_cut = math.floor((1 - level) / 2 * len(means))
    return means[n_cut], means[len(means) - 1 - n_cut]


def test_one_value_has_a_mean_and_no_interval() -> None:
    assert bootstrap_interval([3.5]) == Interval(mean=3.5, low=None, high=None, n=1)


def test_two_and_three_values_give_their_range() -> None:
    assert bootstrap_interval([2.0, 1.0]) == Interval(1.5, 1.0, 2.0, 2)
    assert bootstrap_interval([4.0, 1.0, 1.0]) == Interval(2.0, 1.0, 4.0, 3)


def test_four_values_by_hand() -> None:
    """Of 256 resamples of 0, 0, 0, 4 the mean is 0, 1, 2, 3, 4 in 81, 108, 54, 12, 1 of them; six
    are cut at each end, and what is left ends at 3."""
    assert bootstrap_interval([0.0, 0.0, 0.0, 4.0]) == Interval(1.0, 0.0, 3.0, 4)
    assert bootstrap_interval([0.0, 0.0, 0.0, 4.0], level=0.5) == Interval(1.0, 0.0, 2.0, 4)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("values", [values for values in SAMPLES if len(values) <= 5])
def test_few_values_are_enumerated(values: list[float], level: float) -> None:
    seen = bootstrap_interval(values, level)
    assert (seen.low, seen.high) == pytest.approx(brute(values, level), rel=1e-12)


def test_many_values_agree_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(10.0, 2.0, size=400)
    seen = bootstrap_interval(list(values))
    assert seen.low is not None and seen.high is not None
    half_width = 1.96 * values.std() / math.sqrt(400)
    assert seen.mean == pytest.approx(values.mean(), rel=1e-12)
    assert seen.high - seen.low == pytest.approx(2 * half_width, rel=0.04)  # 10,000 draws
    assert seen.low == pytest.approx(seen.mean - half_width, abs=0.1 * half_width)


@pytest.mark.parametrize("values", SAMPLES)
@pytest.mark.parametrize(("factor", "shift"), [(3.0, 0.0), (1.0, -7.0), (-2.0, 5.0)])
def test_scaling_shifting_and_mirroring_move_the_interval_with_the_values(
    values: list[float], factor: float, shift: float
) -> None:
    seen = bootstrap_interval(values)
    moved = bootstrap_interval([factor * value + shift for value in values])
    assert seen.low is not None and seen.high is not None
    ends = sorted((factor * seen.low + shift, factor * seen.high + shift))
    assert moved.mean == pytest.approx(factor * seen.mean + shift, abs=1e-12)
    assert (moved.low, moved.high) == pytest.approx(tuple(ends), abs=1e-12)


@pytest.mark.parametrize("values", SAMPLES)
def test_the_order_of_the_values_does_not_matter(values: list[float]) -> None:
    for other in (values[::-1], values[1:] + values[:1], sorted(values), values):
        assert bootstrap_interval(other) == bootstrap_interval(values)


@pytest.mark.parametrize("values", SAMPLES)
def test_a_higher_level_is_never_narrower_and_the_range_holds_it(values: list[float]) -> None:
    seen = [bootstrap_interval(values, level) for level in (0.5, 0.8, 0.9, 0.95, 0.99)]
    lows = [one.low for one in seen]
    highs = [one.high for one in seen]
    assert lows == sorted(lows, reverse=True)
    assert highs == sorted(highs)
    assert min(values) - 1e-12 <= lows[-1] <= lows[0] <= highs[0] <= highs[-1]
    assert highs[-1] <= max(values) + 1e-12


@pytest.mark.parametrize("values", SAMPLES)
def test_a_larger_value_never_lowers_an_end(values: list[float]) -> None:
    seen, more = bootstrap_interval(values), bootstrap_interval([values[0] + 1.0, *values[1:]])
    assert seen.low is not None and seen.high is not None
    assert more.mean > seen.mean
    assert more.low >= seen.low and more.high >= seen.high


@pytest.mark.parametrize(("n", "share"), [(2, 0.5), (3, 0.75)])
def test_the_interval_of_few_values_covers_what_its_docstring_says(n: int, share: float) -> None:
    rng = np.random.default_rng(5)
    n_samples = 2000
    seen = [bootstrap_interval(list(rng.normal(size=n))) for _ in range(n_samples)]
    covered = sum(one.low <= 0 <= one.high for one in seen) / n_samples
    assert covered == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n_samples))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [1.0, -math.inf]])
def test_no_value_and_no_number_are_refused(values: list[float]) -> None:
    with pytest.raises(ConfigError, match="at least one value, all finite"):
        bootstrap_interval(values)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95.0, math.nan])
def test_a_level_out_of_range_is_refused(level: float) -> None:
    with pytest.raises(ConfigError, match="level must be between 0 and 1"):
        bootstrap_interval([1.0, 2.0], level)


@pytest.mark.parametrize("values", [*SAMPLES[3:6], [1.0, -2.0, 3.0], [0.0, 0.0]])
def test_the_sign_flip_test_counts_means_as_far_from_zero(values: list[float]) -> None:
    flipped = [
        abs(math.fsum(sign * value for sign, value in zip(signs, values, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(values))
    ]
    as_far = sum(one >= abs(math.fsum(values)) - 1e-9 for one in flipped)
    assert sign_flip_p(values) == as_far / len(flipped)


def test_all_of_one_sign_is_the_least_that_can_be_said() -> None:
    assert [sign_flip_p([0.1] * n) for n in (1, 2, 6, 16)] == [2 / 2**n for n in (1, 2, 6, 16)]
    assert 0 < sign_flip_p([0.1] * 30) < 0.001


def test_the_sign_flip_test_rarely_sees_what_is_not_there() -> None:
    draws = np.random.default_rng(0).normal(size=(400, 8))
    found = sum(sign_flip_p(list(map(float, row))) <= 0.05 for row in draws)
    assert 8 <= found <= 32  # 20 are to be expected


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_differences_must_be_numbers(values: list[float]) -> None:
    with pytest.raises(ConfigError, match="at least one difference"):
        sign_flip_p(values)
