"""The steps since the last good state, taken again with every tensor watched."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bkray.train import checkpoint
from bkray.train.checkpoint import State
from bkray.train.findings import Remembered
from bkray.train.guard import Guard
from bkray.train.probe import Fault, Probe
from bkray.train.run import Run, take_step
from bkray.train.step import Part

Tensors = set[tuple[str, str]]
"""Names of modules and of their tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """One step taken again, as this process saw it."""

    loss_nats: float
    grad_norm: float
    block_norms: tuple[float, ...]
    activations: dict[str, float]
    faults: list[Fault]


def restore(run: Run, snapshot: State) -> None:
    """Put a trial that is over back to its snapshot, which is used up; progress is kept."""
    _, run.load_LE = checkpoint.restore(snapshot, run.model, run.optimizer)


def harmless(run: Run, part: Part) -> Tensors:
    """Return which tensors are infinite in a pass that ends well, as a mask of scores is.

    Nothing is harmless where the pass does not end well.
    """
    plan = run.config.train
    inputs, targets = (side[: plan.batch_size].to(run.device) for side in part)
    run.model.eval()
    with torch.random.fork_rng(), torch.no_grad(), run.autocast, Probe(run.model) as probe:
        said = run.task.say(run.model, (inputs[:, : plan.chunk], targets))
    run.model.train()
    if not said.isfinite().all():
        return set()
    return {(fault.module, fault.tensor) for fault in probe.faults if not fault.n_nan}


def repeat(run: Run, steps: Sequence[Remembered]) -> list[Repeated]:
    """Take the steps again, from where the trial is put back to."""
    return [_repeat_step(run, one) for one in steps]


def probe_validation(run: Run) -> list[Fault]:
    """Score the validation rows again; return what was not finite."""
    with Probe(run.model) as probe:
        run.task.score(run)
    return probe.faults


class _AsRecorded(Guard):
    """Withholds the update that was withheld, and any that is not finite."""

    def __init__(self, device: torch.device, masked: bool) -> None:
        super().__init__(device, None, 0)
        self._masked = masked

    def withholds(self, loss_nats: Tensor, grad_norm: Tensor) -> Tensor:
        return super().withholds(loss_nats, grad_norm) | self._masked


def _repeat_step(run: Run, one: Remembered) -> Repeated:
    run.batches.restore(one.batch)
    guard = _AsRecorded(run.device, one.masked)
    with (
        Probe(run.model, backward=not one.is_finite) as probe,
        run.blocks.activations() as activations,
    ):
        said, _ = take_step(run, one.step, guard)
    return Repeated(
        loss_nats=float(said.numbers["loss_nats"]),
        grad_norm=float(said.numbers["grad_norm"]),
        block_norms=tuple(said.block_norms_K.tolist()),
        activations={name: float(value) for name, value in activations.items()},
        faults=probe.faults,
    )
