"""The training loop, a generator of events: the one that every carrier runs."""

import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from bkray.events import EvalDone, Event, MemoryPeak, Rewound, Saving, Warned
from bkray.stability import Verdict, judge
from bkray.train import checkpoint
from bkray.train.diagnosis import write_forensics
from bkray.train.forensics import OLDEST_STEPS
from bkray.train.ladder import rung_done, save_rung
from bkray.train.run import (
    Ending,
    Run,
    Stop,
    peak_memory_mib,
    validation_at,
)
from bkray.train.spectrum import scan_in_float64, spectrum
from bkray.train.window import train_window


def train(run: Run, stop: Stop) -> Generator[Event, None, Ending]:
    """Train to the last step, a divergence, or a stop; yield what happens, return why it ended.

    A trial that goes on from a checkpoint asks ``stop`` before it trains.
    """
    plan, progress = run.config.train, run.progress
    asked = _asked(run, stop) if progress.step else None
    verdict = Verdict("healthy")
    while asked is None and run.progress.step < plan.steps:
        _remember_state(run, verdict)
        rung = run.rung
        window = train_window(run)
        yield window
        progress = run.progress
        progress.health, verdict, spikes = judge(
            progress.health,
            window,
            unigram_nats=run.task.unigram_nats,
            warmup_steps=run.task.warmup_steps,
        )
        yield from spikes
        doubled = any(spike.rule == "doubled" for spike in spikes)
        if doubled and verdict.state == "spiking" and _may_rewind(run):
            yield _rewind(run)
            continue
        improved = False
        is_last = progress.step == rung.last_step
        is_due = is_last or progress.step % plan.eval_every == 0
        if verdict.rule == "collapse" and progress.step >= plan.steps:
            verdict = Verdict("healthy")  # there is nothing left to save: its numbers will tell
        if is_due if verdict.state != "diverged" else verdict.rule == "collapse":
            before = progress.best_val_loss_nats
            evaluation = validate(run)
            yield MemoryPeak(step=progress.step, peak_mib=peak_memory_mib(run))
            yield evaluation
            improved = progress.best_val_loss_nats != before
            if not math.isfinite(evaluation.loss_nats):
                reason = f"validation loss is {evaluation.loss_nats} at step {progress.step}"
                verdict = Verdict("diverged", reason, progress.step, "validation")
        if verdict.state != "diverged" and progress.step >= plan.steps:
            run.task.settle(run)
        if run.config.ladder.rungs and (is_last or verdict.state == "diverged"):
            yield rung_done(run, rung, window.lr, diverged=verdict.state == "diverged")
        if verdict.state == "diverged":
            for message in write_forensics(run, verdict):
                yield Warned(step=progress.step, message=message)
            return Ending("diverged", verdict.reason)
        asked = _asked(run, stop)
        is_due = asked is not None or is_last or progress.step % plan.checkpoint_every == 0
        if run.folder is not None and (is_due or improved):
            yield Saving(step=progress.step)
            save(run, run.folder / checkpoint.FOLDER, last=is_due, best=improved)
            if run.config.ladder.rungs and is_last:
                save_rung(run, rung)
    return Ending("ok") if asked is None else Ending(*asked)


def validate(run: Run) -> EvalDone:
    """Score the fixed validation rows and keep the best and the latest loss."""
    loss_nats, metrics = run.task.score(run)
    progress = run.progress
    if run.config.train.monitor != "off":
        metrics = {**metrics, **_look_at_spectrum(run, validation_at(run).inputs_WN)}
    progress.final_val_loss_nats = loss_nats
    if progress.best_val_loss_nats is None or loss_nats < progress.best_val_loss_nats:
        progress.best_val_loss_nats = loss_nats
    progress.metrics = metrics
    return EvalDone(
        step=progress.step,
        tokens=progress.tokens,
        split="val",
        loss_nats=loss_nats,
        metrics=metrics,
    )


def _look_at_spectrum(run: Run, inputs_WN: Tensor) -> dict[str, float]:
    """Return the monitor's numbers, and let mixers scan in float64 from now on as they ask."""
    plan, progress = run.config.train, run.progress
    own = None
    if run.team.leads:
        own = spectrum(run.model, inputs_WN, chunk=plan.chunk, autocast=run.autocast)
    seen = run.team.gather(own)[0]  # all go by the same numbers
    assert seen is not None
    if plan.precision_upgrade is None:
        return seen.metrics
    for name, condition in seen.conditions.items():
        if condition > plan.precision_upgrade and name not in progress.precise_mixers:
            progress.precise_mixers.append(name)
    scan_in_float64(run.model, progress.precise_mixers)
    n_upgrades = float(len(progress.precise_mixers))
    return {**seen.metrics, "stability/precision_upgrades": n_upgrades}


def save(run: Run, folder: Path, *, last: bool, best: bool) -> None:
    """Write the checkpoints that are due."""
    rng = run.team.gather(checkpoint.rng_state())
    if run.team.leads:
        checkpoint.save(folder, {**run.state(), "rng": rng}, last=last, best=best)


def _remember_state(run: Run, verdict: Verdict) -> None:
    """Renew the snapshot, unless it is a good one and what came since may not be."""
    age = run.progress.step - run.memory.snapshot_step
    health = run.progress.health
    is_good = verdict.state == "healthy" and not health.explosion and not health.drift
    if run.memory.snapshot is None or is_good or _may_rewind(run) or age >= OLDEST_STEPS:
        run.memory.keep(run.state())


def _may_rewind(run: Run) -> bool:
    return run.config.train.on_spike == "rewind" and run.interventions_left > 0


def _rewind(run: Run) -> Rewound:
    """Go back to the start of the window and on from there with the data that comes next."""
    spiked = run.progress
    back, run.load_LE = checkpoint.restore(run.memory.copy(), run.model, run.optimizer)
    run.progress = replace(
        back,
        train_seconds=spiked.train_seconds,
        interventions=spiked.interventions + 1,
        precise_mixers=spiked.precise_mixers,
        health=replace(back.health, spike_count=spiked.health.spike_count),
    )
    return Rewound(step=spiked.step, to_step=back.step)


def _asked(run: Run, stop: Stop) -> tuple[str, str] | None:
    return next(filter(None, run.team.gather(stop())), None)
