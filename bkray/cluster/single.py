"""One trial by itself: what ``bkray train`` runs."""

import json
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bkray import trial
from bkray.cluster.carriers import (
    Job,
    ask_to_stop,
    asked_to_stop,
    attempt,
    forget_stop,
)
from bkray.cluster.crew import Crew
from bkray.cluster.interrupt import on_interrupt
from bkray.cluster.options import check_crew
from bkray.cluster.retries import broke, tries_again
from bkray.cluster.session import cores, places, session
from bkray.cluster.tuner import PARTS
from bkray.config import TrialConfig
from bkray.errors import BkrayError, ConfigError
from bkray.events import Event, TrialEnded
from bkray.overrides import flatten
from bkray.sinks.sink import Sink, SweepView, Tee

Carry = Callable[[], Generator[Event, None, None]]
"""Makes one attempt at a trial."""


def train_alone(
    config: TrialConfig, folder: Path, views: Sequence[SweepView], crew: Crew | None = None
) -> dict[str, Any]:
    """Train in ``folder`` and return what its ``outcome.json`` says.

    A trial that ended ``ok`` there is not run again; any other goes on from its checkpoint. A
    ``crew`` trains it on Ray Train, else it runs in this process.

    Raises:
        ConfigError, DataError: nothing can be trained as configured.
        ResumeError: the folder holds the checkpoint of another trial.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"the output folder {folder} is a file: give another --out")
    if crew is not None:
        check_crew(config, crew.workers, crew.gpus)
        places(threads=crew.threads, workers=crew.workers, n_trials=1, asked=1, n_cores=cores())
    trial_id, data_hash = trial.identify(config)
    if not _is_done(folder, trial_id):
        folder.mkdir(parents=True, exist_ok=True)
        job = Job(
            number=0,
            trial_id=trial_id,
            data_hash=data_hash,
            sweep="",
            overrides=flatten(config),
            folder=folder,
            sweep_folder=folder,
            deadline=None,
        )
        forget_stop(folder)
        view = Tee(*(view.trial(trial_id) for view in views))
        with (
            _carrier(job, crew) as carry,
            on_interrupt(partial(ask_to_stop, folder, "interrupted")),
        ):
            while _goes_on(job, carry, view, config, crew.workers if crew else 1):
                pass
        view.close()
        forget_stop(folder)
    said: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return said


def _goes_on(job: Job, carry: Carry, view: Sink, config: TrialConfig, workers: int) -> bool:
    """Make one attempt; return whether it broke and another one is to follow."""
    again = False
    with closing(carry()) as events:
        for event in events:
            said: Event = event
            if isinstance(event, TrialEnded):
                remedy = tries_again(job.folder, event, config.train, workers)
                again = bool(remedy) and asked_to_stop(job) is None
                if again:
                    said = broke(event, remedy)
            view(said)
    return again


@contextmanager
def _carrier(job: Job, crew: Crew | None) -> Iterator[Carry]:
    """Yield what runs the job, in this process or on the workers of a Ray session."""
    if crew is None:
        yield partial(attempt, job, PARTS, passed_on=(BkrayError,), patience_seconds=0.0)
        return
    with session(address=None, threads=crew.threads, needs=crew.needs(nested=True)):
        from bkray.cluster.train_carrier import carry_by_workers

        scratch = job.folder.resolve() / ".train"
        try:
            yield partial(carry_by_workers, job, PARTS, crew, str(scratch))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _is_done(folder: Path, trial_id: str) -> bool:
    """Whether this very trial has ended ``ok`` in the folder."""
    described, outcome = folder / "config.json", folder / "outcome.json"
    if not (described.exists() and outcome.exists()):
        return False
    same = json.loads(described.read_text())["trial_id"] == trial_id
    return bool(same and json.loads(outcome.read_text())["outcome"] == "ok")
