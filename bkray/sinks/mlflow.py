"""MLflow as a view of a sweep: its run, runs below it for the trials, written by one thread.

The caller's thread only puts events into a queue. Of the numbers of every step MLflow gets those
of the last step of each window (at most 16 steps); Parquet has them all.
"""

import logging
import queue
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bkray.events import Event
from bkray.sinks.mlflow_client import PatientClient, StoreAwayError
from bkray.sinks.mlflow_files import Artifacts, Placed, TrialFiles, placed
from bkray.sinks.mlflow_runs import SweepRun, SweepShown
from bkray.sinks.mlflow_store import Tracking as Tracking
from bkray.sinks.mlflow_store import embedded_store as embedded_store
from bkray.sinks.mlflow_store import open_store as open_store
from bkray.sinks.mlflow_store import sole_writer
from bkray.sinks.mlflow_store import ui_address as ui_address
from bkray.sinks.mlflow_store import ui_command as ui_command
from bkray.sinks.mlflow_store import ui_environment as ui_environment
from bkray.sinks.mlflow_trial import TrialRun
from bkray.sinks.mlflow_ui import newest_paths as newest_paths
from bkray.sinks.mlflow_ui import runs_path
from bkray.sinks.sink import Sink

_log = logging.getLogger(__name__)
_FLUSH_SECONDS = 5.0
_SILENT_SECONDS = 30.0  # without an answer of the store, while closing
_LONG_SECONDS = 5.0
_CLOSE_SECONDS = 300.0
_CLOSE = object()


@dataclass(frozen=True, slots=True)
class _Message:
    """What the caller's thread hands over; no event means that the sink was closed."""

    sink: "_TrialSink"
    event: Event | None
    unix_ms: int


@dataclass(frozen=True, slots=True)
class _Files:
    """Files to attach."""

    placed: list[Placed]


