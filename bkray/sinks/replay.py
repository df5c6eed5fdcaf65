"""A trial's events again, from its folder: the inverse of ``events.rows`` and ``ParquetSink``."""

import json
from collections.abc import Iterator
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any

from bkray.events import (
    CellDone,
    EvalDone,
    Event,
    Measured,
    MemoryPeak,
    Rewound,
    RungDone,
    Spiked,
    StepsDone,
    TrialEnded,
    TrialStarted,
    Warned,
    metric_name,
)
from bkray.sinks.parquet import dated_rows

Rows = list[dict[str, Any]]

_LOSS, _NORM, _MASKED = "train/loss_nats", "train/grad_norm", "stability/masked"
_WINDOW = ("train/lr", "train/tokens", "train/window_seconds")


def read_events(folder: Path) -> Iterator[Event]:
    """Yield a trial's events as if it had run undisturbed, in one attempt: the last one.

    Their rows are those of ``read_rows``. What each step's block said is among ``metrics``, under
    the names of the rows; there is no ``TrialEnded`` while the trial runs, or if it was killed.
    Nothing comes of a folder in which no attempt has started.
    """
    return (event for event, _ in dated_events(folder))


def dated_events(folder: Path) -> Iterator[tuple[Event, int]]:
    """Yield ``read_events``, each with the time in Unix ms at which it was written to disk."""
    description = folder / "config.json"
    if not description.exists():
        return
    config = json.loads(description.read_text(encoding="utf-8"))
    table = dated_rows(folder).to_pylist()
    begun = min([_mtime_ms(description), *(row["unix_ms"] for row in table)])
    known = {field.name for field in fields(TrialStarted)}
    yield TrialStarted(**{name: value for name, value in config.items() if name in known}), begun
    tokens = 0
    for _, group in groupby(_numbered(table), key=lambda pair: pair[0]):
        rows = [row for _, row in group]
        if rows[0]["kind"] != "end":
            event = _event(rows, tokens)
            tokens = event.tokens if isinstance(event, StepsDone) else tokens
            yield event, rows[-1]["unix_ms"]
    yield from _ending(folder, config["attempt"], [row for row in table if row["kind"] == "end"])


def _numbered(table: Rows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row with the number of the event that it is of."""
    number, before = 0, None
    for row in table:
        if before is not None and _begins(row, before):
            number += 1
        yield number, row
        before = row


def _begins(row: dict[str, Any], before: dict[str, Any]) -> bool:
    """Say whether a row is the first of an event, ``before`` being the last of another."""
    if row["kind"] != before["kind"] or row["kind"] == "spike":
        return True
    if row["kind"] == "steps":  # the pairs of every step come first
        return bool(row["name"] == _LOSS and before["name"] != _NORM)
    if row["kind"] == "cell" and row["name"].endswith("/applicable"):
        return True
    return (row["step"], row["split"]) != (before["step"], before["split"])


def _event(rows: Rows, tokens: int) -> Event:
    kind, step, split = (rows[0][name] for name in ("kind", "step", "split"))
    values = {row["name"]: row["value"] for row in rows}
    match kind:
        case "steps":
            return _window(rows)
        case "eval":
            loss = values.pop(f"{split}/loss_nats")
            return EvalDone(step=step, tokens=tokens, split=split, loss_nats=loss, metrics=values)
        case "measured":
            return Measured(step=step, metrics=values)
        case "rung":
            return _rung(step, values)
        case "cell":
            return _cell(step, values)
        case "memory":
            return MemoryPeak(step=step, peak_mib=values["system/peak_memory_mib"])
        case "rewind":
            return Rewound(step=step, to_step=int(values["stability/rewound_to"]))
        case _:
            [(name, ratio)] = values.items()
            robust = name == "stability/robust_spike"
            return Spiked(step=step, ratio=ratio, rule="robust" if robust else "doubled")


def _rung(step: int, values: dict[str, float]) -> RungDone:
    named = {name: value for name, value in values.items() if "/" in name}
    length = next(iter(named)).partition("/")[0]
    metrics = {name.partition("/")[2]: value for name, value in named.items()}
    diverged = bool(metrics.pop("diverged"))
    n_seq = int(length.removeprefix("seq"))
    return RungDone(step=step, n_seq=n_seq, diverged=diverged, metrics=metrics)


def _cell(step: int, values: dict[str, float]) -> CellDone:
    _, n_eval, strategy, _ = next(iter(values)).split("/", 3)
    metrics = {name.split("/", 3)[3]: value for name, value in values.items()}
    del metrics["applicable"]
    return CellDone(step=step, n_eval=int(n_eval), strategy=strategy, metrics=metrics)


def _window(rows: Rows) -> StepsDone:
    of_steps: dict[str, Rows] = {_LOSS: [], _NORM: [], _MASKED: []}
    numbers: dict[str, float] = {}
    for row in rows:
        if row["name"] in of_steps:
            of_steps[row["name"]].append(row)
        else:
            numbers[row["name"]] = row["value"]
    lr, tokens, seconds = (numbers.pop(name) for name in _WINDOW)
    return StepsDone(
        step=max(row["step"] for row in rows),
        tokens=int(tokens),
        loss_nats=tuple(row["value"] for row in of_steps[_LOSS]),
        grad_norm=tuple(row["value"] for row in of_steps[_NORM]),
        lr=lr,
        window_seconds=seconds,
        metrics=numbers,
        masked=tuple(row["step"] for row in of_steps[_MASKED]),
    )


def _ending(folder: Path, attempt: int, rows: Rows) -> Iterator[tuple[Event, int]]:
    path = folder / "outcome.json"
    if not path.exists():
        return
    outcome = json.loads(path.read_text(encoding="utf-8"))
    if outcome["attempt"] < attempt:
        return
    unix_ms, step = _mtime_ms(path), outcome["step"]
    for message in outcome.get("warnings", ()):
        yield Warned(step=step, message=message), unix_ms
    told = {row["name"]: row["value"] for row in rows}  # JSON knows no NaN
    summary = {
        name: told.get(metric_name(name)) if value is None else value
        for name, value in outcome["summary"].items()
    }
    ended = TrialEnded(
        step=step, outcome=outcome["outcome"], reason=outcome["stop_reason"], summary=summary
    )
    yield ended, unix_ms


def _mtime_ms(path: Path) -> int:
    return path.stat().st_mtime_ns // 10**6
