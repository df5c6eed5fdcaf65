"""Whether losses are greater without the past: decided over windows, however few they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bkray.stats import Interval, bootstrap_interval, holm, sign_flip_p

ALPHA = 0.05
"""Most that a model without any benefit is said to have one."""

ROUNDING_NATS = 1e-5
"""Differences below this are those of float32 in another order."""


@dataclass(frozen=True, slots=True)
class Worth:
    """How much greater a loss is without the true tokens, in nats per token, over windows."""

    shown: Interval
    """Bootstrap interval of the mean at 95%, for itself: for display, it decides nothing."""
    p: float
    """Of the one-sided sign-flip test that the mean is not above 0; 1 where it is not."""
    is_benefit: bool
    """Whether it is above 0, by ``p`` after Holm over all that was asked of these windows."""


def worths(differences: Sequence[Sequence[float]]) -> list[Worth]:
    """Decide for a family of differences over the same windows which means are above 0.

    Where no difference favours a sign, any of them is called a benefit in at most ``ALPHA`` of
    all cases, however few the windows are.
    """
    ps = [benefit_p(one) for one in differences]
    return [
        Worth(bootstrap_interval(one), p, is_benefit)
        for one, p, is_benefit in zip(differences, ps, holm(ps, ALPHA), strict=True)
    ]


def benefit_p(differences: Sequence[float]) -> float:
    """Return the p-value of the one-sided sign-flip test, 1 for a mean that is not above 0."""
    if fmean(differences) <= ROUNDING_NATS:
        return 1.0
    return sign_flip_p(differences) / 2  # its tails are equal: the upper one


def windows_needed(n_differences: int) -> int:
    """Return how many windows the least p-value takes that tells one of a family from nothing."""
    return math.ceil(math.log2(n_differences / ALPHA))
