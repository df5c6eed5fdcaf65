"""How a quantity grows with length: fits of several forms, with intervals, and backtests.

A *rung* is a length with one value or several, one for each seed. Errors are relative: a value is
that of the form times ``exp(noise)``. A rung is the geometric mean of its values and weighs as
many as it has. Letters: R rungs, P parameters.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np

from bkray.errors import ConfigError, DataError
from bkray.profile import Array, LeastSquares, coordinate, student

Form = Literal["power", "linear", "logarithmic", "power_with_floor"]
FORMS: tuple[Form, ...] = get_args(Form)
"""``a n^b``, ``a + b n``, ``a + b log n``, and ``a n^b + c`` with c of at least 0."""

_NAMES = {form: ("a", "b", "c")[: 3 if form == "power_with_floor" else 2] for form in FORMS}
_LOGARITHMS = {"power": ("a",), "power_with_floor": ("a", "c")}  # of positive parameters
_ROUNDING = 1e-9  # relative: no value is taken for more precise
_NEAR = 3.0  # of a logarithm: where a floor is hardly felt, its deviation is no guide
_TIE = 1e-6  # relative: of backtests this close the first form is chosen, not rounding
_STEEPER, _FLOORS = (1.0, 2.0, 4.0), (0.1, 0.9, 0.99)
"""Where searches for a floor begin: times the slope without one, and shares of the least value."""


class Prediction(NamedTuple):
    """What a form says at a length, and between what a measurement there lies."""

    mean: float
    low: float
    high: float


class Backtest(NamedTuple):
    """The top rung, and what a fit to those below it says there."""

    form: Form
    length: float
    value: float
    """Geometric mean of the rung's values."""
    predicted: Prediction
    error: float
    """Predicted over measured, less 1."""
    covered: bool


class _Rungs(NamedTuple):
    log_length_R: Array
    log_value_R: Array
    weight_R: Array


@dataclass(frozen=True)
class Fit:
    """A fitted form; ``parameters`` and their ``intervals`` by the names in ``FORMS``.

    Intervals are 95% by profile likelihood: all values for which the squared error need not grow
    by more than Student's t with ``R - P`` degrees of freedom allows; an end may be infinite. They
    are made of the scatter of rungs about the form, not of seeds within a rung, so those of a form
    that does not fit are wide.

    Source: Bates and Watts 1988, Nonlinear Regression Analysis and Its Applications, chapter 6.
    """

    form: Form
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    _squares: LeastSquares = field(repr=False)
    _theta_P: Array = field(repr=False)
    _reach: float = field(repr=False)
    """How far the logarithm of a value may lie from the form that it is of."""

    def predict(self, n: float, *, n_values: int = 1) -> Prediction:
        """Return the form's value at length ``n``, and where a mean of ``n_values`` will lie.

        Raises:
            DataError: a length of 0 or less, or the form is not above 0 there.
        """
        if not n > 0:
            raise DataError(f"a length must be above 0, got {n}")
        mean = _logarithm(self.form, self._theta_P, math.log(n))[0]
        if not math.isfinite(mean):
            raise DataError(
                f"the {self.form} fit is not above 0 at length {n:g}: use another form"
            )
        low, high = self._squares.interval(
            self._theta_P,
            lambda theta_P: _logarithm(self.form, theta_P, math.log(n)),
            self._reach,
            _NEAR,
        )
        own = self._reach / math.sqrt(n_values)
        low, high = mean - math.hypot(mean - low, own), mean + math.hypot(high - mean, own)
        return Prediction(_exp(mean), _exp(low), _exp(high))


def fit(lengths: Sequence[float], values: Sequence[float], form: Form) -> Fit:
    """Return ``form`` fitted to ``values`` by least squares of their logarithms.

    Args:
        lengths: above 0, as many as ``values``; a length may come several times, once per seed.
        values: above 0, in any unit.

    Raises:
        ConfigError: no such form.
        DataError: a length or value that is not a number above 0, or fewer than P + 1 lengths.
    """
    if form not in FORMS:
        raise ConfigError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    rungs, names = _rungs(lengths, values), _NAMES[form]
    freedom = len(rungs.weight_R) - len(names)
    if freedom < 1:
        raise DataError(
            f"a {form} fit has {len(names)} parameters and needs at least {len(names) + 1} "
            f"different lengths, got {len(rungs.weight_R)}: add rungs or use another form"
        )
    squares = LeastSquares(lambda theta_P: _residuals(form, rungs, theta_P))
    found = [squares.descend(start_P) for start_P in _starts(form, rungs)]
    theta_P = min(found, key=squares.squared_error)
    scatter = math.sqrt(squares.squared_error(theta_P) / freedom)
    reach = student(freedom) * max(scatter, _ROUNDING)
    parameters, intervals = {}, {}
    for place, name in enumerate(names):
        is_log = name in _LOGARITHMS.get(form, ())
        said, near = (_exp, _NEAR) if is_log else (float, math.inf)
        low, high = squares.interval(theta_P, coordinate(place, len(names)), reach, near)
        parameters[name], intervals[name] = said(theta_P[place]), (said(low), said(high))
    return Fit(form, parameters, intervals, squares, theta_P, reach)


