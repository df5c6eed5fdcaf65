"""The Ray Train carrier: a trial runs on several workers at once, their gradients averaged.

Whoever carries the trial (its Tune actor, or ``bkray train``) starts a ``TorchTrainer`` and hears
the leading worker's events over a wire. That worker writes the trial's files itself, and waits
after each evaluation until it has been heard, so that pruning ends the trial right there.
"""

import asyncio
import gc
import os
import threading
import time
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from bkray.atomic import write_text
from bkray.cluster.carriers import (
    Job,
    Parts,
    ask_to_stop,
    asked_to_stop,
    attempt,
    endings,
    one_line,
    outcome_of,
)
from bkray.cluster.crew import Crew
from bkray.cluster.preemption import NOTICE, PREEMPTED, preempted
from bkray.cluster.ray_internals import Abortable, cause_of, listening
from bkray.cluster.retries import WORKER_FAILED
from bkray.events import EvalDone, Event, TrialEnded
from bkray.overrides import build
from bkray.train.team import Team

_LISTEN_SECONDS = 0.5
"""How long a silent wire is listened to before looking whether the workers still live."""

_FAREWELL_SECONDS = 20.0
"""What a run may take to end by itself after the last event of its trial."""


class TeamBrokeError(Exception):
    """The leading worker has told how the trial failed; raised to end the others."""


def carry_by_workers(
    job: Job, parts: Parts, crew: Crew, scratch: str
) -> Generator[Event, None, None]:
    """Run a job on its workers; yield the leading one's events. ``scratch`` takes Ray's files.

    The last event is always ``TrialEnded``. Closing the generator ends the workers.
    """
    run = _Run(job, parts, crew, scratch)
    started, step = False, None
    try:
        for event in run.events():
            started, step = True, event.step
            yield event
            if isinstance(event, TrialEnded):
                run.wait(_FAREWELL_SECONDS)
                return
        if run.error is None:  # asked to stop while it waited for its workers
            asked = asked_to_stop(job)
            assert asked is not None, "workers say how their trial ended"
            yield from _last_words(job, parts, *asked, started=False, step=None)
            return
        write_text(job.folder / "error.txt", str(run.error))
        cause = cause_of(run.error)
        reason = f"{WORKER_FAILED}: {one_line(cause)}"
        yield from _last_words(job, parts, outcome_of(cause), reason, started=started, step=step)
    finally:
        run.abort()


class _Run:
    """One ``TorchTrainer.fit`` in a thread of its own."""

    def __init__(self, job: Job, parts: Parts, crew: Crew, scratch: str) -> None:
        self.error: Exception | None = None
        self._job = job
        self._wire = ray.remote(num_cpus=0)(_Wire).remote()
        self._trainer = _Trainer(
            _work,
            train_loop_config={"job": job, "parts": parts, "wire": self._wire, "cwd": os.getcwd()},
            # nccl takes no two workers on one GPU
            torch_config=TorchConfig(backend="nccl" if crew.gpus >= 1 else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=crew.workers,
                use_gpu=crew.gpus > 0,
                resources_per_worker=crew.resources,
            ),
            run_config=train.RunConfig(
                name=f"{job.trial_id}-{time.time_ns()}",  # a known name would resume its run
                storage_path=scratch,
                callbacks=[listening()],
                failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=3),
                logging_config=train.LoggingConfig(log_level="ERROR"),
            ),
        )
        self._thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)
        self._thread.start()

    def events(self) -> Iterator[Event]:
        """Yield events until the workers are gone, or are not wanted before they came."""
        started = False
        while True:
            alive = self._thread.is_alive()  # before listening, or the last event is lost
            events = ray.get(self._wire.hear.remote(_LISTEN_SECONDS))
            started = started or bool(events)
            if NOTICE.given:
                ask_to_stop(self._job.folder, "interrupted", PREEMPTED)
            if not started and asked_to_stop(self._job) is not None:
                return
            for event in events:
                yield event
                if isinstance(event, EvalDone):
                    ray.get(self._wire.let_go_on.remote())
            if not events and not alive:
                return

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def abort(self) -> None:
        if self._thread.is_alive():
            self._trainer.abort()
            self._thread.join(_FAREWELL_SECONDS)
        ray.kill(self._wire)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # told as the trial's outcome, unless it told one itself
            self.error = error


class _Wire:
    """An actor between the leading worker and whoever carries the trial."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._heard = asyncio.Semaphore(0)

    async def say(self, event: Event) -> None:
        self._events.put_nowait(event)
        if isinstance(event, EvalDone):
            await self._heard.acquire()

    async def hear(self, seconds: float) -> list[Event]:
        """Return what was said since, none after so many seconds of silence."""
        try:
            events = [await asyncio.wait_for(self._events.get(), seconds)]
        except TimeoutError:
            return []
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    async def let_go_on(self) -> None:
        self._heard.release()


class _Trainer(Abortable, TorchTrainer):  # type: ignore[misc]  # ray is untyped
    """A trainer that can be ended from outside."""


def _last_words(
    job: Job, parts: Parts, outcome: str, reason: str, *, started: bool, step: int | None
) -> Iterator[Event]:
    """Write the end of a trial that cannot do so, as a further attempt; yield what is new."""
    sink = parts.open_sink(job.folder)
    for event in endings(job, outcome, reason, started=False, step=step):
        sink(event)
        if isinstance(event, TrialEnded) or not started:
            yield event
    sink.close()


def _work(given: dict[str, Any]) -> None:
    """What every worker does."""
    job: Job = given["job"]
    parts: Parts = given["parts"]
    os.chdir(given["cwd"])
    context = train.get_context()
    team = Team(context.get_world_rank(), context.get_world_size())
    if get_device().type == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    run_trial = partial(parts.run_trial, team=team)
    try:
        if team.leads:
            _lead(job, Parts(run_trial, parts.open_sink), given["wire"])
        else:
            config = build(job.overrides)
            for _ in run_trial(config, job.folder, sweep=job.sweep, stop=preempted):
                pass
    finally:
        gc.collect()  # a synchronised model holds on to the process group, in a circle


def _lead(job: Job, parts: Parts, wire: Any) -> None:
    outcome = ""
    for event in attempt(job, parts):
        ray.get(wire.say.remote(event))
        outcome = event.outcome if isinstance(event, TrialEnded) else outcome
    if outcome in ("failed", "oom"):
        raise TeamBrokeError(outcome)
