"""The judge: spikes step by step, what is not finite at once, what lasts; no seams at windows."""

import itertools
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest

from bkray.events import Spiked, StepsDone
from bkray.stability import Health, Verdict, judge

UNIGRAM = 3.0


def window(
    losses: Sequence[float],
    last_step: int,
    norms: Sequence[float] | None = None,
    **told: Any,
) -> StepsDone:
    return StepsDone(
        step=last_step,
        tokens=1,
        loss_nats=tuple(losses),
        grad_norm=tuple(norms if norms is not None else [1.0] * len(losses)),
        lr=0.1,
        window_seconds=0.1,
        **told,
    )


def fold(
    losses: Sequence[float],
    cuts: Sequence[int] | None = None,
    *,
    health: Health | None = None,
    unigram_nats: float | None = UNIGRAM,
) -> tuple[Health, Verdict, list[Spiked]]:
    """Judge losses in windows that end at ``cuts``, by default every 16 steps, up to the end."""
    health = health or Health()
    if cuts is None:
        cuts = range(16, len(losses), 16)
    verdict, seen = Verdict("healthy"), []
    for first, last in itertools.pairwise([0, *cuts, len(losses)]):
        health, verdict, spikes = judge(
            health, window(losses[first:last], last), unigram_nats=unigram_nats
        )
        seen += spikes
        if verdict.state == "diverged":
            break
    return health, verdict, seen


def falling(n_steps: int, *, start: float = 6.0, end: float = 2.0, seed: int = 0) -> list[float]:
    """Return the losses of a healthy run, with noise of 2%."""
    draw = random.Random(seed)
    return [
        (end + (start - end) * math.exp(-t / 30)) * math.exp(draw.gauss(0, 0.02))
        for t in range(n_steps)
    ]


def flat(n_steps: int, level: float, seed: int = 1) -> list[float]:
    draw = random.Random(seed)
    return [level * math.exp(draw.gauss(0, 0.02)) for _ in range(n_steps)]


def test_a_falling_loss_is_healthy() -> None:
    health, verdict, spikes = judge(Health(), window([5.0, 4.0, 4.5, 3.0], 4))
    assert verdict == Verdict("healthy")
    assert spikes == ()
    assert (health.last_loss_nats, health.first_loss_nats, health.spike_count) == (3.0, 5.0, 0)


def test_more_than_twice_the_loss_before_is_a_spike_and_exactly_twice_is_none() -> None:
    health, verdict, spikes = judge(Health(), window([1.0, 2.0, 4.1, 8.1, 17.0], 25))
    assert spikes == (Spiked(step=23, ratio=4.1 / 2.0), Spiked(step=25, ratio=17.0 / 8.1))
    assert verdict == Verdict("spiking", step=23, rule="doubled")
    assert health.spike_count == 2


def test_a_spike_between_two_windows_is_seen() -> None:
    health, _, _ = judge(Health(), window([1.0], 1))
    health, verdict, spikes = judge(health, window([2.5], 2))
    assert spikes == (Spiked(step=2, ratio=2.5),)
    assert verdict.state == "spiking"
    assert (health.last_loss_nats, health.spike_count) == (2.5, 1)


def test_the_very_first_loss_is_no_spike() -> None:
    assert judge(Health(), window([1e30], 1))[1].state == "healthy"


def test_a_loss_after_exactly_zero_is_a_spike_without_bound() -> None:
    """A repeating text can be learnt to a loss of 0 in float32."""
    _, verdict, spikes = judge(Health(), window([0.0, 0.0, 0.5], 3))
    assert verdict.state == "spiking"
    assert spikes == (Spiked(step=3, ratio=math.inf),)


def test_a_negative_loss_cannot_be_doubled() -> None:
    assert judge(Health(), window([-1.0, -1.5, 3.0, -1.0], 4))[2] == ()


BROKEN = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_loss_that_is_not_finite_ends_the_trial_and_is_named(value: float, place: int) -> None:
    losses = [1.0, 3.0, 2.0, 1.0]
    losses[place] = value
    health, verdict, spikes = judge(Health(1.0, 5), window(losses, 40))
    reason = f"loss is {value} at step {37 + place}"
    assert verdict == Verdict("diverged", reason, 37 + place, "nonfinite")
    assert all(spike.step < 37 + place for spike in spikes)
    assert health.last_loss_nats is not None
    assert math.isfinite(health.last_loss_nats)
    assert health.spike_count == 5 + len(spikes)


