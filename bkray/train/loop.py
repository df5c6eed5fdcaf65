"""The training loop, a generator of events: the one that every carrier runs."""

import math
import time
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bkray.events import EvalDone, Event, MemoryPeak, Rewound, Saving, StepsDone, Warned
from bkray.stability import Verdict, judge
from bkray.train import checkpoint
from bkray.train.diagnosis import write_forensics
from bkray.train.evaluate import evaluate
from bkray.train.findings import Remembered
from bkray.train.forensics import OLDEST_STEPS
from bkray.train.run import Ending, Run, Stop, next_guard, peak_memory_mib, take_step
from bkray.train.step import Step

WINDOW = 16
"""Steps between two copies from the device; a verdict lags by at most so many."""


def train(run: Run, stop: Stop) -> Generator[Event, None, Ending]:
    """Train to the last step, a divergence, or a stop; yield what happens, return why it ended.

    A trial that goes on from a checkpoint asks ``stop`` before it trains.
    """
    plan, progress = run.config.train, run.progress
    asked = _asked(run, stop) if progress.step else None
    verdict = Verdict("healthy")
    while asked is None and run.progress.step < plan.steps:
        _remember_state(run, verdict)
        window = train_window(run)
        yield window
        progress = run.progress
        progress.health, verdict, spikes = judge(
            progress.health, window, unigram_nats=run.unigram_nats
        )
        yield from spikes
        doubled = any(spike.rule == "doubled" for spike in spikes)
        if doubled and verdict.state == "spiking" and _may_rewind(run):
            yield _rewind(run)
            continue
        improved = False
        if verdict.state != "diverged" and _due(progress.step, plan.eval_every, plan.steps):
            before = progress.best_val_loss_nats
            evaluation = validate(run)
            yield MemoryPeak(step=progress.step, peak_mib=peak_memory_mib(run))
            yield evaluation
            improved = progress.best_val_loss_nats != before
            if not math.isfinite(evaluation.loss_nats):
                reason = f"validation loss is {evaluation.loss_nats} at step {progress.step}"
                verdict = Verdict("diverged", reason, progress.step, "validation")
        if verdict.state == "diverged":
            for message in write_forensics(run, verdict):
                yield Warned(step=progress.step, message=message)
            return Ending("diverged", verdict.reason)
        asked = _asked(run, stop)
        is_due = asked is not None or _due(progress.step, plan.checkpoint_every, plan.steps)
        if run.folder is not None and (is_due or improved):
            yield Saving(step=progress.step)
            save(run, run.folder / checkpoint.FOLDER, last=is_due, best=improved)
    return Ending("ok") if asked is None else Ending(*asked)


def train_window(run: Run) -> StepsDone:
    """Train to the end of the window, copy its numbers from the device once, and count them."""
    plan, progress = run.config.train, run.progress
    start, first = time.perf_counter(), progress.step + 1
    last = min(_next(progress.step, n) for n in (WINDOW, plan.eval_every, plan.checkpoint_every))
    last = min(last, plan.steps)
    said: list[Step] = []
    taken: list[tuple[dict[str, int], tuple[int, ...]]] = []
    guard = next_guard(run)
    for step in range(first, last):
        said.append(take_step(run, step, guard)[0])
        taken.append(run.batches.last_taken)
    with run.blocks.activations() as activations:
        last_said, lr = take_step(run, last, guard)
    said.append(last_said)
    taken.append(run.batches.last_taken)
    series, block_norms_SK, largest = _to_host(said, activations)
    seconds = time.perf_counter() - start
    losses, norms = series.pop("loss_nats"), series.pop("grad_norm")
    masked = [bool(value) for value in series.pop("masked")]
    _count(run, losses, norms, masked, seconds)
    run.memory.steps.extend(
        Remembered(
            step=first + i,
            loss_nats=losses[i],
            grad_norm=norms[i],
            block_norms=tuple(block_norms_SK[i]),
            masked=masked[i],
            batch=batch,
            starts=starts,
        )
        for i, (batch, starts) in enumerate(taken)
    )
    means = {name: sum(values) / len(values) for name, values in series.items()}
    return StepsDone(
        step=last,
        tokens=progress.tokens,
        loss_nats=tuple(losses),
        grad_norm=tuple(norms),
        lr=lr,
        window_seconds=seconds,
        metrics={f"train/{name.rpartition('/')[2]}": mean for name, mean in means.items()},
        masked=tuple(first + i for i, is_masked in enumerate(masked) if is_masked),
        block_norms=dict(
            zip(run.blocks.names, map(tuple, zip(*block_norms_SK, strict=True)), strict=True)
        ),
        activations=_largest_in_team(run, largest),
    )


