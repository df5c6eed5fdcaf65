"""The judge of a running trial: a pure fold over events; others act on its verdict."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from bkray.events import Spiked, StepsDone
from bkray.stability.health import (
    FEWEST_STEPS,
    Health,
    after,
    forgetful,
    is_doubled,
    median,
    noise_nats,
)

Rule = Literal[
    "",
    "doubled",
    "robust",
    "nonfinite",
    "explosion",
    "drift",
    "plateau",
    "collapse",
    "validation",
]

ROBUST_SIGMAS = 6.0
"""A loss so many standard deviations above the median is a robust spike."""

MOST_EXPLOSION = 10.0
"""Doublings above twice the first loss, added up, that end a trial: 10 steps at 4 times it."""

MOST_DRIFT = 10.0
"""Shares lost beyond half, added up, that end a trial: 20 steps with all that was learnt lost."""

MOST_STUCK_STEPS = 256
"""Steps at the unigram entropy without falling that end a trial."""

COLLAPSED_NATS = 0.05
"""Divergence of a row's posterior from the prior, at most so much: less than a tenth of what it
takes to tell two halves of the rows apart, 0.69."""

MOST_COLLAPSED_STEPS = 64
"""Steps without more than that, after warm-up, that end a trial."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a window says of a trial.

    ``step`` is where ``rule`` spoke: the first step that spiked or was not finite, or the one at
    which a rule about many steps had seen enough; ``reason`` then says since when.
    """

    state: Literal["healthy", "spiking", "diverged"]
    reason: str = ""
    step: int = 0
    rule: Rule = ""


def judge(
    health: Health,
    event: StepsDone,
    *,
    unigram_nats: float | None = None,
    warmup_steps: int = 0,
) -> tuple[Health, Verdict, tuple[Spiked, ...]]:
    """Return the new memory, the verdict on this window, and its spikes, step by step.

    What is said of a step does not depend on the windows that the steps came in, but for
    ``event.activations``, which belong to a window's last step alone, and for the collapse, which
    goes by a window's mean.

    The rules: ``nonfinite`` is a loss, a gradient norm before clipping or an activation that is no
    finite number, whether or not the update was withheld; ``explosion`` a loss that stays above
    twice the first one; ``drift`` a loss that stays closer to the first one than to the best
    level; ``plateau`` a level that stays at ``unigram_nats``, the entropy of the corpus's token
    frequencies (``None``: no such rule); ``collapse`` a ``train/kl_nats`` that stays near 0 after
    ``warmup_steps``, in which the loss grows a term and nothing drifts. Spikes are ``doubled``,
    more than twice the loss before, or ``robust``, far above the median of the last losses; they
    end no trial.
    """
    spikes: list[Spiked] = []
    first = event.step - len(event.loss_nats) + 1
    for step, (loss, norm) in enumerate(
        zip(event.loss_nats, event.grad_norm, strict=True), start=first
    ):
        # NaN compares false with everything, so finiteness comes before any comparison.
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                return health, _nonfinite(name, value, step), tuple(spikes)
        spikes += _spikes(health, loss, step)
        health = after(health, loss, unigram_nats)
        if step <= warmup_steps:
            health = forgetful(health, settled=step == warmup_steps)
        verdict = _lasting(health, step, unigram_nats)
        if verdict is not None:
            return health, verdict, tuple(spikes)
    health = _without_latents(health, event, warmup_steps)
    if health.collapsed_steps >= MOST_COLLAPSED_STEPS:
        return health, _collapsed(health, event), tuple(spikes)
    for block, value in event.activations.items():
        if not math.isfinite(value):
            name = f"largest activation of {block}"
            return health, _nonfinite(name, value, event.step), tuple(spikes)
    if spikes:
        return health, Verdict("spiking", "", spikes[0].step, spikes[0].rule), tuple(spikes)
    return health, Verdict("healthy"), ()


def _without_latents(health: Health, event: StepsDone, warmup_steps: int) -> Health:
    kl_nats = event.metrics.get("train/kl_nats")
    if kl_nats is None or kl_nats > COLLAPSED_NATS:
        return replace(health, collapsed_steps=0) if health.collapsed_steps else health
    n_steps = min(len(event.loss_nats), max(0, event.step - warmup_steps))
    return replace(health, collapsed_steps=health.collapsed_steps + n_steps)


def _collapsed(health: Health, event: StepsDone) -> Verdict:
    return Verdict(
        "diverged",
        f"posterior collapse: at step {event.step} the latents diverge from the prior by "
        f"{event.metrics['train/kl_nats']:.2g} nats a row, and for {health.collapsed_steps} steps "
        f"by no more than {COLLAPSED_NATS:g}, so that all rows are decoded alike; lower "
        "generator.kl_weight, or look whether anything is left at this training length",
        event.step,
        "collapse",
    )


def _nonfinite(name: str, value: float, step: int) -> Verdict:
    return Verdict("diverged", f"{name} is {value} at step {step}", step, "nonfinite")


def _spikes(health: Health, loss: float, step: int) -> Iterator[Spiked]:
    """Yield the spikes of one step; the losses before it are what it is measured against."""
    before = health.last_loss_nats
    if before is not None and is_doubled(loss, before):
        yield Spiked(step=step, ratio=loss / before if before else math.inf)
    if len(health.losses) >= FEWEST_STEPS:
        level = median(health.losses)
        if loss > level and loss > level + ROBUST_SIGMAS * noise_nats(health.losses, level):
            yield Spiked(step=step, ratio=loss / level if level > 0 else math.inf, rule="robust")


def _lasting(health: Health, step: int, unigram_nats: float | None) -> Verdict | None:
    """Return the verdict of the rules that look at many steps, if one has seen enough."""
    if health.explosion > MOST_EXPLOSION:
        return Verdict(
            "diverged",
            f"loss is {health.last_loss_nats:.4g} at step {step} and since step "
            f"{step - health.explosion_steps + 1} mostly more than twice the first loss, "
            f"{health.first_loss_nats:.4g}",
            step,
            "explosion",
        )
    if health.drift > MOST_DRIFT:
        return Verdict(
            "diverged",
            f"loss has drifted to {health.level_nats:.4g} at step {step} and lies since step "
            f"{step - health.drift_steps + 1} closer to the first loss, "
            f"{health.first_loss_nats:.4g}, than to its best level, {health.best_level_nats:.4g}",
            step,
            "drift",
        )
    if health.stuck_steps >= MOST_STUCK_STEPS:
        return Verdict(
            "diverged",
            f"loss is stuck at {health.level_nats:.4g} at step {step}: it has not fallen for "
            f"{health.stuck_steps} steps at the unigram entropy of the corpus, "
            f"{unigram_nats:.4g}",
            step,
            "plateau",
        )
    return None
