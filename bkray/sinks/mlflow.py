"""MLflow as a view of a sweep: a parent run, a child run per trial, written by one thread.

The caller's thread only puts events into a queue. Of the numbers of every step MLflow gets those
of the last step of each window (at most 16 steps); Parquet has them all.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bkray.events import Event
from bkray.sinks.mlflow_client import PatientClient, StoreAwayError
from bkray.sinks.mlflow_runs import SweepRun, TrialRun
from bkray.sinks.mlflow_store import Tracking as Tracking
from bkray.sinks.mlflow_store import open_store as open_store
from bkray.sinks.mlflow_store import ui_address as ui_address
from bkray.sinks.mlflow_store import ui_command as ui_command
from bkray.sinks.mlflow_store import ui_environment as ui_environment
from bkray.sinks.sink import Sink

_log = logging.getLogger(__name__)
_FLUSH_SECONDS = 1.5
_FLUSH_METRICS = 500
_CLOSE_SECONDS = 30.0
_CLOSE = object()


@dataclass(frozen=True, slots=True)
class _Message:
    """What the caller's thread hands over; no event means that the sink was closed."""

    sink: "_TrialSink"
    event: Event | None
    unix_ms: int


class MlflowView:
    """Shows a sweep in MLflow under ``experiment``, as the run ``sweep_name``.

    Who opens the same ``sweep_name`` again goes on with its runs, so it must be unique within the
    experiment. ``sweep_meta`` becomes tags of the sweep's run (``git_sha`` of every run). Nothing
    waits for a store that is away; ``warn`` is told once, in the writing thread.
    """

    def __init__(
        self,
        tracking: Tracking,
        experiment: str,
        sweep_name: str,
        sweep_meta: Mapping[str, Any],
        swept: Sequence[str],
        now: Callable[[], float] = time.time,
        warn: Callable[[str], None] = _log.warning,
    ) -> None:
        self._now = now
        self._warn = warn
        self._inbox: queue.SimpleQueue[_Message | object] = queue.SimpleQueue()
        self._closing = threading.Event()
        client = PatientClient(tracking, self._closing, warn)
        self._sweep = SweepRun(client, tracking, experiment, sweep_name, sweep_meta, swept)
        self._thread = threading.Thread(target=self._write, name="mlflow-writer", daemon=True)
        self._thread.start()

    def trial(self, trial_id: str) -> Sink:
        return _TrialSink(self._inbox.put, self._now)

    def close(self) -> None:
        """Write what is left, for at most 30 seconds."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._inbox.put(_CLOSE)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn("MLflow did not take the rest of the sweep in time; Parquet has it all")

    def _write(self) -> None:
        first = self._inbox.get()
        if first is _CLOSE:  # nothing ran, so there is nothing to show
            return
        try:
            self._sweep.begin(_unix_ms(self._now))
            self._serve(first)
            self._sweep.end(_unix_ms(self._now))
        except StoreAwayError:
            self._warn("MLflow lacks the rest of the sweep, its store is away; Parquet has it all")

    def _serve(self, message: "_Message | object | None") -> None:
        runs: dict[_TrialSink, TrialRun] = {}
        flush_at = time.monotonic() + _FLUSH_SECONDS
        while message is not _CLOSE:
            if isinstance(message, _Message):
                self._deliver(message, runs)
            n_pending = sum(run.n_pending for run in runs.values())
            if n_pending >= _FLUSH_METRICS or time.monotonic() >= flush_at:
                flush_at = time.monotonic() + _FLUSH_SECONDS
                for run in runs.values():
                    run.flush()
            message = self._next(flush_at)
        for run in runs.values():
            run.leave(_unix_ms(self._now))

    def _next(self, until: float) -> "_Message | object | None":
        """Return the next message, ``None`` if there is none until then."""
        try:
            return self._inbox.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None

    def _deliver(self, message: _Message, runs: "dict[_TrialSink, TrialRun]") -> None:
        if message.event is not None:
            run = runs.setdefault(message.sink, TrialRun(self._sweep))
            run.take(message.event, message.unix_ms)
        elif message.sink in runs:
            runs.pop(message.sink).leave(message.unix_ms)


class _TrialSink:
    def __init__(self, put: Callable[[_Message], None], now: Callable[[], float]) -> None:
        self._put = put
        self._now = now

    def __call__(self, event: Event) -> None:
        self._put(_Message(self, event, _unix_ms(self._now)))

    def close(self) -> None:
        self._put(_Message(self, None, _unix_ms(self._now)))


def _unix_ms(now: Callable[[], float]) -> int:
    return int(1000 * now())
