"""The truth about a trial: its events as Parquet rows, its config and its outcome as JSON."""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bkray.atomic import replace, write_json
from bkray.errors import ResumeError, StorageError
from bkray.events import EvalDone, Event, Row, Saving, TrialEnded, TrialStarted, Warned, rows

SCHEMA = pa.schema(
    [
        ("trial_id", pa.string()),
        ("attempt", pa.int32()),
        ("kind", pa.string()),
        ("step", pa.int64()),
        ("split", pa.string()),
        ("name", pa.string()),
        ("value", pa.float64()),
    ]
)
_DATED = SCHEMA.append(pa.field("unix_ms", pa.int64()))
_CONFIG = [field.name for field in fields(TrialStarted) if field.name != "step"]
_KEY = ["kind", "step", "split", "name"]
_PART = re.compile(r"(\d+)-(\d+)\.parquet")
_FROM_STEP = b"bkray.from_step"
_ROWS_PER_PART = 2000
_UNDONE = ("steps", "eval", "memory")
"""Kinds of rows that a rewind takes back; spikes and rewinds stay on record."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ParquetSink:
    """Writes ``config.json``, ``events/<attempt>-<part>.parquet`` and, last, ``outcome.json``.

    Rows are buffered. They are on disk after each evaluation, at the end, on ``close``, and before
    each checkpoint, so that a resumed trial lacks no row.

    Raises:
        ResumeError: the folder already holds rows of this attempt or a later one.
        StorageError: there is no room left. Rows stay buffered, what was written stays readable.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: TrialStarted | None = None
        self._rows: list[Row] = []
        self._warnings: list[str] = []
        self._n_parts = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrialStarted):
            self._start(event)
            return
        self._rows.extend(rows(event))
        if isinstance(event, Warned):
            self._warnings.append(event.message)
        if isinstance(event, EvalDone | Saving | TrialEnded) or len(self._rows) >= _ROWS_PER_PART:
            self.flush()
        if isinstance(event, TrialEnded):
            self._end(event)

    def close(self) -> None:
        self.flush()

    def flush(self) -> None:
        """Put all rows so far on disk."""
        if not self._rows:
            return
        started = self._started
        assert started is not None, "the first event of an attempt is TrialStarted"
        n = len(self._rows)
        same = [[started.trial_id] * n, [started.attempt] * n]
        columns = [*same, *map(list, zip(*self._rows, strict=True))]
        schema = SCHEMA.with_metadata({_FROM_STEP: str(started.step)})
        table = pa.table(columns, schema=schema)
        name = f"{started.attempt}-{self._n_parts:05d}.parquet"
        path = self._folder / "events" / name
        with _room_for(path), replace(path) as temporary:
            pq.write_table(table, temporary)
        self._n_parts += 1
        self._rows.clear()

    def _start(self, event: TrialStarted) -> None:
        (self._folder / "events").mkdir(parents=True, exist_ok=True)
        taken = max((attempt for attempt, _, _ in _parts(self._folder)), default=-1)
        if taken >= event.attempt:
            raise ResumeError(
                f"{self._folder} already holds rows of attempt {taken}; "
                f"attempt {event.attempt} cannot start there"
            )
        self._started = event
        path = self._folder / "config.json"
        with _room_for(path):
            write_json(path, {name: getattr(event, name) for name in _CONFIG})
        # what an earlier attempt came to is no longer the outcome of this trial
        (self._folder / "outcome.json").unlink(missing_ok=True)

    def _end(self, event: TrialEnded) -> None:
        assert self._started is not None, "the first event of an attempt is TrialStarted"
        outcome = {
            "attempt": self._started.attempt,
            "outcome": event.outcome,
            "stop_reason": event.reason,
            "step": event.step,
            "summary": event.summary,
            "warnings": self._warnings,
        }
        path = self._folder / "outcome.json"
        with _room_for(path):
            write_json(path, outcome)


def last_attempt(folder: Path) -> int:
    """Return the number of the latest attempt that started in a trial's folder, 0 if none did."""
    config = folder / "config.json"
    return int(json.loads(config.read_text())["attempt"]) if config.exists() else 0


def read_rows(folder: Path) -> pa.Table:
    """Return the rows of a trial, one per (kind, step, split, name), in the order written.

    An attempt that went on from step s replaces what earlier attempts said beyond s, and how they
    ended; all other rows stay. A rewind takes back the steps and evaluations that it undid.
    """
    return dated_rows(folder).drop_columns("unix_ms")


def dated_rows(folder: Path) -> pa.Table:
    """Return ``read_rows`` with a column ``unix_ms``: when the file of each row was written."""
    attempts: dict[int, list[pa.Table]] = {}
    for attempt, _, path in _parts(folder):
        unix_ms = pa.scalar(path.stat().st_mtime_ns // 10**6, pa.int64())
        part = pq.read_table(path)
        dated = part.append_column("unix_ms", pa.repeat(unix_ms, part.num_rows))
        attempts.setdefault(attempt, []).append(dated)
    kept: list[pa.Table] = []
    goes_on: int | None = None  # the least step from which a later attempt went on
    for attempt in sorted(attempts, reverse=True):
        from_step = int(attempts[attempt][0].schema.metadata[_FROM_STEP])
        # before the rows of a rewind may fall to a later attempt themselves
        table = _without_undone(pa.concat_tables(attempts[attempt]))
        kept.insert(0, table if goes_on is None else table.filter(_stays(goes_on)))
        goes_on = from_step if goes_on is None else min(goes_on, from_step)
    whole = pa.concat_tables([_DATED.empty_table(), *(t.cast(_DATED) for t in kept)])
    return _last_of_each_key(_without_undone(whole))


def _stays(goes_on: int) -> pc.Expression:
    return (pc.field("step") <= goes_on) & (pc.field("kind") != "end")


def _without_undone(table: pa.Table) -> pa.Table:
    place = pa.array(range(table.num_rows), pa.int64())
    placed = table.append_column("place", place)
    for rewind in placed.filter(pc.field("kind") == "rewind").to_pylist():
        told_before = pc.field("kind").isin(_UNDONE) & (pc.field("place") < rewind["place"])
        placed = placed.filter(~(told_before & (pc.field("step") > rewind["value"])))
    return placed.drop_columns("place")


def _last_of_each_key(table: pa.Table) -> pa.Table:
    place = pa.array(range(table.num_rows), pa.int64())
    last = table.append_column("place", place).group_by(_KEY).aggregate([("place", "max")])
    return table.take(last.sort_by("place_max")["place_max"])


def _parts(folder: Path) -> list[tuple[int, int, Path]]:
    """Return (attempt, part, path), in the order they were written."""
    events = folder / "events"
    named = ((_PART.fullmatch(path.name), path) for path in events.glob("*.parquet"))
    return sorted((int(m[1]), int(m[2]), path) for m, path in named if m)


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StorageError(
            f"no room to write {path}: {os.strerror(error.errno)}; free some space, what was "
            "written before stays readable"
        ) from error
