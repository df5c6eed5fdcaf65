"""What must hold of a sweep's folder once the sweep is done, whatever was killed on the way."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from bkray.report.tables import collect
from bkray.sinks.parquet import read_rows

CLOCKS = {
    *("speedup_measured", "speedup_relative_to_dense", "tokens_per_second", "train_seconds"),
    *("peak_memory_mib", "attempt"),
}
"""Columns of trials.parquet that differ between two runs of one sweep: times, speeds, memory."""
_KEPT = ("ok", "pruned", "diverged")
"""Outcomes that no attempt follows."""
_SCRATCH = ("*.tmp", ".lock", ".stop", ".driver", ".tune", ".train", "study.db-journal")
_TOLD = "SELECT key FROM study_user_attributes WHERE key LIKE 'told:%'"
_PROPOSALS = "SELECT value_json FROM trial_user_attributes WHERE key = 'overrides'"
_RUNS = """
    SELECT parent.value, runs.name FROM runs
    JOIN tags AS sweep ON sweep.run_uuid = runs.run_uuid AND sweep.key = 'sweep_run'
    LEFT JOIN tags AS parent ON parent.run_uuid = runs.run_uuid
        AND parent.key = 'mlflow.parentRunId'
    WHERE sweep.value = ? AND runs.lifecycle_stage = 'active'
"""


class Done(NamedTuple):
    """What a trial that has ended looks like on the disk."""

    written_ns: int
    attempt: str


class Flaws(NamedTuple):
    """Each a list of what is wrong, in words; all are empty for a sweep that is whole."""

    lost: list[str]
    doubled: list[str]
    rerun: list[str]
    unequal: list[str]
    left: list[str]

    def __bool__(self) -> bool:
        return any(self)


def done_trials(out: Path) -> dict[str, Done]:
    """Return the trials that have ended for good, by id."""
    found = {}
    for path in out.glob("trials/*/outcome.json"):
        with suppress(FileNotFoundError):  # a driver that lives may just begin another attempt
            if _json(path)["outcome"] in _KEPT:
                attempt = (path.parent / "attempt.json").read_text()
                found[path.parent.name] = Done(path.stat().st_mtime_ns, attempt)
    return found


def flaws(
    out: Path,
    *,
    n_planned: int,
    seeds: int = 1,
    done: Mapping[str, Done],
    whole: Path | None = None,
) -> Flaws:
    """Return what is wrong with the sweep in ``out``.

    Args:
        n_planned: trials it is to have, ``seeds`` of each configuration.
        done: those that had ended when something was killed.
        whole: an undisturbed run of the same sweep; ``None`` where the order of the trials, and
            so what is proposed and pruned, is a matter of chance.
    """
    now = done_trials(out)
    return Flaws(
        lost=[*_lost(out, n_planned, seeds), *_gaps(out)],
        doubled=list(_doubled(out)),
        rerun=[name for name, before in done.items() if now.get(name) != before],
        unequal=[] if whole is None else [*_other_cells(out, whole), *_other_rows(out, whole)],
        left=[str(path.relative_to(out)) for name in _SCRATCH for path in out.rglob(name)],
    )


def _lost(out: Path, n_planned: int, seeds: int) -> Iterator[str]:
    begun = {path.name for path in out.glob("trials/*")}
    ended = {path.parent.name for path in out.glob("trials/*/outcome.json")}
    yield from (f"{name} has no outcome" for name in sorted(begun - ended))
    for path in out.glob("trials/*/outcome.json"):
        if (outcome := _json(path)["outcome"]) not in _KEPT:
            yield f"{path.parent.name} ended {outcome}"
    numbers = {_json(path)["number"] for path in out.glob("trials/*/proposal.json")}
    yield from (f"no trial of number {n}" for n in sorted(set(range(n_planned)) - numbers))
    told = {int(name.removeprefix("told:")) for name in _study(out, _TOLD)}
    yield from (f"{n} was not told" for n in sorted(set(range(n_planned // seeds)) - told))
    table = {row["trial_id"] for row in _table(out)}
    yield from (f"{name} is not in the table" for name in sorted(begun - table))


def _gaps(out: Path) -> Iterator[str]:
    for path in out.glob("trials/*/outcome.json"):
        rows = read_rows(path.parent).to_pylist()
        steps = sorted(row["step"] for row in rows if row["name"] == "train/loss_nats")
        if steps != list(range(1, _json(path)["step"] + 1)):
            yield f"{path.parent.name} has rows of the steps {steps}"


def _doubled(out: Path) -> Iterator[str]:
    seen = {
        "trials of number": [_json(p)["number"] for p in out.glob("trials/*/proposal.json")],
        "lines of trial": [row["trial_id"] for row in _table(out)],
        "proposals": _study(out, _PROPOSALS),
        "runs in MLflow of": _tracked(out),
    }
    for what, names in seen.items():
        for name, times in Counter(names).items():
            if times > 1:
                yield f"{times} {what} {name}"
    for folder in out.glob("trials/*"):
        rows = read_rows(folder).to_pylist()
        keys = [(row["kind"], row["step"], row["split"], row["name"]) for row in rows]
        if len(keys) > len(set(keys)):
            yield f"rows of {folder.name}"


def _other_cells(out: Path, whole: Path) -> Iterator[str]:
    ours, theirs = _table(out), _table(whole)
    if [row["trial_id"] for row in ours] != [row["trial_id"] for row in theirs]:
        yield "the table has other trials"
        return
    for our, their in zip(ours, theirs, strict=True):
        for name in their.keys() - CLOCKS:
            if not _same(our[name], their[name]):
                yield f"{name} of {our['trial_id']} is {our[name]}, was {their[name]}"


def _other_rows(out: Path, whole: Path) -> Iterator[str]:
    for folder in sorted(whole.glob("trials/*")):
        ours, theirs = (_numbers(place / "trials" / folder.name) for place in (out, whole))
        for key in sorted(ours.keys() | theirs.keys()):
            if not _same(ours.get(key), theirs.get(key)):
                yield f"{key} of {folder.name} is {ours.get(key)}, was {theirs.get(key)}"
                break


def _numbers(folder: Path) -> dict[tuple[str, int, str, str], float]:
    """Return what a trial computed, without what its clocks said."""
    return {
        (row["kind"], row["step"], row["split"], row["name"]): row["value"]
        for row in read_rows(folder).to_pylist()
        if row["kind"] in ("steps", "eval", "spike") and row["name"] != "train/window_seconds"
    }


def _same(one: Any, other: Any) -> bool:
    return bool(one == other or repr(one) == repr(other))  # NaN is not equal to itself


def _table(out: Path) -> list[dict[str, Any]]:
    path = out / "trials.parquet"
    return pq.read_table(path).to_pylist() if path.exists() else collect(out)


def _study(out: Path, query: str) -> list[str]:
    return [name for (name,) in _ask(out / "study.db", query)]


def _tracked(out: Path) -> list[tuple[Any, ...]]:
    path = out.parent / "runs" / "mlflow.db"
    return _ask(path, _RUNS, out.name) if path.exists() else []


def _ask(database: Path, query: str, *values: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query, values).fetchall()


def _json(path: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(path.read_text())
    return said
