"""The judge of a running trial: a pure fold over events; others act on its verdict."""

import math
from dataclasses import dataclass
from typing import Literal

from bkray.events import Spiked, StepsDone

SPIKE_RATIO = 2.0
"""A loss more than twice the one before is a spike, as the family's guides count them."""


@dataclass(frozen=True, slots=True)
class Health:
    """What the judge remembers of a trial; plain numbers, so it fits into a checkpoint."""

    last_loss_nats: float | None = None
    spike_count: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """``diverged`` names the first step that was not finite, and what it was."""

    state: Literal["healthy", "spiking", "diverged"]
    reason: str = ""
    step: int = 0


def judge(health: Health, event: StepsDone) -> tuple[Health, Verdict, tuple[Spiked, ...]]:
    """Return the new memory, the verdict on this window, and its spikes, step by step."""
    spikes: list[Spiked] = []
    last = health.last_loss_nats
    first = event.step - len(event.loss_nats) + 1
    for step, (loss, norm) in enumerate(
        zip(event.loss_nats, event.grad_norm, strict=True), start=first
    ):
        # NaN compares false with everything, so finiteness comes before any comparison.
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                seen = Health(last, health.spike_count + len(spikes))
                reason = f"{name} is {value} at step {step}"
                return seen, Verdict("diverged", reason, step), tuple(spikes)
        if last is not None and loss > SPIKE_RATIO * last:
            spikes.append(Spiked(step=step, ratio=loss / last if last else math.inf))
        last = loss
    state: Literal["healthy", "spiking"] = "spiking" if spikes else "healthy"
    verdict = Verdict(state, step=spikes[0].step) if spikes else Verdict(state)
    return Health(last, health.spike_count + len(spikes)), verdict, tuple(spikes)
