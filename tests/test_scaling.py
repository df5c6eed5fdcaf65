"""Fits against length: known numbers, coverage over many draws, and what is refused."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from bkray.errors import ConfigError, DataError
from bkray.profile import student
from bkray.scaling import FORMS, Form, backtest, best_form, fit

LENGTHS = [128, 512, 2048, 8192, 32768, 131072]
DRAWS = 500
CURVES: Mapping[Form, Callable[..., float]] = {
    "power": lambda n, a, b: a * n**b,
    "power_with_floor": lambda n, a, b, c: a * n**b + c,
    "linear": lambda n, a, b: a + b * n,
    "logarithmic": lambda n, a, b: a + b * math.log(n),
}
EXACT: list[tuple[Form, dict[str, float]]] = [
    ("power", {"a": 2e-3, "b": 1.1}),
    ("power", {"a": 7.0, "b": -0.25}),
    ("power_with_floor", {"a": 20.0, "b": -0.5, "c": 1.5}),
    ("power_with_floor", {"a": 0.02, "b": 1.3, "c": 50.0}),
    ("linear", {"a": 1e9, "b": 2e4}),
    ("logarithmic", {"a": 6.0, "b": -0.3}),
]


def values(form: Form, truth: Mapping[str, float]) -> list[float]:
    return [CURVES[form](n, **truth) for n in LENGTHS]


@pytest.mark.parametrize(("form", "truth"), EXACT)
def test_without_noise_the_law_comes_back(form: Form, truth: dict[str, float]) -> None:
    seen = fit(LENGTHS, values(form, truth), form)
    assert seen.parameters == pytest.approx(truth, rel=1e-5)
    for name, (low, high) in seen.intervals.items():
        assert low <= seen.parameters[name] <= high
        assert high - low < 1e-3 * abs(truth[name])
    there = seen.predict(524_288)
    assert there.mean == pytest.approx(CURVES[form](524_288, **truth), rel=1e-5)
    assert there.low <= there.mean <= there.high


@pytest.mark.parametrize(("form", "truth"), EXACT)
def test_the_form_that_it_is_says_the_top_best(form: Form, truth: dict[str, float]) -> None:
    assert best_form(LENGTHS, values(form, truth)) == form
    tested = backtest(LENGTHS, values(form, truth))
    assert (tested.form, tested.length) == (form, 131_072)
    assert tested.error == pytest.approx(0, abs=1e-4)


def covered(
    form: Form, truth: Mapping[str, float], n_rungs: int, n_seeds: int, noise: float
) -> dict[str, float]:
    """Return how often intervals held the truth, a new value beyond, and the top rung's mean."""
    draw = np.random.default_rng(1)
    lengths = [n for n in LENGTHS[:n_rungs] for _ in range(n_seeds)]
    beyond = 4 * lengths[-1]
    hits = dict.fromkeys([*truth, "new", "top"], 0)
    for _ in range(DRAWS):
        noisy = [CURVES[form](n, **truth) * math.exp(noise * draw.normal()) for n in lengths]
        seen = fit(lengths, noisy, form)
        for name, (low, high) in seen.intervals.items():
            hits[name] += low <= truth[name] <= high
        there = seen.predict(beyond)
        new = CURVES[form](beyond, **truth) * math.exp(noise * draw.normal())
        hits["new"] += there.low <= new <= there.high
        hits["top"] += backtest(lengths, noisy, form).covered
    return {name: n / DRAWS for name, n in hits.items()}


@pytest.mark.parametrize(("n_rungs", "n_seeds", "noise"), [(5, 1, 0.01), (6, 2, 0.1), (6, 3, 0.3)])
def test_intervals_of_a_power_law_cover_what_they_should(
    n_rungs: int, n_seeds: int, noise: float
) -> None:
    shares = covered("power", {"a": 2e-3, "b": 1.1}, n_rungs, n_seeds, noise)
    assert all(0.90 <= share <= 0.98 for share in shares.values()), shares


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "truth", "noise"),
    [
        ("power_with_floor", {"a": 20.0, "b": -0.5, "c": 1.5}, 0.01),
        ("linear", {"a": 50.0, "b": 0.01}, 0.1),
        ("logarithmic", {"a": 6.0, "b": -0.3}, 0.05),
    ],
)
def test_intervals_of_the_other_forms_cover_what_they_should(
    form: Form, truth: dict[str, float], noise: float
) -> None:
    shares = covered(form, truth, 6, 3, noise)
    assert all(0.90 <= share <= 0.98 for share in shares.values()), shares