class MlflowView:
    """Shows a sweep in MLflow under ``experiment``, as the run ``sweep_name``.

    Who opens the same ``sweep_name`` again goes on with its runs, so it must be unique within the
    experiment. ``sweep_meta`` becomes tags of the sweep's run (``git_sha`` of every run). With
    several ``seeds`` per configuration, from ``first_seed`` on, each has a run above its trials.
    Nothing waits for a store that is away; ``warn`` is told once, in the writing thread.

    ``folder`` is the sweep's, if it has one. Of each trial that ended there, what ``artifacts``
    returns for its folder becomes artifacts of its run, with its ``forensics/``; that is called in
    the writing thread.
    """

    def __init__(
        self,
        tracking: Tracking,
        experiment: str,
        sweep_name: str,
        sweep_meta: Mapping[str, Any],
        swept: Sequence[str],
        *,
        seeds: int = 1,
        first_seed: int = 0,
        folder: Path | None = None,
        artifacts: Artifacts | None = None,
        now: Callable[[], float] = time.time,
        warn: Callable[[str], None] = _log.warning,
    ) -> None:
        self._now = now
        self._warn = warn
        self._inbox: queue.SimpleQueue[_Message | _Files | object] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._tracking = tracking
        self._folder = folder.absolute() if folder is not None else None
        self._kept = "Parquet has it all"
        if folder is not None:
            self._kept += f", later also MLflow by: bkray mlflow-sync {shlex.quote(str(folder))}"
        complaint = f"MLflow lags behind or lacks something; training goes on and {self._kept}"
        self._client = PatientClient(tracking, self._closing, warn, complaint)
        shown = SweepShown(
            experiment=experiment,
            name=sweep_name,
            meta=sweep_meta,
            swept=tuple(swept),
            seeds=seeds,
            first_seed=first_seed,
        )
        files = None if folder is None else TrialFiles(folder, artifacts, warn)
        self._sweep = SweepRun(self._client, shown, files)
        self._thread = threading.Thread(target=self._write, name="mlflow-writer", daemon=True)
        self._thread.start()

    @property
    def ui_path(self) -> str | None:
        """Where the UI shows this sweep's ranking, below the server's address.

        ``None`` while the store has not answered.
        """
        experiment_id = self._sweep.experiment_id
        return runs_path(experiment_id, self._sweep.shown.key) if experiment_id else None

    def trial(self, trial_id: str) -> Sink:
        return _TrialSink(self._inbox.put, self._now)

    def attach(self, paths: Sequence[Path]) -> None:
        """Copy files, and all files of folders, to the artifacts of the sweep's run.

        They keep their places relative to each other: ``report.html`` beside ``figures/a.png``.
        Call it before ``close``, and leave the files there until then.
        """
        self._inbox.put(_Files(list(placed(paths))))

    def close(self) -> None:
        """Write what is left, as long as the store keeps answering, for at most five minutes.

        Ctrl-C ends the waiting, and nothing else.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        self._inbox.put(_CLOSE)
        try:
            taken = self._wait()
        except KeyboardInterrupt:
            taken = False
        if not taken:
            self._warn(f"MLflow did not take the rest of the sweep in time; {self._kept}")

    def _wait(self) -> bool:
        """Wait for the writing thread; say whether it has ended."""
        began = heard = time.monotonic()
        n_answered, told = self._client.n_answered, False
        while self._thread.is_alive():
            self._thread.join(1)
            now = time.monotonic()
            if self._client.n_answered > n_answered:
                n_answered, heard = self._client.n_answered, now
            if now - heard >= _SILENT_SECONDS or now - began >= _CLOSE_SECONDS:
                return not self._thread.is_alive()
            if n_answered and now - began >= _LONG_SECONDS and not told:
                told = True
                self._warn(
                    "MLflow is slow to take the rest of the sweep; Ctrl-C goes on without it"
                )
        return True

    def _write(self) -> None:
        first = self._inbox.get()
        if first is _CLOSE:  # nothing ran, so there is nothing to show
            return
        try:
            with self._alone():
                self._sweep.begin(self._unix_ms())
                self._serve(first)
                self._sweep.end(self._unix_ms())
        except StoreAwayError:
            self._warn(f"MLflow lacks the rest of the sweep, its store is away; {self._kept}")

    def _alone(self) -> AbstractContextManager[object]:
        if self._folder is None:
            return nullcontext()
        return sole_writer(self._folder, self._tracking, wait=True)

    def _serve(self, message: object) -> None:
        """Collect messages, and write all that came between two writings together: the slower
        the store, the fewer and larger its requests."""
        runs: dict[_TrialSink, TrialRun] = {}
        left: list[TrialRun] = []
        write_at = time.monotonic() + _FLUSH_SECONDS
        while message is not _CLOSE:
            self._deliver(message, runs, left)
            if time.monotonic() >= write_at:
                self._sweep.sample(self._unix_ms())
                self._bring_up_to_date([*left, *runs.values()])
                left.clear()
                write_at = time.monotonic() + _FLUSH_SECONDS
            message = self._next(write_at)
        for run in runs.values():
            run.leave(self._unix_ms())
        self._bring_up_to_date([*left, *runs.values()])

    def _bring_up_to_date(self, runs: Sequence[TrialRun]) -> None:
        for run in runs:
            run.write()
        self._sweep.write()

    def _next(self, until: float) -> object:
        """Return the next message, ``None`` if there is none until then."""
        try:
            return self._inbox.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None

    def _deliver(
        self, message: object, runs: "dict[_TrialSink, TrialRun]", left: list[TrialRun]
    ) -> None:
        match message:
            case _Message(sink, None, unix_ms) if sink in runs:
                run = runs.pop(sink)
                run.leave(unix_ms)
                left.append(run)
            case _Message(sink, event, unix_ms) if event is not None:
                run = runs.setdefault(sink, TrialRun(self._sweep))
                run.take(event, unix_ms)
            case _Files(placed):
                self._sweep.attach(placed)

    def _unix_ms(self) -> int:
        return int(1000 * self._now())


class _TrialSink:
    def __init__(self, put: Callable[[_Message], None], now: Callable[[], float]) -> None:
        self._put = put
        self._now = now

    def __call__(self, event: Event) -> None:
        self._put(_Message(self, event, int(1000 * self._now())))

    def close(self) -> None:
        self._put(_Message(self, None, int(1000 * self._now())))
