"""The runs of a sweep in MLflow: the sweep's, below it configurations, below them their seeds.

All of this happens in one thread. With one seed per configuration, the trial is the
configuration's run. The tag ``level`` says which a run is; ``sweep_run`` finds all of a sweep.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bkray.events import TrialStarted
from bkray.overrides import configuration_id
from bkray.sinks.mlflow_client import PatientClient
from bkray.sinks.mlflow_files import Placed, TrialFiles
from bkray.sinks.mlflow_names import configuration_name, knobs
from bkray.sinks.mlflow_run import LateRun, tag
from bkray.sinks.mlflow_seeds import Configuration
from bkray.sinks.mlflow_system import SystemMetrics
from bkray.sinks.mlflow_ui import experiment_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

_SAMPLE_MS = 5000
_NOTE = """\
The runs below are its configurations. *Artifacts* holds the report and its figures, *System
metrics* how busy the driver's machine was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepShown:
    """A sweep as the views know it: see ``MlflowView``."""

    experiment: str
    name: str
    meta: Mapping[str, Any]
    swept: tuple[str, ...]
    seeds: int
    first_seed: int = 0

    def shares_its_seeds(self, seed: int) -> bool:
        """Say whether a trial is one of several seeds; a rival with a seed of its own is not."""
        return self.seeds > 1 and 0 <= seed - self.first_seed < self.seeds

    @property
    def key(self) -> str:
        """The name as a tag that filters and addresses bear."""
        return re.sub(r"[^\w.:-]", "_", self.name)


class SweepRun:
    """The sweep's run, and the configurations that have several seeds.

    ``watched``: it has the load of this machine, on which the sweep runs.
    """

    def __init__(
        self,
        client: PatientClient,
        shown: SweepShown,
        files: TrialFiles | None = None,
        *,
        watched: bool = True,
    ) -> None:
        self.client = client
        self.shown = shown
        self._files = files
        self._watched = watched
        self.experiment_id = ""
        self.run: LateRun | None = None
        self.interrupted: set[str] = set()
        self._system: SystemMetrics | None = None
        self._sampled_ms = 0
        self._is_new = False
        self._seen: set[str] = set()
        self._configurations: dict[str, Configuration] = {}

    def begin(self, unix_ms: int) -> None:
        """Open experiment and run; without them, ``run`` stays ``None`` and nothing is told."""
        shown = self.shown
        views = experiment_tags(
            shown.key, shown.name, shown.swept, seeds=shown.seeds, unix_ms=unix_ms
        )
        experiment_id = self.client.ask(lambda c: self._open_experiment(c, views))
        if experiment_id is None:
            return
        self.experiment_id = experiment_id
        run = self.late_run(shown.name, unix_ms)
        run.identity |= {"level": "sweep"}
        run.tags |= {key: tag(value) for key, value in shown.meta.items()}
        run.tags["mlflow.note.content"] = _NOTE
        self._is_new = run.open() is None
        self.run = run if run.run_id is not None else None
        if self._watched:  # made by the thread that reads it: psutil counts per thread
            self._system = SystemMetrics()
        self._sampled_ms = unix_ms

    def late_run(self, name: str, unix_ms: int) -> LateRun:
        """Return a run of this sweep that is not open yet."""
        run = LateRun(self.client, self.experiment_id, name, unix_ms)
        run.identity["sweep_run"] = self.shown.key
        return run

    def is_new(self, identity: str) -> bool:
        """Say, once per identity, whether no run with it can exist: the sweep itself is new."""
        first = identity not in self._seen
        self._seen.add(identity)
        return first and self._is_new

    def configuration(self, started: TrialStarted, unix_ms: int) -> Configuration:
        """Return the configuration that a trial is a seed of."""
        config_hash = configuration_id(started.config)
        if config_hash not in self._configurations:
            run = self.late_run(configuration_name(started, self.shown.swept), unix_ms)
            run.identity |= {"config_hash": config_hash, "level": "configuration"}
            run.new = self.is_new(config_hash)
            run.params |= dict(knobs(started, self.shown.swept))
            run.tags |= {
                "arm": started.arm,
                "sweep": started.sweep,
                "data_hash": started.data_hash,
            }
            if self.run is not None and self.run.run_id is not None:
                run.tags["mlflow.parentRunId"] = self.run.run_id
            self._configurations[config_hash] = Configuration(run, self.shown.seeds)
        return self._configurations[config_hash]

    def files_of(self, trial_id: str) -> Sequence[Placed]:
        """Return the files that a trial's run gets when it ends."""
        return self._files.of(trial_id) if self._files is not None else ()

    def attach(self, files: Sequence[Placed]) -> None:
        """Take files as artifacts, each into its folder."""
        if self.run is not None:
            self.run.files += files

    def sample(self, unix_ms: int, *, last: bool = False) -> None:
        """Read the machine's load every five seconds; the step is the sweep's age in seconds."""
        from mlflow.entities import Metric

        if self.run is None or self._system is None:
            return
        if unix_ms - self._sampled_ms < _SAMPLE_MS and not last:
            return
        self._sampled_ms = unix_ms
        step = (unix_ms - self.run.started_ms) // 1000
        self.run.metrics += [Metric(k, v, unix_ms, step) for k, v in self._system.read()]

    def write(self) -> None:
        """Bring the store up to date with the sweep and its configurations."""
        if self.run is None:
            return
        for config_hash, configuration in list(self._configurations.items()):
            configuration.write()
            if configuration.complete:
                del self._configurations[config_hash]
        self.run.write()

    def end(self, unix_ms: int) -> None:
        """End what has not ended, and write it."""
        if self.run is None:
            return
        self.sample(unix_ms, last=True)
        for configuration in self._configurations.values():
            configuration.leave(unix_ms)
        self.run.terminate("KILLED" if self.interrupted else "FINISHED", unix_ms)
        self.write()

    def _open_experiment(self, client: "MlflowClient", views: Mapping[str, str]) -> str:
        name = self.shown.experiment
        known = client.get_experiment_by_name(name)
        if known is None:
            place = self.client.tracking.artifacts
            return client.create_experiment(name, artifact_location=place, tags=dict(views))
        if known.lifecycle_stage == "deleted":
            client.restore_experiment(known.experiment_id)
        for key, value in _changed(known, views):
            client.set_experiment_tag(known.experiment_id, key, value)
        return known.experiment_id


def _changed(known: "Experiment", views: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((key, value) for key, value in views.items() if known.tags.get(key) != value)