def test_a_power_laws_interval_is_that_of_the_straight_line() -> None:
    """By hand: ordinary least squares of logarithms, t = 2.776 at 4 degrees of freedom."""
    noisy = [n * (1.0 + 0.05 * (-1) ** i) for i, n in enumerate(LENGTHS)]
    x, y = np.log(LENGTHS), np.log(noisy)
    slope, level = np.polyfit(x, y, 1)
    error = ((y - level - slope * x) ** 2).sum() / 4
    half = 2.776445 * math.sqrt(error / ((x - x.mean()) ** 2).sum())
    low, high = fit(LENGTHS, noisy, "power").intervals["b"]
    assert (low, high) == pytest.approx((slope - half, slope + half), abs=2e-3 * half)


def test_a_form_that_does_not_fit_has_wide_intervals_whatever_the_seeds() -> None:
    bent = [2.0 + 3.0 * n**-0.4 for n in LENGTHS]
    once = fit(LENGTHS, bent, "power").intervals["b"]
    thrice = fit(LENGTHS * 3, bent * 3, "power").intervals["b"]
    assert thrice == pytest.approx(once, rel=1e-2)


def test_a_mean_of_many_values_lies_closer_than_one_but_no_closer_than_the_form() -> None:
    draw = np.random.default_rng(0)
    seen = fit(LENGTHS, [n * math.exp(0.1 * draw.normal()) for n in LENGTHS], "power")
    one, many = seen.predict(10_000), seen.predict(10_000, n_values=10**9)
    assert one.low < many.low < many.mean == one.mean < many.high < one.high


def test_a_floor_that_is_not_there_may_be_zero() -> None:
    draw = np.random.default_rng(0)
    noisy = [3.0 * n**-0.2 * math.exp(0.01 * draw.normal()) for n in LENGTHS]
    low, high = fit(LENGTHS, noisy, "power_with_floor").intervals["c"]
    assert low == 0 < high


@pytest.mark.parametrize(
    ("freedom", "table"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (30, 2.04227)]
)
def test_quantiles_are_those_of_the_table(freedom: int, table: float) -> None:
    assert student(freedom) == pytest.approx(table, rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_too_few_rungs_are_refused(form: Form) -> None:
    n = 3 if form == "power_with_floor" else 2
    with pytest.raises(DataError, match=rf"{form} fit has {n} parameters .* {n + 1} .* got {n}"):
        fit(LENGTHS[:n] * 3, [1.0] * 3 * n, form)
    fit(LENGTHS[: n + 1], [1.0] * (n + 1), form)


def test_too_few_rungs_to_choose_a_form_are_refused() -> None:
    with pytest.raises(DataError, match="at least 4 different lengths, got 3"):
        best_form(LENGTHS[:3], [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="at least 4 different lengths, got 0"):
        backtest([], [])
    with pytest.raises(DataError, match="at least 4 different lengths, got 3"):
        backtest(LENGTHS[:4], [1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("function", [best_form, backtest, lambda n, v: fit(n, v, "power")])
def test_a_value_that_is_no_positive_number_is_refused_with_its_rung(
    bad: float, function: Callable[..., Any]
) -> None:
    for place, n in enumerate(LENGTHS):
        noisy: list[float] = [float(n) for n in LENGTHS]
        noisy[place] = bad
        with pytest.raises(DataError, match=rf"rung of length {n:g} has the value {bad:g}"):
            function(LENGTHS, noisy)


def test_other_words_and_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"form must be one of power, .* got 'cubic'"):
        fit(LENGTHS, [1.0] * 6, "cubic")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="6 lengths do not go with 2 values"):
        fit(LENGTHS, [1.0, 2.0], "power")
    with pytest.raises(DataError, match="rung of length -1 has the length -1"):
        fit([-1, *LENGTHS], [1.0] * 7, "power")
    with pytest.raises(DataError, match="a length must be above 0, got 0"):
        fit(LENGTHS, [1.0] * 6, "power").predict(0)


def test_a_line_that_falls_below_zero_says_so_instead_of_predicting() -> None:
    seen = fit(LENGTHS, [6.0 - 0.4 * math.log(n) for n in LENGTHS], "logarithmic")
    with pytest.raises(DataError, match="not above 0 at length 1e"):
        seen.predict(10_000_000)
