"""Carriers bring jobs from the driver to ``trial.run`` and its events back, all in the same way.

The plain carrier runs one job after the other in this process and never imports ray; the Tune
carrier is in ``tune_carrier.py``.
"""

import json
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.compute as pc

from bkray.atomic import write_json, write_text
from bkray.cluster.budget import TIME_IS_UP
from bkray.cluster.locks import HeldElsewhereError, held
from bkray.cluster.preemption import preempted
from bkray.cluster.retries import bytes_asked
from bkray.config import TrialConfig
from bkray.errors import ResumeError, StorageError
from bkray.events import Event, TrialEnded, TrialStarted
from bkray.overrides import build, flatten
from bkray.sinks.parquet import last_attempt, read_rows
from bkray.sinks.sink import Sink
from bkray.train import attempts
from bkray.train.run import Ending, Stop
from bkray.train.team import ALONE, Team

_OUT_OF_MEMORY = ("can't allocate memory", "running low on memory")
"""Said by torch's CPU allocator and by Ray's memory monitor, in exceptions of common kinds."""
_NO_ROOM = (OSError, StorageError)
_STOP = ".stop"
"""A file, because every worker sees the folder of the sweep; it is polled between windows."""
_LOCK = ".lock"
"""Of a trial's folder, held by the process that trains there."""
DRIVER = ".driver"
"""Of a sweep's folder, held by its driver, with the driver's token in it."""
ORPHAN_SECONDS = 60.0
"""How long a trial waits for one whose driver was killed to leave its folder."""


class RunTrial(Protocol):
    """``trial.run``, or what stands in for it."""

    def __call__(
        self, config: TrialConfig, folder: Path, *, sweep: str, stop: Stop, team: Team = ALONE
    ) -> Iterator[Event]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial to run, as plain data that travels to a worker.

    ``deadline`` is seconds since the epoch: the same moment for every process of the sweep.
    ``driver`` is the token of who handed it out.
    """

    number: int
    trial_id: str
    data_hash: str
    sweep: str
    overrides: Mapping[str, Any]
    folder: Path
    sweep_folder: Path
    deadline: float | None
    driver: str = ""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a carrier needs to run a job; both are defined in a module, so they can be pickled."""

    run_trial: RunTrial
    open_sink: Callable[[Path], Sink]


def attempt(
    job: Job,
    parts: Parts,
    *,
    passed_on: tuple[type[Exception], ...] = (),
    patience_seconds: float = ORPHAN_SECONDS,
) -> Generator[Event, None, None]:
    """Run a job; yield its events and write them to its sink first.

    The last event is always ``TrialEnded``: an exception of the trial is its outcome, ``oom`` or
    ``failed``, with the traceback in ``error.txt``, and not the end of the sweep. Exceptions
    that are ``passed_on`` are raised. No other process writes into the trial's folder meanwhile;
    one that still does is waited for.
    """

    def wanted() -> bool:
        return asked_to_stop(job) is None

    try:
        with held(job.folder / _LOCK, patience_seconds=patience_seconds, wanted=wanted):
            yield from _attempt(job, parts, passed_on)
    except HeldElsewhereError:  # its files are not ours to write
        busy = f"another process trains in {job.folder}: wait for its end, or end it"
        if issubclass(ResumeError, passed_on):
            raise ResumeError(busy) from None
        asked = asked_to_stop(job)
        reason = asked.reason if asked else busy
        yield TrialEnded(step=0, outcome="interrupted", reason=reason, summary={})


