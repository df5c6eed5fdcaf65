"""Where numbers grew that stayed finite: a pure function of what the blocks said, step by step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from bkray.train.findings import Growth, Magnitudes

GROWN = 10.0
"""A block has grown that is so many times as large as at the snapshot."""


class BlockStep(NamedTuple):
    """What the blocks of a model said in one step, each under its name, in the model's order."""

    step: int
    loss_nats: float
    activations: Mapping[str, float]
    grad_norms: Mapping[str, float]


def growth(steps: Sequence[BlockStep], loss_before: float | None) -> Growth:
    """Return the first step and block that grew, and where the loss rose most.

    The first of the steps is the measure: its forward and backward pass are those of the last good
    state. ``loss_before`` is that of the step before it, if there was one.
    """
    first = steps[0]
    for one in steps[1:]:
        for quantity, now, then in (
            ("activation", one.activations, first.activations),
            ("gradient norm", one.grad_norms, first.grad_norms),
        ):
            for block, value in now.items():
                if then.get(block, 0) > 0 and value > GROWN * then[block]:
                    return replace(
                        _jump(steps, loss_before),
                        step=one.step,
                        block=block,
                        quantity=quantity,
                        factor=value / then[block],
                    )
    return _jump(steps, loss_before)


def magnitudes(steps: Sequence[BlockStep]) -> dict[str, Magnitudes]:
    """Return what the blocks said first and last; NaN where one did not run."""
    first, last = steps[0], steps[-1]
    return {
        block: Magnitudes(
            activation_before=first.activations.get(block, math.nan),
            activation=last.activations.get(block, math.nan),
            grad_norm_before=first.grad_norms[block],
            grad_norm=last.grad_norms[block],
        )
        for block in first.grad_norms
    }


def _jump(steps: Sequence[BlockStep], loss_before: float | None) -> Growth:
    losses = [(one.step, one.loss_nats) for one in steps]
    if loss_before is not None:
        losses.insert(0, (steps[0].step - 1, loss_before))
    rises = [(after - before, step) for (_, before), (step, after) in pairwise(losses)]
    if not rises or max(rises)[0] <= 0:
        return Growth()
    rise, step = max(rises)
    after = dict(losses)[step]
    return Growth(jump_step=step, jump_from=after - rise, jump_to=after)
