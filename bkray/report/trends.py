"""How time, memory and loss grow along a ladder: fits of ``scaling`` and their backtests."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bkray.errors import DataError
from bkray.report.ranking import brief
from bkray.report.rung_rows import Line
from bkray.scaling import Backtest, Fit, Form, backtest, best_form, fit

_FORMS: dict[str, Form] = {"seconds_per_token": "power", "memory_gb": "linear", "loss": "power"}
_WORDS = {"seconds_per_token": "Time per token", "memory_gb": "Peak memory", "loss": "Loss"}
_FEWEST_FOR_CHOICE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A quantity against length; ``fit`` is ``None`` where ``why_not`` says why.

    ``backtest`` is of the same form, ``best`` the form that says the longest length best from
    the others; both are ``None`` with too few lengths.
    """

    quantity: str
    form: Form
    fit: Fit | None
    backtest: Backtest | None
    best: Form | None
    why_not: str = ""


def trends(main: Sequence[Line]) -> list[Trend]:
    """Return what can be fitted to the lengths that ended as ok, one line per length."""
    return [_trend(quantity, form, main) for quantity, form in _FORMS.items()]


def said(trend: Trend) -> str:
    """Return a trend as a sentence or two."""
    name = _WORDS[trend.quantity]
    if trend.fit is None:
        return f"{name}: no fit, {trend.why_not}."
    b, (low, high) = trend.fit.parameters["b"], trend.fit.intervals["b"]
    if trend.form == "linear":
        kib = 2**20  # of a GB of 2^30 bytes
        slope = f"{brief(b * kib)} KiB per token of length"
        words = f"{name}: {slope} (95% interval {brief(low * kib)} to {brief(high * kib)})"
    else:
        words = f"{name} goes as length^{b:.3f} (95% interval {low:.3f} to {high:.3f})"
    if trend.backtest is None:
        return f"{words}; too few lengths for a backtest."
    test = trend.backtest
    inside = "inside" if test.covered else "outside"
    return (
        f"{words}; {int(test.length):,} told from the shorter lengths is off by "
        f"{test.error:+.1%}, {inside} the interval."
    )


def plain(found: Iterable[Trend]) -> dict[str, Any]:
    """Return the trends as data for JSON, by quantity."""
    return {
        trend.quantity: {
            "form": trend.form,
            "parameters": trend.fit and trend.fit.parameters,
            "intervals": trend.fit and trend.fit.intervals,
            "best_form": trend.best,
            "backtest": trend.backtest and trend.backtest._asdict(),
            "why_not": trend.why_not,
        }
        for trend in found
    }


def value_of(quantity: str, metrics: Any) -> float | None:
    """Return a quantity from the metrics of a rung."""
    if quantity == "seconds_per_token":
        rate = metrics.get("tokens_per_second")
        return 1 / rate if rate else None
    value: float | None = metrics.get(quantity)
    return value


def _trend(quantity: str, form: Form, main: Sequence[Line]) -> Trend:
    known = [
        (float(row.n_seq), value)
        for line in main
        if line.outcome == "ok"
        for row in line.rows
        if (value := value_of(quantity, row.metrics)) is not None and math.isfinite(value)
    ]
    lengths, values = [n for n, _ in known], [value for _, value in known]
    try:
        fitted = fit(lengths, values, form)
    except DataError as error:
        why_not = str(error).partition(":")[0]
        return Trend(
            quantity=quantity, form=form, fit=None, backtest=None, best=None, why_not=why_not
        )
    enough = len(set(lengths)) >= _FEWEST_FOR_CHOICE
    return Trend(
        quantity=quantity,
        form=form,
        fit=fitted,
        backtest=_tested(lengths, values, form) if enough else None,
        best=best_form(lengths, values) if enough else None,
    )


def _tested(lengths: Sequence[float], values: Sequence[float], form: Form) -> Backtest | None:
    try:
        return backtest(lengths, values, form)
    except DataError:  # the fit is not above 0 at the top
        return None
