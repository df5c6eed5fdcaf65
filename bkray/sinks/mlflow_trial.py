"""A trial's run in MLflow, fed with its events."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from bkray.events import Event, Row, TrialEnded, TrialStarted, Warned, rows
from bkray.overrides import configuration_id, row_length
from bkray.sinks.mlflow_names import knobs, trial_name
from bkray.sinks.mlflow_run import LateRun
from bkray.sinks.mlflow_runs import SweepRun
from bkray.sinks.mlflow_seeds import Configuration, SeedResult

_LONGEST_DIGEST = 36
_MASKED = "stability/masked"


class TrialRun:
    """The run of one attempt at a trial; a later attempt goes on with the same run."""

    def __init__(self, sweep: SweepRun) -> None:
        self._sweep = sweep
        self._run: LateRun | None = None
        self._configuration: Configuration | None = None
        self._started: TrialStarted | None = None
        self._nonfinite: set[str] = set()
        self._warnings: list[str] = []
        self._results: dict[str, float] = {}
        self._ended = False

    @property
    def run(self) -> LateRun | None:
        """``None`` until the trial has started, and if the sweep itself has no run."""
        return self._run

    def take(self, event: Event, unix_ms: int) -> None:
        if isinstance(event, TrialStarted):
            self._begin(event, unix_ms)
        elif self._run is not None:
            self._collect(self._run, event, unix_ms)
        if isinstance(event, TrialEnded):
            self._end(event.outcome, event.reason, unix_ms)

    def leave(self, unix_ms: int) -> None:
        """End a run whose trial said nothing of its end."""
        if not self._ended:
            self._end("interrupted", "", unix_ms)

    def write(self) -> None:
        """Bring the store up to date."""
        run = self._run
        if run is None:
            return
        if self._configuration is not None:
            self._configuration.open()
        parent = self._configuration.run if self._configuration else self._sweep.run
        if parent is None or parent.run_id is None:
            return
        if run.run_id is None:
            run.tags["mlflow.parentRunId"] = parent.run_id
            if (found := run.open()) is not None:
                self._nonfinite |= set(found.data.tags.get("nonfinite", "").split())
                self._name_nonfinite(run)
        run.write()

    def _begin(self, started: TrialStarted, unix_ms: int) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if self._sweep.run is None:
            return
        shown = self._sweep.shown
        several = shown.shares_its_seeds(started.seed)
        if several:
            self._configuration = self._sweep.configuration(started, unix_ms)
        run = self._sweep.late_run(trial_name(started, shown.swept, several=several), unix_ms)
        run.identity["trial_id"] = started.trial_id
        run.new = self._sweep.is_new(started.trial_id)
        run.tags |= dict(_start_tags(started, shown.meta))
        run.tags["level"] = "seed" if several else "configuration"
        run.params |= dict(knobs(started, shown.swept))
        run.config = started.config
        known = (started.config.get(f"data.{name}") for name in ("embeddings", "corpus"))
        corpus = str(next(filter(None, known), "unknown"))
        digest = started.data_hash[:_LONGEST_DIGEST]
        data = Dataset(corpus, digest, "local", json.dumps({"uri": corpus}))
        use = InputTag("mlflow.data.context", "training")
        run.datasets = [DatasetInput(data, tags=[use])]
        self._run, self._started = run, started

    def _collect(self, run: LateRun, event: Event, unix_ms: int) -> None:
        from mlflow.entities import Metric

        if isinstance(event, Warned):
            self._warnings.append(event.message)
            run.tags["warnings"] = "; ".join(self._warnings)
        for row in rows(event):
            if not math.isfinite(row.value):
                self._nonfinite.add(row.name)
                continue
            if row.kind == "end":
                self._results[row.name] = row.value
            if _is_shown(row, event):
                run.metrics.append(Metric(_metric_key(row), row.value, unix_ms, row.step))

    def _end(self, outcome: str, reason: str, unix_ms: int) -> None:
        self._ended = True
        if self._run is None or self._started is None:
            return
        self._sweep.interrupted.discard(self._started.trial_id)
        if outcome == "interrupted":  # a later attempt may still end otherwise
            self._sweep.interrupted.add(self._started.trial_id)
        self._run.end(outcome, unix_ms)
        if reason:
            self._run.tags["stop_reason"] = reason
        self._name_nonfinite(self._run)
        self._run.files += self._sweep.files_of(self._started.trial_id)
        if self._configuration is not None:
            result = SeedResult(outcome, self._results)
            self._configuration.take(self._started.trial_id, result, unix_ms)

    def _name_nonfinite(self, run: LateRun) -> None:
        if self._ended and self._nonfinite:
            run.tags["nonfinite"] = " ".join(sorted(self._nonfinite))


def _is_shown(row: Row, event: Event) -> bool:
    """Say whether MLflow gets a number: of the steps those of the last one, and what was masked.

    The UI ranks by ``best/...``, so it has none of a trial that did not end well: however low its
    loss was, it comes last.
    """
    if isinstance(event, TrialEnded):
        return event.outcome == "ok" or not row.name.startswith("best/")
    return row.step == event.step or row.name == _MASKED


def _metric_key(row: Row) -> str:
    """Return the name in MLflow, which knows no split: ``act/...`` is the validation's there."""
    if row.name.startswith("stability/"):
        return row.name
    mixed_up = row.kind in ("steps", "eval") and row.split != "val"
    if mixed_up and not row.name.startswith(f"{row.split}/"):
        return f"{row.split}/{row.name}"
    return row.name


def _start_tags(started: TrialStarted, meta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "config_hash", configuration_id(started.config)
    yield "sweep", started.sweep
    yield "arm", started.arm
    yield "seed", str(started.seed)
    yield "attempt", str(started.attempt)
    yield "data_hash", started.data_hash
    if started.split > 1:
        yield "split", str(started.split)
    yield "causal", str(started.causal).lower()
    if (length := row_length(started.config)) is not None:
        yield "seq_len", str(length)
    if "git_sha" in meta:
        yield "git_sha", str(meta["git_sha"])
