"""Train length against evaluation length: what each strategy costs, and how safe it is.

A cell is judged by what it loses against ``retrain``, a model trained at the evaluation length on
as many tokens, with the same seed, on the same text. Its perplexity is also held against that of
its own windows of the train length, and the better of the two counts: else a badly trained model
would make everything safe. A cell that is its own windows (``is_reference``) is held against
retraining alone, and only where it loses: nothing can be told of it against itself.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bkray.report.cell_rows import NOT_APPLICABLE, RETRAIN, CellRow, cell_rows, is_mismatch, key
from bkray.report.comparison import LOST
from bkray.stats import Interval, bootstrap_interval, sign_flip_p

SAFE_LOSS, RISKY_LOSS = 0.02, 0.10
"""Share of perplexity that a cell may lose and be safe, and above which it is risky. Equal
trainings whose sums were rounded in another order part by about half of the first; the second is
about what the second of four layers is worth (docs/log.md)."""

SAFE_RECALL, RISKY_RECALL = 0.05, 0.20
"""The same for the share that is no longer found first of the items that ``retrain`` finds: the
shares of cut texts up to which ``bkray lengths`` calls truncation fine, and above which it says to
train longer."""

LEAST_RECALL, LEAST_CHANCES = 0.10, 3.0
"""Recall of ``retrain``, and as a multiple of that by chance, below which its probe tells nothing:
there is next to nothing left to lose."""

SAFE_SHIFT = 0.06
"""Energy coefficient of the states up to which their shift is safe: what a displacement by half of
their own spread comes to, in one channel as in many. A larger one is moderate and never risky by
itself: what it costs shows in the other two."""

ALPHA = 0.05
"""Most that a verdict is called decided where it is at its border."""

GRADES = ("safe", "moderate", "risky")
UNKNOWN = "unknown"
LIMITS: Mapping[str, tuple[float, float]] = {
    "perplexity": (SAFE_LOSS, RISKY_LOSS),
    "retrieval": (SAFE_RECALL, RISKY_RECALL),
    "states": (SAFE_SHIFT, math.inf),
}
"""Of each criterion up to where it is safe, and from where on risky."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """What a cell is judged by: share of perplexity lost, share of items lost, or shift.

    ``values`` are those of the seeds that can be compared, ``grade`` goes by their mean and is
    ``unknown`` where they are not all; ``low`` and ``high`` are the bootstrap's 95%, for display.
    """

    name: str
    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    grade: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The seeds of one model at one pair of lengths, read by one strategy.

    ``verdict`` is the gravest grade of its criteria; ``risky`` where a seed diverged, ran out of
    memory or failed, ``reference`` for ``retrain``, ``not applicable``, or ``unknown`` where one
    that is not risky lacks seeds to compare. It is ``decided`` where the sign-flip test over
    seeds rules the other grades out at 5%, and else as it stands.
    """

    rows: tuple[CellRow, ...]
    criteria: tuple[Criterion, ...]
    verdict: str
    decided: bool

    @property
    def n_lost(self) -> int:
        """Seeds that diverged, ran out of memory or failed."""
        return sum(row.outcome in LOST for row in self.rows)

    @property
    def n_pairs(self) -> int:
        """Seeds that every criterion could compare."""
        return min((len(one.values) for one in self.criteria), default=0)

    @property
    def is_reference(self) -> bool:
        return any("is_reference" in row.metrics for row in self.rows)

    def seen(self, name: str) -> Interval | None:
        """Return the mean over the seeds and its interval; ``None`` where one has no number."""
        values = [row.metrics.get(name, math.nan) for row in self.rows]
        return bootstrap_interval(values) if values and all(map(math.isfinite, values)) else None

    def mean(self, name: str) -> float | None:
        seen = self.seen(name)
        return None if seen is None else seen.mean

    def criterion(self, name: str) -> Criterion | None:
        return next((one for one in self.criteria if one.name == name), None)


def mismatch(sweep_dir: Path) -> list[Cell]:
    """Return the cells of a mismatch sweep; none where it is another one, or varies more."""
    rows = cell_rows(sweep_dir)
    return cells(rows) if is_mismatch(rows) else []


