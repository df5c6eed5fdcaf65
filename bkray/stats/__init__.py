"""How sure a mean or a difference is. Numbers in, numbers out."""

from bkray.stats.paired import Comparison, Pairs, compare
from bkray.stats.resampling import (
    Interval,
    bootstrap_interval,
    holm,
    holm_adjusted,
    least_pairs,
    sign_flip_p,
)

__all__ = (
    "Comparison",
    "Interval",
    "Pairs",
    "bootstrap_interval",
    "compare",
    "holm",
    "holm_adjusted",
    "least_pairs",
    "sign_flip_p",
)
