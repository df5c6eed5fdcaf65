"""What trials came to at other lengths than their own, cell by cell, from the files of a sweep."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bkray import atomic
from bkray.sinks.parquet import read_rows

FILE = "mismatch.parquet"
RETRAIN = "retrain"
NOT_APPLICABLE = "not applicable"

_ARM = re.compile(r"(\w+)-(none|learned|rope)-(\d+)")
_NAME = re.compile(r"mismatch/(\d+)/(\w+)/(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRow:
    """What one trial came to at one length, read by one strategy.

    ``outcome`` is that of the trial, or ``not applicable`` where its model cannot follow the
    strategy; there are ``metrics`` for ``ok`` alone, by the names of ``train.mismatch``.
    """

    trial_id: str
    arm: str
    model: str
    """Mixer and position."""
    seed: int
    n_train: int
    n_eval: int
    strategy: str
    outcome: str
    metrics: Mapping[str, float]


def cell_rows(sweep_dir: Path) -> list[CellRow]:
    """Return a row per trial, length and strategy, the trials in the order of their proposals.

    Trials that still run have none.
    """
    folders = [path.parent for path in sweep_dir.glob("trials/*/config.json")]
    folders.sort(key=lambda folder: _json(folder / "proposal.json")["number"])
    return [row for folder in folders for row in _rows_of(folder)]


def is_mismatch(rows: Sequence[CellRow]) -> bool:
    """Say whether the trials are those of the mismatch sweep, and differ in nothing else."""
    return bool(rows) and all(_ARM.fullmatch(row.arm) for row in rows)


def write_cells(sweep_dir: Path, rows: Sequence[CellRow], verdicts: Mapping[Any, str]) -> Path:
    """Write ``mismatch.parquet``, a line per row; what a cell has no number for is null.

    Args:
        verdicts: by model, train length, evaluation length and strategy.
    """
    words = ("trial_id", "arm", "model", "seed", "n_train", "n_eval", "strategy", "outcome")
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    columns: dict[str, Any] = {word: [getattr(row, word) for row in rows] for word in words}
    columns["verdict"] = pa.array([verdicts.get(key(row)) for row in rows], pa.string())
    for name in names:
        columns[name] = pa.array([row.metrics.get(name) for row in rows], pa.float64())
    path = sweep_dir / FILE
    with atomic.replace(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
    return path


def key(row: CellRow) -> tuple[str, int, int, str]:
    """Return what the seeds of a cell have in common."""
    return row.model, row.n_train, row.n_eval, row.strategy


def _rows_of(folder: Path) -> Iterator[CellRow]:
    record, ended = _json(folder / "config.json"), folder / "outcome.json"
    config = record["config"]
    if config.get("mismatch.lengths") is None or not ended.exists():
        return
    outcome = _json(ended)["outcome"]
    told = _told(folder) if outcome == "ok" else {}
    n_train = int(config["model.n_seq"])
    for n_eval in map(int, str(config["mismatch.lengths"]).split(",")):
        chosen = str(config.get("mismatch.strategies", RETRAIN)).split(",")
        for strategy in chosen if n_eval > n_train else [RETRAIN]:
            metrics = told.get((n_eval, strategy), {})
            applies = metrics.pop("applicable", 1.0)
            yield CellRow(
                trial_id=record["trial_id"],
                arm=record["arm"],
                model=f"{config['model.mixer']} {config['model.position']}",
                seed=record["seed"],
                n_train=n_train,
                n_eval=n_eval,
                strategy=strategy,
                outcome=outcome if applies else NOT_APPLICABLE,
                metrics=metrics,
            )


def _told(folder: Path) -> dict[tuple[int, str], dict[str, float]]:
    """Return what the events say, by length and strategy."""
    told: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)
    for row in read_rows(folder).filter(pc.field("kind") == "cell").to_pylist():
        if named := _NAME.fullmatch(row["name"]):
            told[int(named[1]), named[2]][named[3]] = row["value"]
    return told


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
