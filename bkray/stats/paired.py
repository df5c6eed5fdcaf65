"""Who is better over seeds, or as good, or how many more seeds would tell. Less is better."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import NormalDist, fmean, stdev
from typing import Literal

from bkray.errors import ConfigError
from bkray.stats.resampling import (
    Interval,
    bootstrap_interval,
    holm_adjusted,
    least_pairs,
    sign_flip_p,
)

ALPHA = 0.05
"""Probability of any false winner in a family of comparisons, and of any false tie."""
POWER = 0.8
"""Probability with which the further seeds that are asked for decide, if the seen mean were the
true one."""
MOST_FURTHER = 100
"""Further seeds that are asked for at most; who needs more will hardly run them."""

Pairs = Sequence[tuple[float, float]]
"""Our loss and theirs, a pair for each seed; infinite where a trial came to none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What ``n`` pairs say of us against a rival.

    ``difference`` is their mean loss less ours, above 0 where we are better, with its bootstrap
    interval, which is for display; ``None`` where a loss is infinite. ``p`` is of the two-sided
    sign-flip test, ``p_holm`` the same after Holm; ``p_tie`` is, after Holm, of the claim that the
    means differ by less than the margin. ``we_win`` says who the winner is, where there is one.
    ``further_seeds`` would probably decide by themselves; 0 where it is decided, and at most
    ``MOST_FURTHER``. They want a fresh test of them alone: who adds them to seeds that were tested
    and tests again until there is a winner has false ones more often than at ``ALPHA``. Pairs too
    few for any winner were not tested yet, and are only added to.
    """

    n: int
    difference: Interval | None
    p: float
    p_holm: float
    p_tie: float
    verdict: Literal["winner", "tie", "undecided"]
    we_win: bool | None
    further_seeds: int


def compare(rivals: Mapping[str, Pairs], *, margin: float) -> dict[str, Comparison]:
    """Return what the seeds say of us against each rival; all rivals are one family for Holm.

    There is a winner where the sign-flip test says so. A tie takes evidence of its own: two
    one-sided sign-flip tests that the means differ by less than ``margin`` either way. All else
    is undecided, and so is everything where the pairs are too few for any winner.

    An infinite loss is worse than every finite one, by more than all finite differences together,
    so the test is the limit of penalties that grow; two infinite ones are equal. Neither is
    evidence for a tie.

    Args:
        margin: difference that does not matter, in the unit of the losses; above 0.

    Raises:
        ConfigError: a loss is NaN, or the margin is not above 0.

    Source: Fisher 1935; Holm 1979; two one-sided tests: Schuirmann 1987, J. Pharmacokin. Biopharm.
    15(6), 657-680.
    """
    if not margin > 0:
        raise ConfigError(f"the margin of a tie must be above 0, got {margin}")
    differences = [_differences(name, pairs) for name, pairs in rivals.items()]
    whole = [all(map(math.isfinite, chain.from_iterable(pairs))) for pairs in rivals.values()]
    margins = [margin if finite else None for finite in whole]
    ps = [sign_flip_p(values) if values else 1.0 for values in differences]
    p_ties = list(map(_p_tie, differences, margins))
    tests = zip(differences, margins, ps, holm_adjusted(ps), holm_adjusted(p_ties), strict=True)
    found = [_comparison(*test, level=ALPHA / len(rivals)) for test in tests]
    return dict(zip(rivals, found, strict=True))


def _comparison(
    values: Sequence[float],
    margin: float | None,
    p: float,
    p_holm: float,
    p_tie: float,
    *,
    level: float,
) -> Comparison:
    """Return the verdict; no ``margin`` says that a loss was infinite. The ``level`` is alpha by
    the number of rivals, at which the strictest of them is tested."""
    n, least = len(values), least_pairs(1, level)
    verdict: Literal["winner", "tie", "undecided"] = "undecided"
    if n >= least and min(p_holm, p_tie) <= ALPHA:
        verdict = "winner" if p_holm <= ALPHA else "tie"
    undecided = verdict == "undecided"
    return Comparison(
        n=n,
        difference=bootstrap_interval(values) if values and margin is not None else None,
        p=p,
        p_holm=p_holm,
        p_tie=p_tie,
        verdict=verdict,
        we_win=sum(values) > 0 if verdict == "winner" else None,
        further_seeds=_further(values, margin, least, level) if undecided else 0,
    )


def _differences(name: str, pairs: Pairs) -> list[float]:
    """Return theirs less ours, with a penalty above twice the sum of the finite differences in
    place of an infinite one: whatever the signs, the count of penalties then decides first."""
    if any(map(math.isnan, chain.from_iterable(pairs))):
        raise ConfigError(f"a loss against {name} is NaN: give infinity for a trial without one")
    raw = [0.0 if ours == theirs else theirs - ours for ours, theirs in pairs]
    penalty = 4 * math.fsum(abs(one) for one in raw if math.isfinite(one)) or 1.0
    return [one if math.isfinite(one) else math.copysign(penalty, one) for one in raw]


def _p_tie(differences: Sequence[float], margin: float | None) -> float:
    """Return the p-value of the claim that the mean lies between ``-margin`` and ``margin``."""
    if not differences or margin is None:
        return 1.0
    return max(
        sign_flip_p([margin + one for one in differences], one_sided=True),
        sign_flip_p([margin - one for one in differences], one_sided=True),
    )


def _further(values: Sequence[float], margin: float | None, least: int, level: float) -> int:
    """Return how many further pairs would decide with probability ``POWER``, were mean and spread
    as seen, by the normal approximation; of signs alone where penalties have no spread. They stand
    alone where the pairs were enough for a test, which is spent."""
    n, total = len(values), least
    if n > 1:
        seen = values if margin is not None else [math.copysign(one != 0, one) for one in values]
        mean, spread = abs(fmean(seen)), stdev(seen)
        reach = NormalDist().inv_cdf(POWER) + NormalDist().inv_cdf(1 - level / 2)
        gaps = [gap for gap in (mean, (margin or 0.0) - mean) if gap > 0]
        needed = min(((reach * spread / gap) ** 2 for gap in gaps), default=math.inf)
        total = max(least, math.ceil(min(needed, n + MOST_FURTHER)))
    return min(total if n >= least else total - n, MOST_FURTHER)
