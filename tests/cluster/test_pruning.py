"""Pruning is a function of the curves; Ray's own schedulers are the plain reference."""

import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from standin import DIVERGES, carry, outcomes_in, point, sweep_of
from views import Remembering

from bkray.cluster.pruning import Curve, Halving, Judge, Median, Pruner, pruner
from bkray.events import EvalDone

Curves = Mapping[int, Curve]


def random_curves(seed: int, *, sparse: bool) -> Curves:
    """Return 30 curves that cross; the ``sparse`` ones are evaluated seldom, at any place."""
    draw = random.Random(seed)
    curves = {}
    for trial in range(30):
        places = list(range(100, 3001, 100))
        if sparse:
            places = sorted(draw.sample(range(50, 3001), draw.randint(2, 12)))
        start, end = draw.uniform(2, 6), draw.uniform(1, 3)
        noise = [draw.gauss(0, 0.05) for _ in places]
        curves[trial] = {
            float(t): end + (start - end) * math.exp(-t / 800) + n
            for t, n in zip(places, noise, strict=True)
        }
    return curves


def evaluations(
    curves: Curves, ended: Mapping[int, float], at_once: int
) -> Iterator[tuple[int, float, float]]:
    """Yield trial, tokens, loss as ``at_once`` trials bring them, up to where they ended."""
    draw = random.Random(at_once)
    left = {trial: list(curve.items()) for trial, curve in curves.items()}
    while left:
        trial = draw.choice(list(left)[:at_once])
        tokens, loss = left[trial].pop(0)
        yield trial, tokens, loss
        if not left[trial] or trial in ended:
            del left[trial]


def ends_by(rule: Pruner, curves: Curves, at_once: int) -> dict[int, float]:
    """Return the tokens at which trials are ended."""
    judge, ended = Judge("rule", rule), dict[int, float]()
    for trial, tokens, loss in evaluations(curves, ended, at_once):
        if judge.ends(trial, tokens, loss):
            ended[trial] = tokens
    return ended


class RayTrial:
    def __init__(self, number: int) -> None:
        self.trial_id = str(number)


def ends_by_ray(scheduler: Any, curves: Curves, at_once: int) -> dict[int, float]:
    controller = SimpleNamespace(get_live_trials=list)
    trials, ended = dict[int, RayTrial](), dict[int, float]()
    for number, tokens, loss in evaluations(curves, ended, at_once):
        if number not in trials:
            trials[number] = RayTrial(number)
            scheduler.on_trial_add(controller, trials[number])
        result = {"tokens": tokens, "loss": loss}
        if scheduler.on_trial_result(controller, trials[number], result) == "STOP":
            ended[number] = tokens
    return ended


REFERENCE = {"time_attr": "tokens", "metric": "loss", "mode": "min", "grace_period": 100}


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("sparse", [False, True])
def test_asha_ends_the_trials_that_rays_ends(sparse: bool, at_once: int) -> None:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    for seed in range(20):
        curves = random_curves(seed, sparse=sparse)
        reference = AsyncHyperBandScheduler(
            max_t=3000, reduction_factor=3, brackets=1, stop_last_trials=False, **REFERENCE
        )
        expected = ends_by_ray(reference, curves, at_once)
        assert ends_by(Halving(100, 3000), curves, at_once) == expected
        assert len(expected) > 5


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_median_rule_ends_the_trials_that_rays_ends(sparse: bool, at_once: int) -> None:
    from ray.tune.schedulers import MedianStoppingRule

    n_ended = 0
    for seed in range(20):
        curves = random_curves(seed, sparse=sparse)
        reference = MedianStoppingRule(min_samples_required=3, **REFERENCE)
        expected = ends_by_ray(reference, curves, at_once)
        assert ends_by(Median(100), curves, at_once) == expected
        n_ended += len(expected)
    assert n_ended > 40


def test_hyperband_prunes_each_bracket_by_itself_and_draws_it_from_the_seed() -> None:
    rule = Halving(100, 3000, n_brackets=3, seed=5)
    brackets = [rule.bracket(trial) for trial in range(2000)]
    assert brackets == [rule.bracket(trial) for trial in range(2000)]
    assert brackets != [Halving(100, 3000, 3, seed=6).bracket(trial) for trial in range(2000)]
    # 4, 3 and 2 rungs, weighted by their exponentials as Ray does
    shares = np.bincount(brackets) / 2000
    assert shares == pytest.approx(np.exp([0, -1, -2]) / np.exp([0, -1, -2]).sum(), abs=0.03)
    late = brackets.index(2)
    judge = Judge("hyperband", rule)
    for trial in range(late):
        judge.ends(trial, 100, 1.0)
    assert not judge.ends(late, 100, 9.0)  # its first rung is at 900


@pytest.mark.parametrize("rule", [Halving(100, 900), Median(100)])
def test_a_lost_trial_is_the_worst_at_the_rungs_it_never_reached(rule: Pruner) -> None:
    judge = Judge("rule", rule)
    for trial in range(10):
        judge.ends(trial, 100, 1.0)
    for trial in range(3):
        judge.ends(trial, 300, 1.0)
    judge.ends(10, 100, 2.0)
    assert judge.ends(10, 300, 2.0)
    for trial in range(3, 10):
        judge.lose(trial)
    assert not judge.ends(10, 300, 2.0)


def test_a_loss_that_is_no_number_is_the_worst() -> None:
    judge = Judge("asha", pruner("asha", grace_tokens=100, max_tokens=900, seed=0))
    assert not judge.ends(0, 100, math.nan)
    assert not judge.ends(1, 100, 5.0)
    assert judge.ends(2, 100, math.inf)


def test_without_a_rule_nothing_ends() -> None:
    judge = Judge("none", pruner("none", grace_tokens=100, max_tokens=900, seed=0))
    assert not any(judge.ends(trial, 100, float(trial)) for trial in range(9))
    assert judge.condemned_at(8) is None


def test_what_was_rewound_is_forgotten() -> None:
    judge = Judge("asha", Halving(100, 900))
    for trial in range(3):
        judge.ends(trial, 100, 1.0)
    assert judge.ends(3, 100, 2.0)
    assert judge.condemned_at(3) == 100
    judge.rewind(3, 50)
    assert judge.condemned_at(3) is None


def test_the_plain_carrier_prunes_too(tmp_path: Path) -> None:
    good_then_bad = [point(0.0, 10**-2.5 * 10 ** (i / 8)) for i in range(8)]
    view = Remembering()
    ended = carry(
        sweep_of(*good_then_bad, n_trials=8), tmp_path, view, local=True, scheduler="asha"
    )
    assert ended.outcomes["pruned"] + ended.outcomes["ok"] == 8
    assert ended.outcomes["pruned"] >= 4
    for _, sink in view.trials:
        if sink.events[-1].outcome == "pruned":  # type: ignore[union-attr]
            assert isinstance(sink.events[-2], EvalDone)  # at the evaluation that condemned it


def test_a_diverged_trial_keeps_no_better_one_from_going_on(tmp_path: Path) -> None:
    bad = [point(DIVERGES)] * 1 + [point(DIVERGES, lr) for lr in (0.001, 0.01, 0.1)]
    carry(sweep_of(*bad, point(0.4), n_trials=5), tmp_path, local=True, scheduler="asha")
    assert [outcome for outcome, _ in outcomes_in(tmp_path)] == ["diverged"] * 4 + ["ok"]
