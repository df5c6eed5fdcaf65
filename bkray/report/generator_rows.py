"""What the generators of a sweep came to, trial by trial, from its files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from bkray.sinks.parquet import read_rows

LENGTH = "generator.training_sequence_length"


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorRow:
    """One trial: ``metrics`` by the names of ``train.generate``, without ``generator/``."""

    trial_id: str
    arm: str
    seed: int
    config: Mapping[str, Any]
    outcome: str
    n_params: int
    metrics: Mapping[str, float]


def generator_rows(sweep_dir: Path) -> Iterator[GeneratorRow]:
    """Yield the generators among the trials of a sweep, in the order of their proposals."""
    folders = [path.parent for path in sweep_dir.glob("trials/*/config.json")]
    for folder in sorted(folders, key=lambda one: _json(one / "proposal.json").get("number", 0)):
        record, ended = _json(folder / "config.json"), _json(folder / "outcome.json")
        if LENGTH not in record["config"]:
            continue
        is_over = bool(ended) and ended["attempt"] >= record["attempt"]
        yield GeneratorRow(
            trial_id=record["trial_id"],
            arm=record["arm"],
            seed=record["seed"],
            config=record["config"],
            outcome=ended["outcome"] if is_over else "interrupted",
            n_params=record["n_params"],
            metrics=_metrics(folder, ended["summary"]) if is_over else {},
        )


def _metrics(folder: Path, summary: Mapping[str, Any]) -> dict[str, float]:
    rows = read_rows(folder)
    told = rows.filter(pc.starts_with(rows["name"], "generator/")).to_pylist()
    told.sort(key=lambda row: row["step"])
    seen = {row["name"].removeprefix("generator/"): row["value"] for row in told}
    names = ("train_seconds", "peak_memory_mib")
    return seen | {name: summary[name] for name in names if summary.get(name) is not None}


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value
