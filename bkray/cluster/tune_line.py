"""Between Tune and the driver: Tune asks for jobs, and brings their events."""

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from bkray.cluster.carriers import Job, Parts, one_line, outcome_of
from bkray.cluster.driver import Driver
from bkray.cluster.retries import WORKER_DIED
from bkray.events import Event


@dataclass(slots=True)
class Line:
    """The way between Tune and the driver. Tune would take an error of ours for one of the trial,
    so it is kept here, the sweep stops, and ``carry_on_tune`` raises it."""

    driver: Driver
    gpus_of: Callable[[Job], float]
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
        job = self.jobs[tune_id]
        self._guard(lambda: self.driver.placed(job, self.gpus_of(job)))

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


class Jobs(Searcher):  # type: ignore[misc]  # ray is untyped
    """Gives Tune its configs: the driver's jobs, at most ``concurrency`` at a time."""

    def __init__(self, line: Line, concurrency: int) -> None:
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


class Events(tune.Callback):  # type: ignore[misc]  # ray is untyped
    """Hands events to the driver as they come."""

    def __init__(self, line: Line, parts: Parts) -> None:
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


class NothingMore(tune.Stopper):  # type: ignore[misc]  # ray is untyped
    """Ends a sweep whose only trials wait for a place that others hold."""

    def __init__(self, line: Line) -> None:
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
