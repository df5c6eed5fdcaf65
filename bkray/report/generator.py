"""Training length of a generator against what it keeps: variance, and accuracy downstream.

Lengths are compared with the longest, seed by seed, generators that differ in nothing else.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bkray.report.comparison import LOST
from bkray.report.generator_rows import LENGTH, GeneratorRow, generator_rows
from bkray.stability import COLLAPSED_NATS
from bkray.stats import Comparison, Interval, bootstrap_interval, compare

QUOTED: Mapping[int, tuple[float, float]] = {
    4: (0.15, 0.25),
    8: (0.30, 0.40),
    16: (0.50, 0.60),
    32: (0.70, 0.80),
    64: (0.85, 0.90),
}
"""Share of information that a training length is usually said to keep, whatever the data."""

MARGIN = 0.02
"""Accuracy: generators that differ by less are called a tie. It is two rows of a hundred."""

ACCURACY, VARIANCE = "downstream_accuracy", "explained_variance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The seeds of one generator at one training length.

    ``against_longest`` is ``None`` for the longest itself and where there is no classifier; in it
    "we" are the longest.
    """

    variant: str
    length: int
    rows: tuple[GeneratorRow, ...]
    against_longest: Comparison | None = None

    @property
    def ended(self) -> list[GeneratorRow]:
        """Trials that came to an end of their own, well or not."""
        return [row for row in self.rows if row.outcome == "ok" or row.outcome in LOST]

    @property
    def finished(self) -> list[GeneratorRow]:
        """Trials that took all their steps; numbers of others are of other steps."""
        return [row for row in self.rows if row.outcome == "ok"]

    @property
    def n_lost(self) -> int:
        return sum(row.outcome in LOST for row in self.rows)

    @property
    def n_collapsed(self) -> int:
        """Trials that finished with latents that say nothing, too late to be ended for it."""
        ends = [row.metrics.get("kl_nats", math.inf) for row in self.finished]
        return sum(kl_nats <= COLLAPSED_NATS for kl_nats in ends)

    def seen(self, name: str) -> Interval | None:
        """Return the mean over the seeds that finished; ``None`` where one has no number."""
        values = [row.metrics.get(name, math.nan) for row in self.finished]
        return bootstrap_interval(values) if values and all(map(math.isfinite, values)) else None

    def mean(self, name: str) -> float | None:
        seen = self.seen(name)
        return None if seen is None else seen.mean

    @property
    def quoted(self) -> str:
        """Whether the share usually quoted holds: the mean lies within it, or above or below."""
        seen, quoted = self.mean(VARIANCE), QUOTED.get(self.length)
        if seen is None or quoted is None:
            return "unknown"
        if seen < quoted[0]:
            return "too high"
        return "too low" if seen > quoted[1] else "holds"

    @property
    def verdict(self) -> str:
        """``longest``, ``loses``, ``no loss`` or ``undecided``; ``unknown`` without accuracies."""
        found = self.against_longest
        if found is None:
            return "unknown" if self.mean(ACCURACY) is None and not self.n_lost else "longest"
        if found.verdict == "undecided":
            return "undecided"
        return "loses" if found.we_win else "no loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The shortest training length that is as good downstream as the longest.

    ``undecided`` are shorter ones that further seeds may clear.
    """

    variant: str
    longest: int
    shortest: int
    undecided: tuple[int, ...]
    further_seeds: int
    """That would probably decide about all of these; 0 where there are none."""


def generator_lines(sweep_dir: Path) -> list[Line]:
    """Return a line per generator and training length, shortest first; none of other sweeps."""
    rows = list(generator_rows(sweep_dir))
    of_variant: dict[str, list[GeneratorRow]] = defaultdict(list)
    names = _told_apart(rows)
    for row in rows:
        of_variant[" ".join(f"{n.rpartition('.')[2]}={row.config.get(n)}" for n in names)].append(
            row
        )
    return [line for name, own in of_variant.items() for line in _lines(name, own)]


def answers(lines: Sequence[Line]) -> list[Answer]:
    """Return for each generator with several lengths the shortest one that loses nothing."""
    found = []
    for variant in dict.fromkeys(line.variant for line in lines):
        own = [line for line in lines if line.variant == variant]
        if len(own) < 2 or all(line.verdict == "unknown" for line in own):
            continue
        shortest = own[-1]
        for line in reversed(own[:-1]):
            if line.verdict == "loses":
                break
            shortest = line if line.verdict == "no loss" else shortest
        open_ = [one for one in own if one.verdict == "undecided" and one.length < shortest.length]
        found.append(
            Answer(
                variant=variant,
                longest=own[-1].length,
                shortest=shortest.length,
                undecided=tuple(one.length for one in open_),
                further_seeds=max((_further(one) for one in open_), default=0),
            )
        )
    return found


def plain(lines: Sequence[Line]) -> dict[str, Any]:
    """Return lines and answers as data for JSON."""
    names = dict.fromkeys(name for line in lines for row in line.rows for name in row.metrics)
    return {
        "lengths": [
            {
                "generator": line.variant,
                "training_sequence_length": line.length,
                "seeds": [row.seed for row in line.rows],
                "n_lost": line.n_lost,
                "n_collapsed": line.n_collapsed,
                "n_params": line.rows[0].n_params,
                "verdict": line.verdict,
                "further_seeds": _further(line),
                "quoted": QUOTED.get(line.length),
                "quoted_verdict": line.quoted,
                "metrics": {name: line.mean(name) for name in names},
            }
            for line in lines
        ],
        "shortest": [
            {name: getattr(one, name) for name in Answer.__dataclass_fields__}
            for one in answers(lines)
        ],
    }


def _lines(variant: str, rows: Sequence[GeneratorRow]) -> list[Line]:
    by_length: dict[int, list[GeneratorRow]] = defaultdict(list)
    for row in rows:
        by_length[int(row.config[LENGTH])].append(row)
    lines = [
        Line(variant=variant, length=length, rows=tuple(by_length[length]))
        for length in sorted(by_length)
    ]
    errors = [_errors(line) for line in lines]
    longest = errors[-1]
    pairs = {
        str(i): [(longest[seed], own[seed]) for seed in sorted(longest.keys() & own.keys())]
        for i, own in enumerate(errors[:-1])
    }
    known = {name: of for name, of in pairs.items() if of}
    verdicts = compare(known, margin=MARGIN) if known else {}
    return [replace(line, against_longest=verdicts.get(str(i))) for i, line in enumerate(lines)]


def _errors(line: Line) -> dict[int, float]:
    """Return by seed the share of rows in a wrong class, infinite for a trial that was lost;
    nothing where no classifier was asked."""
    if not any(ACCURACY in row.metrics for row in line.rows) and not line.n_lost:
        return {}
    return {
        row.seed: 1 - row.metrics[ACCURACY] if ACCURACY in row.metrics else math.inf
        for row in line.ended
    }


def _told_apart(rows: Sequence[GeneratorRow]) -> list[str]:
    """Return the knobs beside length and seed in which generators differ."""
    names = dict.fromkeys(name for row in rows for name in row.config)
    left_out = (LENGTH, "seed", "arm")
    return [
        name
        for name in names
        if name not in left_out and len({json.dumps(row.config.get(name)) for row in rows}) > 1
    ]


def _further(line: Line) -> int:
    return line.against_longest.further_seeds if line.against_longest else 0
