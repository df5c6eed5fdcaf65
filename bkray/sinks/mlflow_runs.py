"""The runs of a sweep in MLflow: a parent, and under it one child per trial.

All of this happens in one thread; every request bears to be repeated.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bkray.events import Event, Row, TrialEnded, TrialStarted, rows
from bkray.sinks.mlflow_client import PatientClient
from bkray.sinks.mlflow_store import Tracking
from bkray.sinks.sink import trial_label

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_MOST_METRICS = 1000  # in one request
_LONGEST_TAG = 500
_LONGEST_DIGEST = 36
_STATUS = {
    "ok": "FINISHED",
    "pruned": "KILLED",
    "interrupted": "KILLED",
    "diverged": "FAILED",
    "oom": "FAILED",
    "failed": "FAILED",
}


class SweepRun:
    """The parent run; ``run_id`` is ``None`` until ``begin``, and if the store refuses it."""

    def __init__(
        self,
        client: PatientClient,
        tracking: Tracking,
        experiment: str,
        name: str,
        meta: Mapping[str, Any],
        swept: Sequence[str],
    ) -> None:
        self.client = client
        self.meta = {key: _tag(value) for key, value in meta.items()}
        self.swept = tuple(swept)
        self.run_id: str | None = None
        self.experiment_id = ""
        self.interrupted = False
        self._tracking = tracking
        self._experiment = experiment
        self._name = name

    def begin(self, unix_ms: int) -> None:
        experiment_id = self.client.ask(self._open_experiment)
        if experiment_id is None:
            return
        self.experiment_id = experiment_id
        identity = {"sweep_run": re.sub(r"[^\w.:-]", "_", self._name)}
        run = self.find_or_create(identity, self._name, self.meta, unix_ms)
        self.run_id = None if run is None else run.info.run_id

    def end(self, unix_ms: int) -> None:
        run_id = self.run_id
        if run_id is not None:
            status = "KILLED" if self.interrupted else "FINISHED"
            self.client.ask(lambda c: c.set_terminated(run_id, status, unix_ms))

    def find_or_create(
        self, identity: Mapping[str, str], name: str, tags: Mapping[str, str], unix_ms: int
    ) -> "Run | None":
        """Return the run with the tags ``identity``, running again or new; ``None`` if refused."""
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())

        def ask(client: "MlflowClient") -> "Run":
            for run in client.search_runs([self.experiment_id], wanted, max_results=1):
                client.update_run(run.info.run_id, status="RUNNING")
                return run
            return client.create_run(
                self.experiment_id, start_time=unix_ms, tags={**tags, **identity}, run_name=name
            )

        return self.client.ask(ask)

    def _open_experiment(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        try:
            place = self._tracking.artifacts
            return client.create_experiment(self._experiment, artifact_location=place)
        except MlflowException as error:
            known = client.get_experiment_by_name(self._experiment)
            if known is None:
                raise error
        if known.lifecycle_stage == "deleted":
            client.restore_experiment(known.experiment_id)
        return known.experiment_id


class TrialRun:
    """The child run of one attempt at a trial; a later attempt goes on with the same run.

    Steps that an earlier attempt already told are not told again: they are the same numbers.
    """

    def __init__(self, sweep: SweepRun) -> None:
        self._sweep = sweep
        self._client = sweep.client
        self._run_id: str | None = None
        self._ended = False
        self._metrics: list[Metric] = []
        self._nonfinite: set[str] = set()
        self._told: dict[str, int] = {}

    @property
    def n_pending(self) -> int:
        return len(self._metrics)

    def take(self, event: Event, unix_ms: int) -> None:
        if isinstance(event, TrialStarted):
            self._begin(event, unix_ms)
        elif self._run_id is not None:
            self._collect(event, unix_ms)
        if isinstance(event, TrialEnded):
            self._end(event.outcome, event.reason, unix_ms)

    def leave(self, unix_ms: int) -> None:
        """End a run whose trial said nothing of its end."""
        if not self._ended:
            self._end("interrupted", "", unix_ms)

    def flush(self) -> None:
        run_id = self._run_id
        while self._metrics and run_id is not None:
            some, self._metrics = self._metrics[:_MOST_METRICS], self._metrics[_MOST_METRICS:]
            self._client.ask(partial(_log_metrics, run_id=run_id, metrics=some))

    def _begin(self, started: TrialStarted, unix_ms: int) -> None:
        parent = self._sweep.run_id
        if parent is None:
            return
        identity = {"mlflow.parentRunId": parent, "trial_id": started.trial_id}
        label = trial_label(started, self._sweep.swept)
        run = self._sweep.find_or_create(identity, label, {}, unix_ms)
        if run is None:
            return
        self._run_id = run.info.run_id
        self._nonfinite = set(run.data.tags.get("nonfinite", "").split())
        self._told = self._client.ask(lambda c: _last_steps(c, run)) or {}
        self._client.ask(lambda c: _describe(c, run, started, self._sweep))

    def _collect(self, event: Event, unix_ms: int) -> None:
        from mlflow.entities import Metric

        for row in rows(event):
            if not math.isfinite(row.value):
                self._nonfinite.add(row.name)
            elif row.kind == "end" or (
                row.step == event.step and row.step > self._told.get(_metric_key(row), -1)
            ):
                self._metrics.append(Metric(_metric_key(row), row.value, unix_ms, row.step))

    def _end(self, outcome: str, reason: str, unix_ms: int) -> None:
        from mlflow.entities import RunTag

        self._ended = True
        self._sweep.interrupted |= outcome == "interrupted"
        run_id = self._run_id
        if run_id is None:
            return
        self.flush()
        names = " ".join(sorted(self._nonfinite))
        tags = {"outcome": outcome, "stop_reason": reason, "nonfinite": names}
        told = [RunTag(key, _tag(value)) for key, value in tags.items() if value]
        self._client.ask(lambda c: c.log_batch(run_id, tags=told))
        self._client.ask(lambda c: c.set_terminated(run_id, _STATUS[outcome], unix_ms))


def _metric_key(row: Row) -> str:
    """Return the name in MLflow, which knows no split: ``act/...`` is the validation's there."""
    mixed_up = row.kind in ("steps", "eval") and row.split != "val"
    if mixed_up and not row.name.startswith(f"{row.split}/"):
        return f"{row.split}/{row.name}"
    return row.name


