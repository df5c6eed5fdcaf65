"""Which trials end early: a function of the validation losses known so far, and of nothing else.

A *curve* is {training tokens: loss in nats}, the tokens ascending; curves are compared at equal
tokens, never at equal reports.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Protocol

import numpy as np

Curve = Mapping[float, float]
Curves = Mapping[int, Curve]
"""By the number of the trial."""

WORST = 1e9
"""Stands for a loss that is not finite, in nats: worse than any that is."""
_KEEP_ONE_IN = 3
"""Of ASHA: a third of the trials passes each rung."""
_BRACKETS = 3
"""Of HyperBand: from pruning at the first evaluation to hardly ever."""
_MEDIAN_OF = 3
"""Trials the median rule must have seen."""


class Pruner(Protocol):
    """Says after an evaluation whether the trial should end."""

    def ends(self, trial: int, curves: Curves, lost: Collection[int]) -> bool:
        """Return whether ``trial`` should end after the last point of its curve.

        The ``lost`` diverged, failed or ran out of memory: they count as the worst, from the
        moment that this is known.
        """
        ...


def pruner(name: str, *, grace_tokens: float, max_tokens: float, seed: int) -> Pruner | None:
    """Return the rule called ``name``, one of ``schedulers.SCHEDULERS``; ``None`` for ``none``.

    Args:
        grace_tokens: no trial ends earlier.
        max_tokens: of a whole trial.
        seed: of the sweep; HyperBand draws a trial's bracket from it and the trial's number.
    """
    match name:
        case "asha":
            return Halving(grace_tokens, max_tokens)
        case "hyperband":
            return Halving(grace_tokens, max_tokens, n_brackets=_BRACKETS, seed=seed)
        case "median":
            return Median(grace_tokens)
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Halving:
    """Asynchronous successive halving: of those that reached a rung, the best third goes on.

    Source: Li et al. 2018, A System for Massively Parallel Hyperparameter Tuning, with the
    percentiles and brackets of ``ray.tune.schedulers.AsyncHyperBandScheduler``.
    """

    grace_tokens: float
    max_tokens: float
    n_brackets: int = 1
    seed: int = 0

    def ends(self, trial: int, curves: Curves, lost: Collection[int]) -> bool:
        bracket = self.bracket(trial)
        rungs = self._rungs(bracket)
        *before, now = curves[trial]
        rung = max((rung for rung in rungs if rung <= now), default=None)
        if rung is None or any(tokens >= rung for tokens in before):
            return False
        losses = [
            loss
            for other in curves
            if other != trial and self.bracket(other) == bracket
            for loss in _at(rung, rungs, curves[other], other in lost)
        ]
        if not losses:
            return False
        return _finite(curves[trial][now]) > float(np.percentile(losses, 100 / _KEEP_ONE_IN))

    def bracket(self, trial: int) -> int:
        """Return the bracket of a trial: brackets of more rungs are more likely."""
        if self.n_brackets == 1:
            return 0
        n_rungs = [len(self._rungs(bracket)) for bracket in range(self.n_brackets)]
        weights = np.exp(np.array(n_rungs) - max(n_rungs))
        random = np.random.default_rng([self.seed, trial])
        return int(random.choice(self.n_brackets, p=weights / weights.sum()))

    def _rungs(self, bracket: int) -> list[float]:
        """Return the rungs in tokens; each bracket leaves out one more of the lowest."""
        n_rungs = int(np.log(self.max_tokens / self.grace_tokens) / np.log(_KEEP_ONE_IN) + 1)
        return [self.grace_tokens * _KEEP_ONE_IN**k for k in range(bracket, n_rungs)]


def _at(rung: float, rungs: list[float], curve: Curve, lost: bool) -> Iterator[float]:
    """Yield the loss with which a trial reached a rung, if it did and was not above it at once.

    One that is lost ranks last at every rung, whatever it promised before.
    """
    if lost:
        yield WORST
        return
    above = min((other for other in rungs if other > rung), default=np.inf)
    reached = next((tokens for tokens in curve if tokens >= rung), None)
    if reached is not None and reached < above:
        yield _finite(curve[reached])


@dataclass(frozen=True, slots=True)
class Median:
    """A trial ends whose best loss is worse than the median of the others' running means.

    Source: Golovin et al. 2017, Google Vizier, as in ``ray.tune.schedulers.MedianStoppingRule``.
    """

    grace_tokens: float

    def ends(self, trial: int, curves: Curves, lost: Collection[int]) -> bool:
        now = max(curves[trial])
        if now < self.grace_tokens:
            return False
        others = (number for number in curves if number != trial)
        means = [
            mean for other in others for mean in self._mean(now, curves[other], other in lost)
        ]
        if len(means) < _MEDIAN_OF:
            return False
        return min(map(_finite, curves[trial].values())) > median(means)

    def _mean(self, now: float, curve: Curve, lost: bool) -> Iterator[float]:
        """Yield the mean loss up to now of a trial that got as far."""
        losses = [_finite(loss) for t, loss in curve.items() if self.grace_tokens <= t <= now]
        if lost:
            yield WORST
        elif max(curve, default=0) >= now and losses:
            yield fmean(losses)


def _finite(loss: float) -> float:
    return loss if np.isfinite(loss) else WORST


class Judge:
    """Keeps the curves of a sweep's trials, those of an earlier process as well; asks the rule
    called ``name``."""

    def __init__(self, name: str = "none", rule: Pruner | None = None) -> None:
        self.name = name
        self._rule = rule
        self._curves: dict[int, dict[float, float]] = {}
        self._lost: set[int] = set()

    def remember(self, trial: int, curve: Curve) -> None:
        """Take in what a trial reported before."""
        self._curves[trial] = dict(sorted(curve.items()))

    def rewind(self, trial: int, to_tokens: float) -> None:
        """Take back what a trial reported after ``to_tokens``."""
        curve = self._curves.get(trial, {})
        self._curves[trial] = {at: loss for at, loss in curve.items() if at <= to_tokens}

    def lose(self, trial: int) -> None:
        """Take in that a trial diverged, failed or ran out of memory for good."""
        self._curves.setdefault(trial, {})
        self._lost.add(trial)

    def ends(self, trial: int, tokens: float, loss_nats: float) -> bool:
        """Take in an evaluation; return whether the trial should end after it."""
        self.remember(trial, self._curves.get(trial, {}) | {tokens: loss_nats})
        return self._condemns(trial, tokens)

    def condemned_at(self, trial: int) -> float | None:
        """Return the tokens of the last evaluation of a trial if it should end after that."""
        last = max(self._curves.get(trial, ()), default=None)
        return last if last is not None and self._condemns(trial, last) else None

    def _condemns(self, trial: int, tokens: float) -> bool:
        if self._rule is None:
            return False
        so_far = {at: loss for at, loss in self._curves[trial].items() if at <= tokens}
        return self._rule.ends(trial, self._curves | {trial: so_far}, self._lost)