def cells(rows: Sequence[CellRow]) -> list[Cell]:
    """Return the rows over their seeds, judged, in the order of their first rows."""
    groups: dict[Any, list[CellRow]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    order = {model: i for i, model in enumerate(dict.fromkeys(row.model for row in rows))}
    found = sorted(groups, key=lambda k: (order[k[0]], k[2], k[3] != RETRAIN, k[1]))
    again = {(r.model, r.n_eval, r.seed): r for r in rows if r.strategy == RETRAIN}
    return [judged(groups[k], again) for k in found]


def judged(rows: Sequence[CellRow], again: Mapping[Any, CellRow]) -> Cell:
    """Return the cell of these seeds.

    Args:
        again: rows of ``retrain`` by model, evaluation length and seed.
    """
    idle = all(row.outcome == NOT_APPLICABLE for row in rows)
    criteria = [] if idle or rows[0].strategy == RETRAIN else _criteria(rows, again)
    fell = any(row.outcome in LOST for row in rows)
    if idle:
        verdict = NOT_APPLICABLE
    elif fell:
        verdict = "risky"
    elif rows[0].strategy == RETRAIN:
        verdict = "reference"
    else:
        grades = {one.grade for one in criteria}
        gravest = next((grade for grade in reversed(GRADES) if grade in grades), UNKNOWN)
        verdict = UNKNOWN if UNKNOWN in grades and gravest != GRADES[-1] else gravest
    decided = verdict in GRADES and not fell and is_decided(verdict, criteria)
    return Cell(rows=tuple(rows), criteria=tuple(criteria), verdict=verdict, decided=decided)


def is_decided(verdict: str, criteria: Sequence[Criterion]) -> bool:
    """Say whether the seeds rule out every other verdict, each way by a one-sided test at 5%.

    That it is no less grave takes one criterion above the border, at a level that is shared among
    them; that it is no graver takes all of them below theirs.
    """
    place = GRADES.index(verdict)
    criteria = [one for one in criteria if one.grade != UNKNOWN]
    above = [_p_above(one, LIMITS[one.name][place - 1]) for one in criteria] if place else [0.0]
    graver = place < len(GRADES) - 1
    below = [_p_below(one, LIMITS[one.name][place]) for one in criteria] if graver else [0.0]
    return min(above) * len(above) <= ALPHA and max(below) <= ALPHA


def seeds_needed(n_criteria: int = len(LIMITS)) -> int:
    """Return from how many seeds on a verdict can be decided that takes one of ``n_criteria``;
    that all are below their borders takes as many as for one."""
    return math.ceil(math.log2(n_criteria / ALPHA))


def plain(found: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the cells as data for JSON."""
    return [
        {
            **dict(zip(("model", "n_train", "n_eval", "strategy"), key(one.rows[0]), strict=True)),
            "verdict": one.verdict,
            "decided": one.decided,
            "criteria": [asdict(criterion) for criterion in one.criteria],
            "seeds": [row.seed for row in one.rows],
            "n_lost": one.n_lost,
            "n_pairs": one.n_pairs,
            "is_reference": one.is_reference,
            "metrics": {name: one.mean(name) for name in one.rows[0].metrics},
        }
        for one in found
    ]


def verdicts(found: Sequence[Cell]) -> dict[Any, str]:
    """Return the verdict of each cell by what its seeds have in common."""
    return {key(one.rows[0]): one.verdict for one in found}


def _criteria(rows: Sequence[CellRow], again: Mapping[Any, CellRow]) -> list[Criterion]:
    told: dict[str, list[float]] = {name: [] for name in LIMITS}
    for row in rows:
        if row.outcome != "ok":
            continue
        if "shift_energy" in row.metrics:
            told["states"].append(row.metrics["shift_energy"])
        best = again.get((row.model, row.n_eval, row.seed))
        if best is None or best.outcome != "ok":
            continue
        rival = min(
            best.metrics["late_loss_nats"], row.metrics.get("own_late_loss_nats", math.inf)
        )
        nats = row.metrics["late_loss_nats"] - rival
        told["perplexity"].append(math.expm1(min(nats, 700.0)))
        found = best.metrics["recall_long"]
        if found >= max(LEAST_RECALL, LEAST_CHANCES / row.metrics["items"]):
            told["retrieval"].append(1 - row.metrics["recall_long"] / found)
    if any("is_reference" in row.metrics for row in rows):
        del told["states"]
        if told["perplexity"] and fmean(told["perplexity"]) <= 0:
            del told["perplexity"]
    return [_criterion(name, told[name], len(rows)) for name in told]


def _criterion(name: str, values: Sequence[float], n_seeds: int) -> Criterion:
    mean, (safe, risky) = fmean(values) if values else math.nan, LIMITS[name]
    finite = bool(values) and all(map(math.isfinite, values))
    seen = bootstrap_interval(values) if finite else Interval(mean, None, None, len(values))
    place = 0 if mean <= safe else 1 if mean <= risky else 2  # what is no number is grave
    return Criterion(
        name=name,
        values=tuple(values),
        mean=mean,
        low=seen.low,
        high=seen.high,
        grade=UNKNOWN if len(values) < n_seeds else GRADES[place],
    )


def _p_above(one: Criterion, border: float) -> float:
    over = [value - border for value in one.values]
    if not all(map(math.isfinite, over)) or fmean(over) <= 0:
        return 1.0
    return sign_flip_p(over) / 2


def _p_below(one: Criterion, border: float) -> float:
    if border == math.inf and all(map(math.isfinite, one.values)):
        return 0.0
    under = [border - value for value in one.values]
    if not all(map(math.isfinite, under)) or fmean(under) <= 0:
        return 1.0
    return sign_flip_p(under) / 2
