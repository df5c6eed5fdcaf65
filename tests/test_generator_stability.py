"""The judge of a loss that grows a term while it warms up, and of latents that say nothing."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from bkray.events import StepsDone
from bkray.stability import Health, Verdict, judge
from bkray.stability.judge import COLLAPSED_NATS, MOST_COLLAPSED_STEPS

WINDOW = 16


def judged(losses: Sequence[float], kl_nats: float | None = None, warmup: int = 0) -> Verdict:
    """Return the verdict on a whole trial, window by window."""
    health, verdict = Health(), Verdict("healthy")
    for first in range(0, len(losses), WINDOW):
        part = tuple(losses[first : first + WINDOW])
        window = StepsDone(
            step=first + len(part),
            tokens=0,
            loss_nats=part,
            grad_norm=(1.0,) * len(part),
            lr=1e-3,
            window_seconds=1.0,
            metrics={} if kl_nats is None else {"train/kl_nats": kl_nats},
        )
        health, verdict, _ = judge(health, window, warmup_steps=warmup)
        if verdict.state == "diverged":
            break
    return verdict


RISING = [0.5] * 8 + [0.1] * 92 + [0.1 + 0.0033 * i for i in range(100)] + [0.43] * 200


def test_a_loss_that_rises_with_the_weight_of_the_divergence_is_healthy_in_warm_up() -> None:
    assert judged(RISING).rule == "drift", "what it would be called without"
    assert judged(RISING, warmup=200).state == "healthy"


def test_behind_warm_up_drift_is_seen_again() -> None:
    fallen = [*RISING[:200], *[0.2] * 100, *[0.49] * 100]
    assert judged(fallen, warmup=200).rule == "drift"


def test_an_explosion_is_seen_in_warm_up_too() -> None:
    verdict = judged([0.5] * 20 + [4.0] * 80, warmup=1000)
    assert (verdict.state, verdict.rule) == ("diverged", "explosion")


def test_latents_that_say_nothing_end_a_trial_behind_warm_up() -> None:
    losses = [0.4] * 400
    verdict = judged(losses, kl_nats=COLLAPSED_NATS / 2, warmup=100)
    assert (verdict.state, verdict.rule) == ("diverged", "collapse")
    assert verdict.step == -(-(100 + MOST_COLLAPSED_STEPS) // WINDOW) * WINDOW
    assert "posterior collapse" in verdict.reason and "0.025 nats" in verdict.reason
    assert judged(losses[:100], kl_nats=0.0, warmup=100).state == "healthy"
    assert judged(losses, kl_nats=2 * COLLAPSED_NATS, warmup=100).state == "healthy"


def test_one_window_that_says_something_starts_the_count_anew() -> None:
    health, window = (
        Health(),
        StepsDone(
            step=0,
            tokens=0,
            loss_nats=(0.4,) * WINDOW,
            grad_norm=(1.0,) * WINDOW,
            lr=1e-3,
            window_seconds=1.0,
        ),
    )
    states = []
    for i in range(1, 9):
        kl_nats = 1.0 if i == 4 else 0.0
        window = replace(window, step=WINDOW * i, metrics={"train/kl_nats": kl_nats})
        health, verdict, _ = judge(health, window)
        states.append(verdict.state)
    assert states == [*["healthy"] * 7, "diverged"]
    assert health.collapsed_steps == pytest.approx(MOST_COLLAPSED_STEPS)
