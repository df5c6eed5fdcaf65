"""How sure a mean is. Numbers in, numbers out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from bkray.errors import ConfigError

_ENUMERATED = 5
"""Up to so many values every resample is looked at: 5**5 = 3,125."""
_DRAWS = 5_000
"""Resamples drawn of more values; each is used a second time mirrored."""
_FLIPPED = 16
"""Up to so many differences every choice of signs is looked at: 2**16 = 65,536."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of ``n`` values and between what it may lie; one value has no interval."""

    mean: float
    low: float | None
    high: float | None
    n: int


def bootstrap_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean and its percentile bootstrap interval.

    The means of all ``n**n`` resamples for n <= 5, of 10,000 drawn ones above, lose the share
    ``(1 - level) / 2`` at each end; what is left reaches from ``low`` to ``high``. The order of
    the values does not matter, equal values give equal intervals, and ``a x + b`` moves mean and
    interval as it moves the values, also for negative ``a``.

    Few values make it too narrow: at level 0.95 two or three of them give their range, which
    covers the centre of a symmetric distribution with probability ``1 - 2**(1 - n)``, 50% and 75%.

    Args:
        values: finite, at least one.
        level: between 0 and 1, both excluded.

    Returns:
        ``min(values) <= low <= high <= max(values)``, up to rounding; ``low`` and ``high`` are
        ``None`` for one value.

    Raises:
        ConfigError: no value, one that is not finite, or a level out of range.

    Source: Efron 1979, Ann. Statist. 7(1), 1-26; all resamples of small samples: Fisher and Hall
    1991, J. Statist. Plann. Inference 27(2), 157-169.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, got {level}")
    if not values or not all(map(math.isfinite, values)):
        raise ConfigError(f"a mean needs at least one value, all finite, got {list(values)}")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, n)
    means = np.sort(np.sort(np.asarray(values, dtype=np.float64))[_resamples(n)].mean(axis=1))
    n_cut = int((1 - level) / 2 * len(means))
    return Interval(mean, float(means[n_cut]), float(means[-1 - n_cut]), n)


def sign_flip_p(differences: Sequence[float], *, one_sided: bool = False) -> float:
    """Return the p-value of the sign-flip permutation test that the mean is 0.

    It is the share of choices of signs under which the mean of the differences is at least as far
    from 0 as it is, or with ``one_sided`` at least as great: exact for n <= 16, of 65,536 drawn
    choices above. The least that n differences can say is ``2 / 2**n``, one-sided half of it:
    fewer than 6 never come below 0.05.

    Args:
        differences: of pairs, finite, at least one.

    Raises:
        ConfigError: no difference, or one that is not finite.

    Source: Fisher 1935, The Design of Experiments, section 21.
    """
    if not differences or not all(map(math.isfinite, differences)):
        raise ConfigError(f"a test needs at least one difference, all finite, got {differences}")
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    parts = np.array_split(_signs(n), 16)  # as floats they are eight times as large
    sums, seen = np.concatenate([part @ values for part in parts]), values.sum()
    if not one_sided:
        sums, seen = np.abs(sums), abs(seen)
    rounding = 1e-12 * float(np.abs(values).sum())
    return float((sums >= seen - rounding).mean())


def least_pairs(n_tests: int, alpha: float) -> int:
    """Return from how many pairs on a two-sided sign-flip test, one of so many after Holm, can
    come out below the level at all."""
    return math.ceil(math.log2(2 * n_tests / alpha))


def holm(ps: Sequence[float], alpha: float) -> list[bool]:
    """Return which p-values of a family are below the level, the least against the strictest one.

    The probability of any false one among them is at most ``alpha``.

    Source: Holm 1979, Scand. J. Statist. 6(2), 65-70.
    """
    return [p <= alpha for p in holm_adjusted(ps)]


def holm_adjusted(ps: Sequence[float]) -> list[float]:
    """Return for each p-value of a family the least level at which ``holm`` lets it through."""
    adjusted, so_far = [1.0] * len(ps), 0.0
    for turn, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        so_far = max(so_far, min(1.0, ps[place] * (len(ps) - turn)))
        adjusted[place] = so_far
    return adjusted


@lru_cache(maxsize=1)  # tests come in families over equally many differences
def _signs(n: int) -> NDArray[np.int8]:
    """Return choices of signs, (C, n) of -1 and 1: all of them, or as many drawn."""
    if n <= _FLIPPED:
        bits = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(np.int8)
    else:
        bits = np.random.default_rng(0).integers(2, size=(2**_FLIPPED, n), dtype=np.int8)
        bits[0] = 1  # what was seen is one of them
    return 2 * bits - 1


@cache
def _resamples(n: int) -> NDArray[np.int64]:
    """Return indices of values, (R, n): a row for each resample, the same at every call."""
    if n <= _ENUMERATED:
        return np.indices((n,) * n).reshape(n, -1).T
    drawn = np.random.default_rng(0).integers(n, size=(_DRAWS, n))
    return np.concatenate([drawn, n - 1 - drawn])  # mirrored: -x has the interval of x, mirrored
