"""The Ray Tune carrier: a trial runs in its Tune actor, or on Ray Train workers that the actor
starts; the actor then takes the next one.

Tune asks for jobs one at a time and brings events back; deciding, telling and showing stay with
the driver.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.actor import exit_actor
from ray.tune.experiment import Trial

from bkray.cluster.carriers import (
    Job,
    Parts,
    ask_to_stop,
    attempt,
    forget_stop,
)
from bkray.cluster.crew import Crew
from bkray.cluster.driver import Driver
from bkray.cluster.packing import Probed, keep_to_share
from bkray.cluster.preemption import NOTICE
from bkray.cluster.ray_internals import end_one_trial_when_memory_runs_out, listen
from bkray.cluster.session import SLOT
from bkray.cluster.tune_line import Events, Jobs, Line, NothingMore
from bkray.events import EvalDone, Event, TrialEnded
from bkray.overrides import build
from bkray.train import attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How Tune runs jobs.

    ``nested``: Ray Train carries each trial; else its Tune actor does, as a crew of one.
    ``probed``: what a trial took of a GPU, where each is to get the share that it needs.
    """

    concurrency: int
    crew: Crew
    nested: bool
    probed: Probed | None = None

    def gpus_of(self, job: Job) -> float:
        """Return the GPUs that a trial reserves: a whole one after it ran out of its share."""
        if self.probed is None:
            return self.crew.workers * self.crew.gpus
        if any(failure.outcome == "oom" for failure in attempts.last(job.folder).failures):
            return 1.0
        return self.probed.gpus(build(job.overrides))


def carry_on_tune(driver: Driver, parts: Parts, plan: Plan, folder: str) -> None:
    """Run every job on Ray Tune; ``folder`` takes Tune's own files and is removed at the end.

    Raises:
        Whatever a view or the ledger raised; the trials under way are asked to end first.
    """
    end_one_trial_when_memory_runs_out()
    line = Line(driver, plan.gpus_of)
    trainable = tune.with_parameters(
        CarriedTrial, parts=parts, crew=plan.crew if plan.nested else None, scratch=folder
    )
    trainable = tune.with_resources(trainable, _resources(plan))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=Jobs(line, plan.concurrency),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder,
            verbose=0,
            callbacks=[Events(line, parts)],
            stop=NothingMore(line),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if line.error is not None:
        raise line.error


def _name(trial: Trial) -> str:
    return str(trial.trial_id)


def _resources(plan: Plan) -> Any:
    """Return what Tune sets aside for a trial.

    A nested one holds only slots, which admit it: Ray Train takes cores and GPUs itself, and if
    the trial held them too, none would be left for its workers.
    """
    crew = plan.crew
    if plan.nested:
        return tune.PlacementGroupFactory([{SLOT: float(crew.threads)}] * crew.workers)
    if plan.probed is None:
        return crew.resources

    def own(config: dict[str, Any]) -> Any:
        gpus = plan.gpus_of(config["job"])
        return tune.PlacementGroupFactory([crew.resources | {"GPU": gpus}])

    return own


class CarriedTrial(tune.Trainable):  # type: ignore[misc]  # ray is untyped
    """Runs one job; ``step`` brings its events up to the next evaluation, or to its end."""

    def setup(self, config: dict[str, Any], parts: Parts, crew: Crew | None, scratch: str) -> None:
        self._parts = parts
        self._crew = crew
        self._scratch = scratch
        self._leaves = False
        if ray.get_runtime_context().get_actor_id() is not None:  # signals are an actor's own
            listen()
            assigned = ray.get_runtime_context().get_assigned_resources()
            keep_to_share(assigned.get("GPU", 0.0))
        os.chdir(config["cwd"])
        self._start(config["job"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._start(new_config["job"])
        return True

    def step(self) -> dict[str, Any]:
        if self._leaves:
            exit_actor()
        self._under_way = True
        events: list[Event] = []
        for event in self._events:
            events.append(event)
            self._note(event)
            if _is_validation(event):
                break
        ended = isinstance(events[-1], TrialEnded)
        # One that was told to leave must not be given another trial, so it says the end by dying.
        self._leaves = ended and NOTICE.given
        return {"events": events[:-1] if self._leaves else events, "done": ended != self._leaves}

    def cleanup(self) -> None:
        """Let a trial that is under way end as interrupted, and write that down.

        One that never took a step has nothing to end: Tune sets actors up that it then drops.
        """
        if self._under_way:
            ask_to_stop(self._job.folder, "interrupted", "the sweep ended")
            for event in self._events:
                self._note(event)
            forget_stop(self._job.folder)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial keeps its checkpoints in its own folder."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a trial finds its checkpoints in its own folder."""

    def _start(self, job: Job) -> None:
        self._job, self._under_way = job, False
        self._events = self._carry(job)

    def _carry(self, job: Job) -> Iterator[Event]:
        if self._crew is None:
            return attempt(job, self._parts)
        from bkray.cluster.train_carrier import carry_by_workers  # Ray Train takes 3 s to import

        return carry_by_workers(job, self._parts, self._crew, self._scratch)

    def _note(self, event: Event) -> None:
        self._under_way = not isinstance(event, TrialEnded)


def _is_validation(event: Event) -> bool:
    return isinstance(event, EvalDone) and event.split == "val"
