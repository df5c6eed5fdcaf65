"""Rules that stop a trace: the judge, and what else one could write in a few lines."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.zoo.traces import WINDOW, Trace
from bkray.stability import SPIKE_RATIO, Health, judge


class Stop(NamedTuple):
    """The step a trace is stopped for, and the end of its window, where that is said."""

    step: int
    said_at: int


Rule = Callable[[Trace], Stop | None]

SIGMAS, SIGMA_STEPS, FEWEST = 6.0, 100, 16
"""Of the 6-sigma rule: a loss above mean + 6 deviations of the last 100, of 16 at least."""


def ours(trace: Trace) -> Stop | None:
    """Stop where the judge says diverged."""
    health = Health()
    for window in trace.windows():
        health, verdict, _ = judge(health, window, unigram_nats=trace.unigram_nats)
        if verdict.state == "diverged":
            return Stop(verdict.step, window.step)
    return None


def first_doubled(losses: Sequence[float]) -> int | None:
    """Return the first step whose loss is more than twice the one before."""
    for step in range(1, len(losses)):
        if losses[step] > SPIKE_RATIO * losses[step - 1]:
            return step + 1
    return None


def first_six_sigma(losses: Sequence[float]) -> int | None:
    """Return the first step whose loss is far above the mean of those before."""
    for step in range(FEWEST, len(losses)):
        past = losses[max(0, step - SIGMA_STEPS) : step]
        if not math.isfinite(past[-1]):
            return None  # mean and deviation are NaN from here on, and nothing is above NaN
        if losses[step] > np.mean(past) + SIGMAS * np.std(past):
            return step + 1
    return None


def first_nonfinite(trace: Trace) -> int | None:
    """Return the first step whose loss or gradient norm is not finite."""
    for step, pair in enumerate(zip(trace.losses, trace.norms, strict=True), start=1):
        if not all(map(math.isfinite, pair)):
            return step
    return None


def rival(first: Callable[[Sequence[float]], int | None], *, finite: bool) -> Rule:
    """Return the rule, spoken at the window's end; ``finite`` lets it look for NaN and inf too."""

    def rule(trace: Trace) -> Stop | None:
        steps = [first(trace.losses), first_nonfinite(trace) if finite else None]
        said = min((step for step in steps if step is not None), default=None)
        if said is None:
            return None
        return Stop(said, min(math.ceil(said / WINDOW) * WINDOW, len(trace.losses)))

    return rule


RULES: dict[str, Rule] = {
    "judge": ours,
    "2x": rival(first_doubled, finite=False),
    "2x, or not finite": rival(first_doubled, finite=True),
    "6 sigma": rival(first_six_sigma, finite=False),
    "6 sigma, or not finite": rival(first_six_sigma, finite=True),
}