def validate(run: Run) -> EvalDone:
    """Score the fixed validation windows and keep the best and the latest loss."""
    inputs_WN, targets_WN = run.validation
    loss_nats, metrics = evaluate(
        run.model,
        inputs_WN,
        targets_WN,
        batch_size=run.config.train.batch_size,
        autocast=run.autocast,
        kinds=run.kinds,
        team=run.team,
    )
    progress = run.progress
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


def save(run: Run, folder: Path, *, last: bool, best: bool) -> None:
    """Write the checkpoints that are due."""
    rng = run.team.gather(checkpoint.rng_state())
    if run.team.leads:
        checkpoint.save(folder, {**run.state(), "rng": rng}, last=last, best=best)


def _to_host(
    said: list[Step], activations: Mapping[str, Tensor]
) -> tuple[dict[str, list[float]], list[list[float]], dict[str, float]]:
    """Copy a window's numbers from the device, all at once.

    Returns every number's values by step S, the blocks' norms by step and block K, and the
    activations.
    """
    names = list(said[0].numbers)
    rows = [
        torch.cat([torch.stack([one.numbers[name].double() for name in names]), one.block_norms_K])
        for one in said
    ]
    largest = [value.double() for value in activations.values()]
    flat = torch.cat([*rows, *(value[None] for value in largest)])
    values: list[float] = flat.to("cpu", copy=True).tolist()
    width = len(rows[0])
    table_SC = [values[i * width : (i + 1) * width] for i in range(len(rows))]
    series = {name: [row[i] for row in table_SC] for i, name in enumerate(names)}
    norms_SK = [row[len(names) :] for row in table_SC]
    return series, norms_SK, dict(zip(activations, values[len(rows) * width :], strict=True))


def _largest_in_team(run: Run, own: dict[str, float]) -> dict[str, float]:
    """Return each block's largest activation in any process; NaN wins."""
    largest: dict[str, float] = {}
    for of_one in run.team.gather(own):
        for name, value in of_one.items():
            before = largest.get(name, value)
            largest[name] = before if math.isnan(before) or value <= before else value
    return largest


def _count(
    run: Run, losses: list[float], norms: list[float], masked: list[bool], seconds: float
) -> None:
    progress, config = run.progress, run.config
    progress.step += len(losses)
    progress.tokens += len(losses) * config.train.batch_size * config.model.n_seq
    progress.train_seconds += seconds
    for norm in norms:
        progress.norms.add(norm)
    finite = (math.isfinite(a) and math.isfinite(b) for a, b in zip(losses, norms, strict=True))
    progress.interventions += sum(a and b for a, b in zip(masked, finite, strict=True))


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
        health=replace(back.health, spike_count=spiked.health.spike_count),
    )
    return Rewound(step=spiked.step, to_step=back.step)


def _asked(run: Run, stop: Stop) -> tuple[str, str] | None:
    return run.team.gather(stop() if run.team.leads else None)[0]


def _next(step: int, every: int) -> int:
    """Windows end at multiples, wherever they began, so a resumed trial cuts them alike."""
    return (step // every + 1) * every


def _due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last