@pytest.mark.parametrize("value", BROKEN)
def test_a_gradient_norm_that_is_not_finite_ends_the_trial_though_the_loss_is(
    value: float,
) -> None:
    """That its update was withheld, and the loss goes on, makes no difference."""
    broken = window([1.0, 1.0, 1.0], 8, [1.0, value, 1.0], masked=(7,))
    _, verdict, _ = judge(Health(), broken)
    assert verdict == Verdict("diverged", f"gradient norm is {value} at step 7", 7, "nonfinite")


def test_a_step_that_a_policy_withheld_is_no_divergence() -> None:
    assert judge(Health(), window([1.0, 2.5, 1.0], 3, masked=(2,)))[1].state == "spiking"


@pytest.mark.parametrize("value", BROKEN)
def test_an_activation_that_is_not_finite_ends_the_trial_at_the_windows_end(value: float) -> None:
    told = {"layers.0": 3.0, "layers.1": value}
    health, verdict, spikes = judge(Health(), window([1.0, 2.5], 8, activations=told))
    reason = f"largest activation of layers.1 is {value} at step 8"
    assert verdict == Verdict("diverged", reason, 8, "nonfinite")
    assert spikes == (Spiked(step=8, ratio=2.5),)
    assert health.spike_count == 1


def test_of_two_broken_numbers_the_first_step_is_named_and_there_the_loss() -> None:
    losses, norms = [1.0, math.inf, math.nan], [1.0, math.nan, math.nan]
    told = {"layers.0": math.nan}
    broken = window(losses, 3, norms, activations=told)
    assert judge(Health(), broken)[1].reason == "loss is inf at step 2"
    norms = [math.nan, math.nan, math.nan]
    assert judge(Health(), window(losses, 3, norms))[1].reason == "gradient norm is nan at step 1"


def test_a_loss_far_above_the_median_is_a_robust_spike_that_is_not_counted() -> None:
    losses = flat(40, 2.0)
    losses[30] = 3.0
    health, verdict, spikes = fold(losses, [24])
    assert [(spike.step, spike.rule) for spike in spikes] == [(31, "robust")]
    assert 1.4 < spikes[0].ratio < 1.6
    assert health.spike_count == 0
    assert verdict == Verdict("spiking", step=31, rule="robust")


def test_a_spike_does_not_hide_the_next_one() -> None:
    losses = flat(40, 2.0)
    losses[30] = losses[31] = losses[35] = 40.0
    assert [s.step for s in fold(losses)[2] if s.rule == "robust"] == [31, 32, 36]


def test_a_loss_that_stays_far_above_the_first_one_has_exploded() -> None:
    losses = [*falling(48), *flat(100, 60.0)]
    _, verdict, _ = fold(losses)
    assert (verdict.state, verdict.rule) == ("diverged", "explosion")
    assert 49 < verdict.step <= 48 + 16
    assert "since step 49" in verdict.reason


def test_an_explosion_in_the_first_steps_is_measured_against_the_first_loss() -> None:
    _, verdict, _ = fold([5.5, 40.0, *flat(40, 300.0)])
    assert verdict.rule == "explosion"
    assert verdict.step < 16


@pytest.mark.parametrize("height", [3.0, 30.0, 1e6, 1e300])
def test_a_spike_that_recovers_ends_no_trial(height: float) -> None:
    losses = falling(200)
    for at, factor in ((100, 1.0), (101, 0.1), (102, 0.03), (150, 1.0)):
        losses[at] *= max(1.0, height * factor)
    health, verdict, _ = fold(losses)
    assert verdict.state != "diverged"
    assert health.spike_count >= 2


def test_a_high_spike_that_comes_back_slowly_ends_no_trial() -> None:
    """It stays above twice the first loss for 20 steps, falling all the time."""
    back = [60.0 * math.exp(-t / 12) for t in range(60)]
    losses = [*falling(150), *(max(b, 2.0) for b in back), *flat(100, 2.0)]
    assert sum(loss > 12.0 for loss in losses) == 20
    assert fold(losses)[1].state == "healthy"


def test_a_trial_that_has_learnt_nothing_yet_may_stand_a_little_above_its_first_loss() -> None:
    bump = [6.0 * (1 + 0.5 * math.sin(math.pi * t / 40)) for t in range(40)]
    assert fold([*bump, *falling(200)])[1].state != "diverged"


def test_noise_around_a_loss_that_hardly_falls_is_no_drift() -> None:
    draw = random.Random(5)
    losses = [5.5 * math.exp(draw.gauss(0, 0.1)) for _ in range(3000)]
    assert fold([5.5, *losses])[1].state != "diverged"