def _log_metrics(client: "MlflowClient", run_id: str, metrics: "list[Metric]") -> None:
    client.log_batch(run_id, metrics=metrics)


def _last_steps(client: "MlflowClient", run: "Run") -> dict[str, int]:
    """Return the last step that each metric of a run was told for."""
    histories = (client.get_metric_history(run.info.run_id, name) for name in run.data.metrics)
    return {told[0].key: max(metric.step for metric in told) for told in histories if told}


def _describe(client: "MlflowClient", run: "Run", started: TrialStarted, sweep: SweepRun) -> None:
    """Log what is known from the start: tags, knobs, the whole config, the data set."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    run_id = run.info.run_id
    for name in run.data.tags.keys() & {"outcome", "stop_reason"}:  # of an earlier attempt
        client.delete_tag(run_id, name)
    params = [Param(name, str(value)) for name, value in _knobs(started, sweep.swept)]
    tags = [RunTag(name, value) for name, value in _start_tags(started, sweep)]
    client.log_batch(run_id, params=params, tags=tags)
    client.log_dict(run_id, dict(started.config), "config.json")
    corpus = str(started.config.get("data.corpus", "unknown"))
    source = json.dumps({"uri": corpus})
    data = Dataset(corpus, started.data_hash[:_LONGEST_DIGEST], "local", source)
    use = InputTag("mlflow.data.context", "training")
    client.log_inputs(run_id, datasets=[DatasetInput(data, tags=[use])])


def _knobs(started: TrialStarted, swept: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the swept knobs and those of the model: a handful, where the config has dozens."""
    for name, value in started.config.items():
        if name in swept or name.startswith("model."):
            yield name, value
    yield "n_params", started.n_params


def _start_tags(started: TrialStarted, sweep: SweepRun) -> Iterator[tuple[str, str]]:
    yield "config_hash", started.trial_id
    yield "sweep", started.sweep
    yield "arm", started.arm
    yield "seed", str(started.seed)
    yield "attempt", str(started.attempt)
    yield "data_hash", started.data_hash
    yield "causal", str(started.causal).lower()
    if "model.n_seq" in started.config:
        yield "seq_len", str(started.config["model.n_seq"])
    if "git_sha" in sweep.meta:
        yield "git_sha", sweep.meta["git_sha"]


def _tag(value: object) -> str:
    return str(value)[:_LONGEST_TAG]
