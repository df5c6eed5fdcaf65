"""Do speedups multiply? Pairs of features beside the product of what each does alone.

An arm ``a+b`` is a pair where ``a`` and ``b`` are arms as well; ``none`` has no feature on. All is
paired by seed, and what did not end as ``ok`` is missing. Pure functions of rows.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bkray.report.ranking import brief, label
from bkray.report.tables import NOTHING_ON, Row

TOLERANCE = 0.05
"""A product holds up to this share below it."""

BySeed = Mapping[str, Mapping[int, float]]
"""Arm to seed to number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A pair, over the ``n`` seeds in which it and both its parts have a measured speedup.

    ``first``, ``second`` and ``together`` are mean speedups, ``product`` is the mean of first by
    second. ``ratio`` is the mean of together over product, ``lowest`` and ``highest`` its seeds';
    all are ``None`` for ``n=0``. ``loss_over_none`` is how many nats per token the pair loses
    against ``none``, over the seeds in which both have a loss. ``verdict`` is ``holds``,
    ``does not hold``, or ``unknown`` for ``n=0``.
    """

    pair: str
    first: float | None
    second: float | None
    product: float | None
    together: float | None
    ratio: float | None
    lowest: float | None
    highest: float | None
    n: int
    loss_over_none: float | None
    verdict: str


def products(rows: Sequence[Row]) -> list[Product]:
    """Return one product for each pair, in the order in which they were proposed."""
    speeds = _by_seed(rows, "speedup_measured")
    losses = _by_seed(rows, "final_val_loss_nats")
    return [_product(pair, speeds, losses) for pair in _pairs(rows)]


def missing(rows: Sequence[Row]) -> list[str]:
    """Return which trials of the pairs, their parts and ``none`` ended without a speedup or a
    loss, and how: ``act seed=1 (diverged)``."""
    pairs = _pairs(rows)
    named = {NOTHING_ON, *pairs, *(part for pair in pairs for part in pair.split("+"))}
    ended = (row for row in rows if row["outcome"] != "interrupted" or row["stop_reason"])
    lost = (row for row in ended if pairs and row["arm"] in named)
    return [f"{label(row)} ({said})" for row in lost if (said := _what_is_missing(row))]


def columns(found: Iterable[Product]) -> dict[str, list[Any]]:
    """Return the table as a reader sees it: heading to values, one per pair."""
    known = list(found)
    return {
        "pair": [one.pair for one in known],
        "first alone": [one.first for one in known],
        "second alone": [one.second for one in known],
        "product": [one.product for one in known],
        "together": [one.together for one in known],
        "together/product": [one.ratio for one in known],
        "lowest": [one.lowest for one in known],
        "highest": [one.highest for one in known],
        "seeds": [one.n for one in known],
        "loss over none (nats)": [one.loss_over_none for one in known],
        "the product": [one.verdict for one in known],
    }


def said(rows: Sequence[Row]) -> str:
    """Return what to know beside the table; empty without a pair."""
    found = products(rows)
    if not found:
        return ""
    n_holding = sum(one.verdict == "holds" for one in found)
    words = (
        f"A pair is as fast as the product of its parts, within {TOLERANCE:.0%} or faster, in "
        f"{n_holding} of {len(found)}. Means are over the seeds in which all three ended as ok."
    )
    if equal := sorted(_by_seed(rows, "speedup_measured").get(NOTHING_ON, {}).values()):
        words += (
            f" How far the clock can be trusted: {NOTHING_ON}, timed against its equal, measured "
            f"{brief(equal[0])} to {brief(equal[-1])} in place of 1."
        )
    lost = missing(rows)
    return f"{words} Missing: {', '.join(lost)}." if lost else words


def _pairs(rows: Iterable[Row]) -> list[str]:
    arms = dict.fromkeys(row["arm"] for row in rows if row["arm"])
    split = {arm: arm.split("+") for arm in arms}
    return [arm for arm, parts in split.items() if len(parts) == 2 and arms.keys() >= set(parts)]


def _by_seed(rows: Iterable[Row], column: str) -> BySeed:
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row["arm"] and (number := _number(row, column)) is not None:
            found[row["arm"]][row["seed"]] = number
    return found


def _number(row: Row, column: str) -> float | None:
    value = row[column] if row["outcome"] == "ok" else None
    return float(value) if value is not None and math.isfinite(value) else None


def _what_is_missing(row: Row) -> str:
    if row["outcome"] != "ok":
        return str(row["outcome"])
    wanted = ("speedup_measured", "final_val_loss_nats")
    lacking = [column for column in wanted if _number(row, column) is None]
    return f"without {' and '.join(lacking)}" if lacking else ""


def _product(pair: str, speeds: BySeed, losses: BySeed) -> Product:
    parts = pair.split("+")
    first_of, second_of, together_of = (speeds.get(arm, {}) for arm in (*parts, pair))
    seeds = sorted(first_of.keys() & second_of.keys() & together_of.keys())
    alone = {seed: first_of[seed] * second_of[seed] for seed in seeds}
    ratios = [together_of[seed] / alone[seed] for seed in seeds]
    ours, theirs = losses.get(pair, {}), losses.get(NOTHING_ON, {})
    ratio = _mean(ratios)
    return Product(
        pair=pair,
        first=_mean([first_of[seed] for seed in seeds]),
        second=_mean([second_of[seed] for seed in seeds]),
        product=_mean(list(alone.values())),
        together=_mean([together_of[seed] for seed in seeds]),
        ratio=ratio,
        lowest=min(ratios, default=None),
        highest=max(ratios, default=None),
        n=len(seeds),
        loss_over_none=_mean([ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]),
        verdict=_verdict(ratio),
    )


def _verdict(ratio: float | None) -> str:
    if ratio is None:
        return "unknown"
    return "holds" if ratio >= 1 - TOLERANCE else "does not hold"


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
