"""What each length of a ladder came to, trial by trial, from the files of a sweep."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.compute as pc

from bkray.events import outcome_over_seeds
from bkray.rungs import MONITORED
from bkray.sinks.parquet import read_rows

_ARM = re.compile(r"(carry|seq-\d+).*")
_NAME = re.compile(r"seq(\d+)/(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RungRow:
    """What one trial came to at one length.

    ``learning_rate`` is the config's, which the schedule goes by. ``outcome`` is ``ok``,
    ``diverged``, or how the trial ended before it was through with this length. ``metrics`` go by
    the names of ``train.ladder.rung_done``, none of them without a number; of a rung that ended
    otherwise there are none. ``checkpoint`` is relative to the folder of the sweep.
    """

    trial_id: str
    arm: str
    seed: int
    mode: str
    n_seq: int
    learning_rate: float
    outcome: str
    metrics: Mapping[str, float]
    checkpoint: str | None = None

    @property
    def is_beside(self) -> bool:
        """Whether it has the monitor and stands beside a trial without."""
        return self.arm.endswith(MONITORED)


@dataclass(frozen=True, slots=True)
class Line:
    """The seeds of one length at one learning rate, in one mode, all of them with a monitor
    beside others without or none of them; at least one row."""

    rows: tuple[RungRow, ...]

    @property
    def n_seq(self) -> int:
        return self.rows[0].n_seq

    @property
    def learning_rate(self) -> float:
        return self.rows[0].learning_rate

    @property
    def mode(self) -> str:
        return self.rows[0].mode

    @property
    def is_beside(self) -> bool:
        """Whether it has the monitor and stands beside a line without."""
        return self.rows[0].is_beside

    @property
    def outcome(self) -> str:
        """The gravest of the seeds: one that diverged makes the length unstable."""
        return outcome_over_seeds(row.outcome for row in self.rows)

    @property
    def n_diverged(self) -> int:
        return sum(row.outcome == "diverged" for row in self.rows)

    def mean(self, name: str) -> float | None:
        """Return the mean over the seeds that have a finite number; of losses only if all ended
        as ok, for a mean over those that went well would flatter."""
        if name == "perplexity":
            loss = self.mean("loss")
            return None if loss is None else math.exp(min(loss, 700.0))
        if name.startswith(("loss", "context_worth")) and self.outcome != "ok":
            return None
        values = [row.metrics[name] for row in self.rows if name in row.metrics]
        finite = [value for value in values if math.isfinite(value)]
        return fmean(finite) if finite else None


def rungs(sweep_dir: Path) -> list[RungRow]:
    """Return a row per trial and length, the trials in the order of their proposals.

    A trial without a ladder has none, and of one that still runs there are those that are done.
    """
    folders = [path.parent for path in sweep_dir.glob("trials/*/config.json")]
    folders.sort(key=lambda folder: _json(folder / "proposal.json")["number"])
    return [row for folder in folders for row in _rungs_of(folder)]


def lines(rows: Iterable[RungRow]) -> list[Line]:
    """Return the rows over their seeds, by mode, length, learning rate and monitor."""
    groups: dict[tuple[str, int, float, bool], list[RungRow]] = defaultdict(list)
    for row in rows:
        groups[row.mode, row.n_seq, row.learning_rate, row.is_beside].append(row)
    return [Line(tuple(groups[key])) for key in sorted(groups)]


def best_line(tried: Sequence[Line]) -> Line | None:
    """Return the line of least mean loss; ``None`` where none ended as ok."""
    known = [(loss, line) for line in tried if (loss := line.mean("loss")) is not None]
    return min(known, key=lambda pair: pair[0])[1] if known else None


def is_ladder(rows: Sequence[RungRow]) -> bool:
    """Say whether the trials differ in their lengths and learning rates alone."""
    return bool(rows) and all(_ARM.fullmatch(row.arm) for row in rows)


def degradations(rows: Sequence[RungRow]) -> dict[tuple[str, int], float]:
    """Return by trial and length its perplexity over that of the shortest length, same seed.

    All lengths score the same tokens. The shortest one is a trial's own if it climbed, else, in a
    ladder's sweep, that of the learning rate which was best there, without the monitor.
    """
    shortest = {row.trial_id: row for row in reversed(rows)}
    climbed = {row.trial_id for row in rows if row.n_seq != shortest[row.trial_id].n_seq}
    stood = [row for row in rows if row.trial_id not in climbed]
    start = _start(stood) if is_ladder(stood) else {}
    found = {}
    for row in rows:
        first = shortest[row.trial_id] if row.trial_id in climbed else start.get(row.seed)
        if first is not None and "loss" in first.metrics and "loss" in row.metrics:
            nats = row.metrics["loss"] - first.metrics["loss"]
            found[row.trial_id, row.n_seq] = math.exp(min(nats, 700.0))
    return found


def _start(rows: Sequence[RungRow]) -> dict[int, RungRow]:
    """Return by seed the rung that the others are measured by."""
    n_seq = min(row.n_seq for row in rows)
    tried = lines(row for row in rows if row.n_seq == n_seq)
    best = best_line([line for line in tried if not line.is_beside])
    return {row.seed: row for row in best.rows} if best is not None else {}


def _rungs_of(folder: Path) -> list[RungRow]:
    record = _json(folder / "config.json")
    config = record["config"]
    planned = [int(n) for n in str(config.get("ladder.lengths") or "").split(",") if n]
    if not planned:
        return []
    told = _told(folder)
    outcomes = {n: "diverged" if numbers.pop("diverged") else "ok" for n, numbers in told.items()}
    missing = [n for n in planned if n not in told]
    ended = _json(folder / "outcome.json") if (folder / "outcome.json").exists() else {}
    was_cut_off = ended and "diverged" not in outcomes.values()
    if missing and was_cut_off and ended["attempt"] >= record["attempt"]:
        outcomes[missing[0]] = ended["outcome"]
    return [
        RungRow(
            trial_id=record["trial_id"],
            arm=record["arm"],
            seed=record["seed"],
            mode=config["ladder.mode"],
            n_seq=n,
            learning_rate=config["optimizer.lr"],
            outcome=outcomes[n],
            metrics=told.get(n, {}),
            checkpoint=_checkpoint(folder, n),
        )
        for n in planned
        if n in outcomes
    ]


def _told(folder: Path) -> dict[int, dict[str, float]]:
    """Return what the events say, by length and name."""
    told: dict[int, dict[str, float]] = defaultdict(dict)
    for row in read_rows(folder).filter(pc.field("kind") == "rung").to_pylist():
        if named := _NAME.fullmatch(row["name"]):
            told[int(named[1])][named[2]] = row["value"]
    return told


def _checkpoint(folder: Path, n_seq: int) -> str | None:
    path = folder / "checkpoints" / f"checkpoint_seq{n_seq}_final.pt"
    return path.relative_to(folder.parents[1]).as_posix() if path.exists() else None


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
