"""A window of optimizer steps: what they said comes from the device at once.

Letters: S steps, C numbers of a step, K blocks.
"""

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from bkray.events import StepsDone
from bkray.train.checkpoint import Tally
from bkray.train.findings import Remembered
from bkray.train.run import Run, next_guard, take_step
from bkray.train.step import Step

WINDOW = 16
"""Steps between two copies from the device; a verdict lags by at most so many."""


def train_window(run: Run) -> StepsDone:
    """Train to the end of the window, copy its numbers from the device once, and count them."""
    plan, progress = run.config.train, run.progress
    start, first = time.perf_counter(), progress.step + 1
    last = min(_next(progress.step, n) for n in (WINDOW, plan.eval_every, plan.checkpoint_every))
    last = min(last, run.rung.last_step)
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
    progress, rung = run.progress, run.rung
    if progress.step + 1 == rung.first_step:
        progress.tally = Tally(spikes_before=progress.health.spike_count)
    tally, n_tokens = progress.tally, len(losses) * rung.tokens_per_step
    progress.step += len(losses)
    progress.tokens += n_tokens
    tally.tokens += n_tokens
    progress.train_seconds += seconds
    tally.train_seconds += seconds
    for norm in norms:
        progress.norms.add(norm)
        tally.norms.add(norm)
    finite = [math.isfinite(a) and math.isfinite(b) for a, b in zip(losses, norms, strict=True)]
    tally.nan_count += finite.count(False)
    progress.interventions += sum(a and b for a, b in zip(masked, finite, strict=True))


def _next(step: int, every: int) -> int:
    """Windows end at multiples, wherever they began, so a resumed trial cuts them alike."""
    return (step // every + 1) * every