def test_a_first_loss_below_the_unigram_entropy_is_chance_and_no_measure() -> None:
    """A batch of few tokens may be easy; no trial is to be held to it."""
    assert fold([0.5, *falling(200)])[1].state != "diverged"


def test_a_loss_that_slowly_loses_what_was_learnt_drifts() -> None:
    """It never doubles, stands out of its neighbours or exceeds the first loss by much."""
    rising = [2.0 + 4.5 * min(1.0, t / 150) for t in range(400)]
    losses = [*falling(200), *(r * f / 2.0 for r, f in zip(rising, flat(400, 2.0), strict=True))]
    _, verdict, _ = fold(losses)
    assert (verdict.state, verdict.rule) == ("diverged", "drift")
    assert 200 < verdict.step < 400
    assert "best level" in verdict.reason


def test_a_jump_that_costs_less_than_half_of_what_was_learnt_is_healthy() -> None:
    assert fold([*falling(200), *flat(400, 3.5)])[1].state != "diverged"


def test_a_level_at_the_unigram_entropy_is_a_plateau() -> None:
    losses = [*falling(100, end=UNIGRAM), *flat(400, UNIGRAM)]
    _, verdict, _ = fold(losses)
    assert (verdict.state, verdict.rule) == ("diverged", "plateau")
    assert "unigram entropy of the corpus, 3" in verdict.reason
    assert fold(losses, unigram_nats=None)[1].state == "healthy"
    assert fold(losses, unigram_nats=2.0)[1].state == "healthy"


def test_a_level_that_passes_the_unigram_entropy_slowly_is_no_plateau() -> None:
    losses = [*falling(100, end=3.1), *(3.1 - 0.4 * t / 900 for t in range(900))]
    assert fold(losses)[1].state == "healthy"


@pytest.mark.parametrize("value", [0.0, 5.0, 1e-300, 1e300, -2.0])
def test_a_loss_that_never_changes_is_healthy(value: float) -> None:
    """Its deviation is 0; a last bit that flips is no spike either."""
    flipped = math.nextafter(value, 1e9) if value else 0.0
    _, verdict, spikes = fold([value, flipped] * 400, unigram_nats=3.3)
    assert (verdict, spikes) == (Verdict("healthy"), [])


@pytest.mark.parametrize(
    "losses",
    [
        [1.7e308, 1e-308] * 60,
        [0.0] * 40 + [1.7e308] * 5 + [0.0] * 40,
        [-1.7e308, 1.7e308] * 60,
        [5e-324, 0.0, -5e-324] * 40,
    ],
)
def test_numbers_at_the_edge_leave_a_memory_of_finite_ones(losses: list[float]) -> None:
    health, verdict, _ = fold(losses)
    told = [value for value in asdict(health).values() if isinstance(value, float)]
    assert all(map(math.isfinite, told)), verdict


KINDS = {
    "healthy": falling(120),
    "spikes": [loss * (9.0 if t % 29 == 28 else 1.0) for t, loss in enumerate(falling(120))],
    "explosion": [*falling(40), *flat(80, 50.0)],
    "drift": [*falling(100), *flat(120, 5.5)],
    "plateau": [*falling(100, end=UNIGRAM), *flat(400, UNIGRAM)],
    "nan": [*falling(70), math.nan, *falling(9)],
    "wild": [random.Random(4).lognormvariate(0, 1) for _ in range(120)],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_how_steps_are_cut_into_windows_does_not_matter(kind: str, seed: int) -> None:
    draw, losses = random.Random(seed), KINDS[kind]

    def judged(cuts: Sequence[int]) -> tuple[object, ...]:
        health, verdict, spikes = fold(losses, cuts)
        return health, verdict if verdict.state == "diverged" else "alive", spikes

    whole = judged([])
    assert judged(range(1, len(losses))) == whole
    assert judged(sorted(draw.sample(range(1, len(losses)), len(losses) // 8))) == whole
    assert whole[1] == "alive" or kind not in ("healthy", "spikes")
    assert whole[1] != "alive" or kind in ("healthy", "spikes", "wild")


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_goes_through_a_checkpoint_at_any_step(kind: str) -> None:
    losses = KINDS[kind]
    for at in range(1, len(losses), 37):
        before, _, _ = fold(losses[:at])
        copy = Health(**json.loads(json.dumps(asdict(before))))
        assert copy == before
        assert Health(**asdict(before)) == before
        rest = losses[at:]
        assert fold(rest, health=copy) == fold(rest, health=before)


def test_the_memory_is_small() -> None:
    health, _, _ = fold(falling(1000))
    assert len(json.dumps(asdict(health))) < 2000
    assert len(health.losses) <= 64
