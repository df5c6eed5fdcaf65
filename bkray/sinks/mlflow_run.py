"""One run in MLflow, written late: what was collected goes out together, in few requests.

A trial that starts and ends between two writings costs five of them: create, one batch of
parameters, metrics and tags, the data set, the config, the end.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bkray.sinks.mlflow_client import PatientClient

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

STATUS = {
    "ok": "FINISHED",
    "pruned": "KILLED",
    "interrupted": "KILLED",
    "diverged": "FAILED",
    "oom": "FAILED",
    "failed": "FAILED",
}
_LONGEST_TAG = 500
_SUMMARY = re.compile(r"(best|final)/.*|n|n_diverged")
"""Metrics that may be corrected at the step at which they were told."""


class LateRun:
    """A run known by the tags ``identity``, opened and changed by ``write`` alone.

    ``run_id`` is ``None`` until then, and if the store refuses the run. What the run was told
    earlier, by another process, is not told again; gaps in it are filled.
    """

    def __init__(
        self, client: PatientClient, experiment_id: str, name: str, start_ms: int
    ) -> None:
        self.client = client
        self.run_id: str | None = None
        self.started_ms = start_ms
        self.identity: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.params: dict[str, str] = {}
        self.metrics: list[Metric] = []
        self.datasets: list[DatasetInput] = []
        self.files: list[tuple[Path, str]] = []
        """Files and the folder, among the run's artifacts, that each of them goes into."""
        self.config: Mapping[str, Any] | None = None
        self.new = False
        """Whether nobody else can have made the run, so that it need not be looked for."""
        self.n_told = 0
        """Points of metrics that went out."""
        self._experiment_id = experiment_id
        self._name = name
        self._ended: tuple[str, int] | None = None
        self._artifact_uri = ""
        self._told: dict[str, int] = {}
        self._histories: dict[str, dict[int, set[float]]] = {}
        self._refused = False

    def end(self, outcome: str, unix_ms: int) -> None:
        """Let the run end with the tag ``outcome`` and the status that goes with it."""
        self.tags["outcome"] = outcome
        self.terminate(STATUS[outcome], unix_ms)

    def terminate(self, status: str, unix_ms: int) -> None:
        """Let the run end with the next writing."""
        self._ended = (status, unix_ms)

    def open(self) -> "Run | None":
        """Open the run, running again or new; return it as it was found, ``None`` if it is new."""
        if self.run_id is not None or self._refused:
            return None
        created: list[bool] = []  # tried without an answer: it may be there by now

        def find_or_create(client: "MlflowClient") -> "Run":
            if not (self.new and not created):
                found = client.search_runs([self._experiment_id], self._wanted(), max_results=1)
                if found:
                    return found[0]
            created.append(True)
            tags = {name: tag(value) for name, value in {**self.tags, **self.identity}.items()}
            return client.create_run(self._experiment_id, self.started_ms, tags, self._name)

        run = self.client.ask(find_or_create)
        if run is None:
            self._refused = True
            return None
        self.run_id, self._artifact_uri = run.info.run_id, run.info.artifact_uri
        self.started_ms = run.info.start_time
        if created:
            self.tags.clear()
            return None
        self._go_on(run)
        return run

    def write(self) -> None:
        """Bring the store up to date; what it refuses is left out.

        Raises:
            StoreAwayError: the store does not answer and the view is closing.
        """
        self.open()
        run_id = self.run_id
        if run_id is None:
            return
        self._write_batch(run_id)
        if self.datasets:
            datasets, self.datasets = self.datasets, []
            self.client.tell(lambda c: c.log_inputs(run_id, datasets=datasets))
        self._write_files()
        if self._ended is not None:
            (status, unix_ms), self._ended = self._ended, None
            self.client.tell(lambda c: c.set_terminated(run_id, status, unix_ms))

    def _wanted(self) -> str:
        return " and ".join(f"tags.`{key}` = '{value}'" for key, value in self.identity.items())

    def _go_on(self, run: "Run") -> None:
        """Take a run up again: forget how it ended and what it need not be told twice."""
        run_id = run.info.run_id
        self._told = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        for name in run.data.params:  # the store refuses another value, and all that comes with it
            self.params.pop(name, None)
        if self._ended is None:
            for name in run.data.tags.keys() & {"outcome", "stop_reason"}:
                self.client.tell(partial(_delete_tag, run_id=run_id, name=name))
            self.client.tell(lambda c: c.update_run(run_id, status="RUNNING"))

    def _write_batch(self, run_id: str) -> None:
        from mlflow.entities import Param, RunTag

        metrics = [metric for metric in self.metrics if self._is_news(run_id, metric)]
        self.n_told += len(metrics)
        params = [Param(name, value) for name, value in self.params.items()]
        tags = [RunTag(name, tag(value)) for name, value in self.tags.items()]
        self.metrics, self.params, self.tags = [], {}, {}
        if not self.client.tell(lambda c: c.log_batch(run_id, metrics, params, tags)):
            # one bad name must not take the rest with it
            self.client.tell(lambda c: c.log_batch(run_id, metrics=metrics))
            self.client.tell(lambda c: c.log_batch(run_id, params=params))
            self.client.tell(lambda c: c.log_batch(run_id, tags=tags))

    def _is_news(self, run_id: str, metric: "Metric") -> bool:
        """Say whether the run lacks a point. What came beyond it says nothing of that: a store
        that was away, or a driver that was killed, leaves gaps in the middle."""
        if metric.key not in self._told or metric.step > self._told[metric.key]:
            return True
        seen = self._history(run_id, metric.key).get(metric.step, set())
        return metric.value not in seen if _SUMMARY.fullmatch(metric.key) else not seen

    def _history(self, run_id: str, key: str) -> dict[int, set[float]]:
        """Return the values by step that the run had of a metric when it was taken up again."""
        if key not in self._histories:
            known: dict[int, set[float]] = {}
            for point in self.client.ask(lambda c: c.get_metric_history(run_id, key)) or ():
                known.setdefault(point.step, set()).add(point.value)
            self._histories[key] = known
        return self._histories[key]

    def _write_files(self) -> None:
        if self.config is None and not self.files:
            return
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        place = get_artifact_repository(self._artifact_uri, self.client.tracking.uri)
        files, self.files = self.files, []
        for path, folder in files:
            self.client.tell(partial(_log_artifact, place=place, path=path, folder=folder))
        if self.config is not None:
            with tempfile.TemporaryDirectory() as there:
                path = Path(there) / "config.json"
                path.write_text(json.dumps(dict(self.config), indent=2, default=str))
                self.client.tell(partial(_log_artifact, place=place, path=path, folder=""))
            self.config = None


def _delete_tag(client: "MlflowClient", run_id: str, name: str) -> None:
    client.delete_tag(run_id, name)


def _log_artifact(_: object, place: "ArtifactRepository", path: Path, folder: str) -> None:
    place.log_artifact(str(path), folder or None)  # type: ignore[no-untyped-call]  # mlflow's


def tag(value: object) -> str:
    """Return the text of a tag, cut to a length that every store takes."""
    return str(value)[:_LONGEST_TAG]
