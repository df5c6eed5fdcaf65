"""The Ray Tune carrier: a trial runs in its Tune actor, or on Ray Train workers that the actor
starts; the actor then takes the next one.

Tune asks for jobs one at a time and brings events back; deciding, telling and showing stay with
the driver.
"""

import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.actor import exit_actor
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from bkray.cluster.carriers import (
    Crew,
    Job,
    Parts,
    ask_to_stop,
    attempt,
    forget_stop,
    one_line,
    outcome_of,
)
from bkray.cluster.driver import Driver
from bkray.cluster.preemption import NOTICE
from bkray.cluster.ray_internals import end_one_trial_when_memory_runs_out, node_is_drained
from bkray.cluster.retries import WORKER_DIED
from bkray.cluster.session import SLOT
from bkray.events import EvalDone, Event, TrialEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How Tune runs jobs.

    ``nested``: Ray Train carries each trial; else its Tune actor does, as a crew of one.
    """

    concurrency: int
    crew: Crew
    nested: bool


def carry_on_tune(driver: Driver, parts: Parts, plan: Plan, folder: str) -> None:
    """Run every job on Ray Tune; ``folder`` takes Tune's own files and is removed at the end.

    Raises:
        Whatever a view or the ledger raised; the trials under way are asked to end first.
    """
    end_one_trial_when_memory_runs_out()
    line = _Line(driver)
    trainable = tune.with_parameters(
        CarriedTrial, parts=parts, crew=plan.crew if plan.nested else None, scratch=folder
    )
    trainable = tune.with_resources(trainable, _resources(plan))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_Jobs(line, plan.concurrency),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder,
            verbose=0,
            callbacks=[_Events(line, parts)],
            stop=_NothingMore(line),
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
    return {"CPU": float(crew.threads), "GPU": float(crew.gpus)}


class CarriedTrial(tune.Trainable):  # type: ignore[misc]  # ray is untyped
    """Runs one job; ``step`` brings its events up to the next evaluation, or to its end."""

    def setup(self, config: dict[str, Any], parts: Parts, crew: Crew | None, scratch: str) -> None:
        self._parts = parts
        self._crew = crew
        self._scratch = scratch
        self._leaves = False
        if ray.get_runtime_context().get_actor_id() is not None:  # signals are an actor's own
            NOTICE.listen(node_is_drained)
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


@dataclass(slots=True)
class _Line:
    """The way between Tune and the driver. Tune would take an error of ours for one of the trial,
    so it is kept here, the sweep stops, and ``carry_on_tune`` raises it."""

    driver: Driver
    jobs: dict[str, Job] = field(default_factory=dict)
    under_way: set[str] = field(default_factory=set)
    reached: bool = False
    """Whether a budget is spent."""
    error: Exception | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its callbacks at the start; nothing is ever restored from that."""
        return object, ()

    def next_job(self, tune_id: str) -> Job | None:
        if self.error is not None:
            return None
        try:
            job = self.driver.next_job()
        except Exception as error:  # raised again by carry_on_tune
            self._fail(error)
            return None
        if job is not None:
            self.jobs[tune_id] = job
        return job

    def placed(self, tune_id: str) -> None:
        self.under_way.add(tune_id)
        self._guard(lambda: self.driver.placed(self.jobs[tune_id]))

    def gone(self, tune_id: str) -> None:
        self.under_way.discard(tune_id)

    def take(self, tune_id: str, events: Sequence[Event]) -> None:
        if self.error is not None:
            return
        self._guard(lambda: self._take(self.jobs[tune_id], events))

    def bury(self, tune_id: str, error: BaseException, parts: Parts) -> None:
        job = self.jobs[tune_id]
        reason = f"{WORKER_DIED}: {one_line(error)}"
        own_sink = parts.open_sink(job.folder)
        self._guard(lambda: self.driver.bury(job, outcome_of(error), reason, own_sink))

    def out_of_patience(self) -> bool:
        """Return whether trials that still run are to be ended by force."""
        if self.error is None:
            self._guard(self._look_at_budget)
        return self.driver.out_of_patience

    def nothing_more(self) -> bool:
        """Return whether trials that wait for a place are not wanted any more."""
        return not self.under_way and (self.driver.stopping or self.reached)

    def _look_at_budget(self) -> None:
        self.reached = bool(self.driver.look_at_budget())

    def _take(self, job: Job, events: Sequence[Event]) -> None:
        for event in events:
            self.driver.take(job, event)

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # raised again by carry_on_tune
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.error = error
        self.driver.stop(f"the sweep failed: {one_line(error)}")


class _Jobs(Searcher):  # type: ignore[misc]  # ray is untyped
    """Gives Tune its configs: the driver's jobs, at most ``concurrency`` at a time."""

    def __init__(self, line: _Line, concurrency: int) -> None:
        super().__init__()
        self._line = line
        self._concurrency = concurrency
        self._running: set[str] = set()
        self._cwd = os.getcwd()

    def suggest(self, trial_id: str) -> Any:
        if len(self._running) >= self._concurrency:
            return None
        job = self._line.next_job(trial_id)
        if job is None:  # a trial that still runs may have to be tried again
            return None if self._running else Searcher.FINISHED
        self._running.add(trial_id)
        return {"job": job, "cwd": self._cwd}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study of the sweep is the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study of the sweep is the memory."""


class _Events(tune.Callback):  # type: ignore[misc]  # ray is untyped
    """Hands events to the driver as they come."""

    def __init__(self, line: _Line, parts: Parts) -> None:
        self._line = line
        self._parts = parts

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._line.placed(trial.trial_id)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self._line.out_of_patience():
            for trial in trials:
                actor = trial.temporary_state.ray_actor
                if trial.status == Trial.RUNNING and actor is not None:
                    ray.kill(actor)  # told as an error of the trial

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._line.gone(trial.trial_id)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        self._line.take(trial.trial_id, result.pop("events"))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._line.gone(trial.trial_id)
        self._line.bury(trial.trial_id, _error_of(trial), self._parts)


class _NothingMore(tune.Stopper):  # type: ignore[misc]  # ray is untyped
    """Ends a sweep whose only trials wait for a place that others hold."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._line.nothing_more()


def _error_of(trial: Trial) -> BaseException:
    """Return what a trial's actor died of; Tune keeps it beside its own files."""
    pickled = trial.pickled_error_file
    if pickled is None:  # killed while it was set up: there is a text, below its heading
        return RuntimeError(Path(trial.error_file).read_text().partition("\n")[2])
    error: BaseException = pickle.loads(Path(pickled).read_bytes())
    cause: BaseException | None = getattr(error, "cause", None)
    return cause or error
