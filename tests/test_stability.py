"""The judge: spikes step by step, non-finite numbers at once, windows without seams."""

import itertools
import math
import random
from dataclasses import asdict

import pytest

from bkray.events import Spiked, StepsDone
from bkray.stability import Health, Verdict, judge


def window(losses: list[float], last_step: int, norms: list[float] | None = None) -> StepsDone:
    return StepsDone(
        step=last_step,
        tokens=1,
        loss_nats=tuple(losses),
        grad_norm=tuple(norms if norms is not None else [1.0] * len(losses)),
        lr=0.1,
        window_seconds=0.1,
    )


def test_a_falling_loss_is_healthy() -> None:
    health, verdict, spikes = judge(Health(), window([5.0, 4.0, 4.5, 3.0], 4))
    assert verdict == Verdict("healthy")
    assert spikes == ()
    assert health == Health(last_loss_nats=3.0, spike_count=0)


def test_more_than_twice_the_loss_before_is_a_spike_and_exactly_twice_is_none() -> None:
    health, verdict, spikes = judge(Health(), window([1.0, 2.0, 4.1, 8.1, 17.0], 25))
    assert spikes == (Spiked(step=23, ratio=4.1 / 2.0), Spiked(step=25, ratio=17.0 / 8.1))
    assert verdict == Verdict("spiking", step=23)
    assert health.spike_count == 2


def test_a_spike_between_two_windows_is_seen() -> None:
    health, _, _ = judge(Health(), window([1.0], 1))
    health, verdict, spikes = judge(health, window([2.5], 2))
    assert spikes == (Spiked(step=2, ratio=2.5),)
    assert verdict.state == "spiking"
    assert health == Health(last_loss_nats=2.5, spike_count=1)


def test_the_very_first_loss_is_no_spike() -> None:
    assert judge(Health(), window([1e30], 1))[1].state == "healthy"


def test_a_loss_after_exactly_zero_is_a_spike_without_bound() -> None:
    """A repeating text can be learnt to a loss of 0 in float32."""
    _, verdict, spikes = judge(Health(), window([0.0, 0.0, 0.5], 3))
    assert verdict.state == "spiking"
    assert spikes == (Spiked(step=3, ratio=math.inf),)


BROKEN = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_loss_that_is_not_finite_ends_the_trial_and_is_named(value: float, place: int) -> None:
    losses = [1.0, 3.0, 2.0, 1.0]
    losses[place] = value
    health, verdict, spikes = judge(Health(1.0, 5), window(losses, 40))
    assert verdict == Verdict("diverged", f"loss is {value} at step {37 + place}", 37 + place)
    assert all(spike.step < 37 + place for spike in spikes)
    assert health.last_loss_nats is not None
    assert math.isfinite(health.last_loss_nats)
    assert health.spike_count == 5 + len(spikes)


@pytest.mark.parametrize("value", BROKEN)
def test_a_gradient_norm_that_is_not_finite_ends_the_trial_though_the_loss_is(
    value: float,
) -> None:
    _, verdict, _ = judge(Health(), window([1.0, 1.0, 1.0], 8, [1.0, value, 1.0]))
    assert verdict == Verdict("diverged", f"gradient norm is {value} at step 7", 7)


def test_of_two_broken_numbers_the_first_step_is_named_and_there_the_loss() -> None:
    losses, norms = [1.0, math.inf, math.nan], [1.0, math.nan, math.nan]
    assert judge(Health(), window(losses, 3, norms))[1].reason == "loss is inf at step 2"
    norms = [math.nan, math.nan, math.nan]
    assert judge(Health(), window(losses, 3, norms))[1].reason == "gradient norm is nan at step 1"


@pytest.mark.parametrize("seed", range(5))
def test_how_steps_are_cut_into_windows_does_not_matter(seed: int) -> None:
    draw = random.Random(seed)
    losses = [draw.lognormvariate(0, 1) for _ in range(40)]
    if seed % 2:
        losses[draw.randrange(20, 40)] = math.nan

    def fold(cuts: list[int]) -> tuple[object, ...]:
        health, seen = Health(), []
        for first, last in itertools.pairwise([0, *cuts, 40]):
            health, verdict, spikes = judge(health, window(losses[first:last], last))
            seen += spikes
            if verdict.state == "diverged":
                return health, verdict, seen
        return health, "alive", seen

    whole = fold([])
    assert fold(sorted(draw.sample(range(1, 40), 6))) == whole
    assert fold(list(range(1, 40))) == whole
    assert len(whole[2]) > 0  # type: ignore[arg-type]


def test_the_memory_fits_into_a_checkpoint() -> None:
    health, _, _ = judge(Health(), window([1.0, 3.0], 2))
    assert Health(**asdict(health)) == health
    assert asdict(health) == {"last_loss_nats": 3.0, "spike_count": 1}
