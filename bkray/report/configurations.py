"""Configurations: the trials of a sweep that differ in their seed alone, taken as one.

Pure functions of rows. A configuration has a row of its own, with means over its seeds, no seed
and the outcome of the whole: what ranks trials ranks configurations as well.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from bkray.columns import RESULTS
from bkray.events import outcome_over_seeds
from bkray.report import ranking
from bkray.report.tables import Row
from bkray.stats import Interval, bootstrap_interval
from bkray.sweep import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """``label`` is ``ranking.label`` without the seed, ``kind`` is ``ranking.kind``.

    ``rows`` are its trials by seed; ``n`` of them ended, interrupted ones not counted, and
    ``n_diverged`` diverged. ``outcome`` is ``events.outcome_over_seeds``: one diverged seed makes
    the configuration ``diverged``.
    """

    label: str
    arm: str
    kind: str
    rows: tuple[Row, ...]
    outcome: str
    n: int
    n_diverged: int

    def mean(self, column: str) -> Interval | None:
        """Return mean and 95% bootstrap interval over the seeds.

        ``None`` when a seed is missing, is not ``ok`` or has no finite number there: a mean over
        the seeds that went well would flatter the configuration.
        """
        numbers = self._numbers(column)
        return bootstrap_interval(numbers) if numbers else None

    @property
    def row(self) -> Row:
        """What its trials share, the means of their numbers, and the outcome of the whole."""
        numbers = {column: self._numbers(column) for column in RESULTS}
        reasons = [r["stop_reason"] for r in self.rows if r["outcome"] == self.outcome]
        return {
            **self.rows[0],
            **{column: fmean(found) if found else None for column, found in numbers.items()},
            "seed": None,
            "outcome": self.outcome,
            "stop_reason": reasons[0] if reasons else None,
        }

    def _numbers(self, column: str) -> list[float]:
        """Return one number per trial, or none at all."""
        values = [row[column] for row in self.rows if row["outcome"] == "ok"]
        finite = [float(value) for value in values if value is not None and math.isfinite(value)]
        whole = len(finite) == len(self.rows) and self.outcome == "ok"
        return finite if whole else []


def configurations(rows: Iterable[Row], objectives: Sequence[Objective]) -> list[Configuration]:
    """Return the configurations, best first as ``ranking.leaderboard`` has it.

    Trials of one configuration agree in arm and swept knobs and differ in their seed; the second
    trial of a seed begins a further configuration, which differs in what was not swept. One that
    lacks seeds of another with which it shares one is ``interrupted``: fewer are easier to win by.
    """
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    n_seen: Counter[tuple[object, ...]] = Counter()
    for row in rows:
        same = (row["arm"], *(v for name, v in row.items() if name.startswith("param/")))
        turn = (row["seed"], *same)
        groups[(n_seen[turn], *same)].append(row)
        n_seen[turn] += 1
    found = [_configuration(one, _n_planned(one, groups.values())) for one in groups.values()]
    ranked = ranking.leaderboard([one.row for one in found], objectives)
    return _of_rows(ranked, found)


def front(found: Iterable[Configuration], objectives: Sequence[Objective]) -> list[Configuration]:
    """Return the configurations whose means no other one's beat, as ``ranking.pareto_front``."""
    known = list(found)
    return _of_rows(ranking.pareto_front([one.row for one in known], objectives), known)


def plain(found: Iterable[Configuration], objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """Return the configurations as data for JSON; ``means`` holds the columns that have one."""
    known = list(found)
    best = {one.rows[0]["trial_id"] for one in front(known, objectives)}
    return [
        {
            "label": one.label,
            "arm": one.arm,
            "kind": one.kind,
            "outcome": one.outcome,
            "stop_reason": one.row["stop_reason"],
            "n": one.n,
            "n_diverged": one.n_diverged,
            "on_front": one.rows[0]["trial_id"] in best,
            "seeds": [row["seed"] for row in one.rows],
            "trial_ids": [row["trial_id"] for row in one.rows],
            "means": {name: asdict(seen) for name in RESULTS if (seen := one.mean(name))},
        }
        for one in known
    ]


def front_trials(found: Iterable[Configuration], objectives: Sequence[Objective]) -> list[str]:
    """Return the ids of the trials on the front: with several seeds, those of each configuration
    whose means are on it."""
    return [row["trial_id"] for one in front(found, objectives) for row in one.rows]


def _n_planned(group: Sequence[Row], groups: Iterable[Sequence[Row]]) -> int:
    """Return the most trials of a configuration with a seed in common."""
    seeds = {row["seed"] for row in group}
    return max(len(one) for one in groups if not seeds.isdisjoint(row["seed"] for row in one))


def _configuration(group: Sequence[Row], seeds: int) -> Configuration:
    rows = sorted(group, key=lambda row: row["seed"])
    outcomes = [row["outcome"] for row in rows]
    missing = ["interrupted"] * (seeds - len(rows))
    kinds = [ranking.kind(row) for row in rows]
    return Configuration(
        label=ranking.label({**rows[0], "seed": None}),
        arm=rows[0]["arm"] or "",
        kind=next((kind for kind in kinds if kind != "other"), "other"),
        rows=tuple(rows),
        outcome=outcome_over_seeds([*outcomes, *missing]),
        n=len(outcomes) - outcomes.count("interrupted"),
        n_diverged=outcomes.count("diverged"),
    )


def _of_rows(rows: Iterable[Row], known: Iterable[Configuration]) -> list[Configuration]:
    by_first_trial = {one.rows[0]["trial_id"]: one for one in known}
    return [by_first_trial[row["trial_id"]] for row in rows]