def backtest(
    lengths: Sequence[float], values: Sequence[float], form: Form | None = None
) -> Backtest:
    """Return how a fit without the longest rung does on it; the interval is of its values' mean.

    Without ``form``, that of ``best_form`` for the rungs below, so that the top has no say.

    Raises:
        DataError: as ``fit`` and ``best_form`` do, of the rungs below the top.
    """
    rungs = _rungs(lengths, values)
    top = max(lengths, default=0)
    of_lower = [value for n, value in zip(lengths, values, strict=True) if n < top]
    lower = [n for n in lengths if n < top]
    form = form or best_form(lower, of_lower)
    predicted = fit(lower, of_lower, form).predict(top, n_values=int(rungs.weight_R[-1]))
    value = math.exp(rungs.log_value_R[-1])
    covered = predicted.low <= value <= predicted.high
    return Backtest(form, top, value, predicted, predicted.mean / value - 1, covered)


def best_form(lengths: Sequence[float], values: Sequence[float]) -> Form:
    """Return the form that says the longest rung best from the others, the first of equals; one
    with too many parameters for that, or not above 0 there, is left out.

    Raises:
        DataError: fewer than 4 different lengths, or as ``fit`` does.
    """
    n_rungs = len(_rungs(lengths, values).weight_R)
    if n_rungs < 4:
        raise DataError(
            f"choosing a form needs at least 4 different lengths, got {n_rungs}: "
            "add rungs or name the form"
        )
    best, least = FORMS[0], math.inf
    for form in FORMS:
        if n_rungs < len(_NAMES[form]) + 2:
            continue
        try:
            error = abs(math.log1p(backtest(lengths, values, form).error))
        except DataError:  # not above 0 at the top
            continue
        if error < least - _TIE:
            best, least = form, error
    return best


def _rungs(lengths: Sequence[float], values: Sequence[float]) -> _Rungs:
    """Return the rungs by rising length."""
    if len(lengths) != len(values):
        raise DataError(f"{len(lengths)} lengths do not go with {len(values)} values")
    by_length: dict[float, list[float]] = {}
    for n, value in zip(lengths, values, strict=True):
        for what, number in (("length", n), ("value", value)):
            if not (math.isfinite(number) and number > 0):
                raise DataError(
                    f"the rung of length {n:g} has the {what} {number:g}: a fit needs numbers "
                    "above 0; leave a rung that diverged out"
                )
        by_length.setdefault(n, []).append(math.log(value))
    ordered = sorted(by_length)
    return _Rungs(
        np.log(np.array(ordered, dtype=np.float64)),
        np.array([math.fsum(by_length[n]) / len(by_length[n]) for n in ordered]),
        np.array([len(by_length[n]) for n in ordered], dtype=np.float64),
    )


def _residuals(form: Form, rungs: _Rungs, theta_P: Array) -> tuple[Array, Array]:
    said_R, gradient_RP = _logarithms(form, theta_P, rungs.log_length_R)
    root_R = np.sqrt(rungs.weight_R)
    return root_R * (said_R - rungs.log_value_R), root_R[:, None] * gradient_RP


def _logarithms(form: Form, theta_P: Array, log_length_R: Array) -> tuple[Array, Array]:
    """Return the form's logarithm and its gradient; infinite where the form is not above 0."""
    one_R = np.ones_like(log_length_R)
    if form == "power":
        gradient_RP = np.stack([one_R, log_length_R], axis=1)
        return gradient_RP @ theta_P, gradient_RP
    if form == "power_with_floor":
        rise_R = theta_P[0] + theta_P[1] * log_length_R
        said_R = np.logaddexp(rise_R, theta_P[2])
        share_R = np.exp(rise_R - said_R)
        return said_R, np.stack([share_R, share_R * log_length_R, 1 - share_R], axis=1)
    term_R = log_length_R if form == "logarithmic" else np.exp(log_length_R)
    value_R = theta_P[0] + theta_P[1] * term_R
    allowed_R = np.where(value_R > 0, value_R, 1.0)
    said_R = np.where(value_R > 0, np.log(allowed_R), math.inf)
    return said_R, np.stack([one_R, term_R], axis=1) / allowed_R[:, None]


def _starts(form: Form, rungs: _Rungs) -> Iterable[Array]:
    """Return where to begin the search: parameters that are allowed."""
    log_n_R, y_R = rungs.log_length_R, rungs.log_value_R
    slope, level = np.polyfit(log_n_R, y_R, 1, w=np.sqrt(rungs.weight_R))
    if form == "power":
        return [np.array([level, slope])]
    if form == "power_with_floor":
        return [
            np.array([y_R.mean() - steeper * slope * log_n_R.mean(), steeper * slope, floor])
            for steeper in _STEEPER
            for floor in y_R.min() + np.log(_FLOORS)
        ]
    return [np.array([math.exp(y_R.mean()), 0.0])]


def _logarithm(form: Form, theta_P: Array, log_n: float) -> tuple[float, Array]:
    said_R, gradient_RP = _logarithms(form, theta_P, np.array([log_n]))
    return float(said_R[0]), gradient_RP[0]


def _exp(logarithm: float) -> float:
    return math.exp(logarithm) if logarithm < 709 else math.inf