def _attempt(job: Job, parts: Parts, passed_on: tuple[type[Exception], ...]) -> Iterator[Event]:
    sink = parts.open_sink(job.folder)
    started, step = False, 0

    def stop() -> Ending | None:
        return asked_to_stop(job, step)

    try:
        config = build(job.overrides)
        for event in parts.run_trial(config, job.folder, sweep=job.sweep, stop=stop):
            started, step = True, event.step
            sink(event)
            yield event
    except passed_on:
        raise
    except Exception as error:  # the trial boundary: kept in error.txt and told as the outcome
        with suppress(*_NO_ROOM):  # what is told below must not depend on the disk
            write_text(job.folder / "error.txt", traceback.format_exc())
        n_bytes = bytes_asked(error)
        said = {} if n_bytes is None else {"oom_bytes": n_bytes}
        outcome, reason = outcome_of(error), one_line(error)
        reached = step if started else None
        for event in endings(job, outcome, reason, started=started, step=reached, summary=said):
            with suppress(*_NO_ROOM):
                sink(event)
            yield event
    finally:
        with suppress(*_NO_ROOM):
            sink.close()


def endings(
    job: Job,
    outcome: str,
    reason: str,
    *,
    started: bool,
    step: int | None = None,
    summary: Mapping[str, Any] | None = None,
) -> list[Event]:
    """Return the events of a trial that cannot speak for itself any more.

    Without a ``step`` it is the last one of which something was written down.
    """
    reached = _last_step(job.folder) if step is None else step
    ended = TrialEnded(step=reached, outcome=outcome, reason=reason, summary=summary or {})
    return [ended] if started else [_obituary(job, reached), ended]


def outcome_of(error: BaseException) -> str:
    """Return ``oom`` where Python, torch or Ray say that memory ran out, else ``failed``."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return "oom"
    return "oom" if any(words in str(error) for words in _OUT_OF_MEMORY) else "failed"


def one_line(error: BaseException) -> str:
    """Return the kind of the exception and the first line of what it says."""
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def ask_to_stop(folder: Path, outcome: str, reason: str, from_step: int = 0) -> None:
    """Ask the trial in ``folder``, or every trial of the sweep in ``folder``, to end soon: as
    soon as it has trained ``from_step`` steps."""
    write_json(folder / _STOP, [outcome, reason, from_step])


def forget_stop(folder: Path) -> None:
    """Take back what ``ask_to_stop`` asked."""
    (folder / _STOP).unlink(missing_ok=True)


def asked_to_stop(job: Job, step: int = 0) -> Ending | None:
    """Return why the trial should end now: the sweep stops or is in other hands, the trial is
    pruned, time is up."""
    if job.driver and _read(job.sweep_folder / DRIVER) not in (job.driver, ""):
        return Ending("interrupted", "another driver goes on with the sweep")
    for folder in (job.sweep_folder, job.folder):
        if text := _read(folder / _STOP):
            outcome, reason, from_step = json.loads(text)
            if step >= from_step:
                return Ending(outcome, reason)
    if job.deadline is not None and time.time() >= job.deadline:
        return Ending("interrupted", TIME_IS_UP)
    return preempted()


class Desk(Protocol):
    """The driver's side: hands out jobs until nothing is left, takes the events of each."""

    def next_job(self) -> Job | None: ...

    def take(self, job: Job, event: Event) -> None: ...


def carry_here(desk: Desk, parts: Parts) -> None:
    """Run every job in this process, one after the other."""
    while (job := desk.next_job()) is not None:
        for event in attempt(job, parts):
            desk.take(job, event)


def _read(path: Path) -> str:
    """Return what a file holds, nothing if it is not there."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _last_step(folder: Path) -> int:
    """Return the last step of which a trial wrote something down, 0 if it wrote nothing."""
    return int(pc.max(read_rows(folder)["step"]).as_py() or 0)


def _obituary(job: Job, step: int) -> TrialStarted:
    """Return the first event of an attempt that died before it could say one."""
    config = build(job.overrides)
    begun = attempts.last(job.folder)
    if begun.number <= last_attempt(job.folder):  # it did not even count itself
        begun = attempts.begin(job.folder)
    return TrialStarted(
        trial_id=job.trial_id,
        sweep=job.sweep,
        arm=config.arm,
        seed=config.seed,
        attempt=begun.number,
        config=flatten(config),
        n_params=0,
        causal=False,
        data_hash=job.data_hash,
        step=step,
        split=begun.split,
    )
