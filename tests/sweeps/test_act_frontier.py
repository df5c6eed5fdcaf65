"""The ACT sweep whose threshold is swept at inference, as a value."""

from dataclasses import replace
from pathlib import Path

import pytest

from bkray.cluster.at_inference import check_at_inference
from bkray.cluster.schedulers import choose
from bkray.cluster.search import Proposal
from bkray.cluster.tuner import SweepOptions, base_config, planned, resolve
from bkray.errors import ConfigError
from bkray.overrides import Overrides
from bkray.sweep import SWEPT_AT_INFERENCE, no_rivals
from search_spaces.act import LAMBDAS
from sweeps.act import MATRIX_LAMBDA, MATRIX_THRESHOLDS, TRAINED_AT
from sweeps.load import load, names

FRONTIER = load("act", frontier=True)


def plan(preset: str = "small", overrides: Overrides | None = None) -> list[Proposal]:
    options = SweepOptions(out=Path("none"), preset=preset, overrides=overrides or {})
    return planned(FRONTIER, options)


@pytest.mark.parametrize("preset", FRONTIER.presets)
def test_one_model_per_cost_is_trained_and_all_at_one_threshold(preset: str) -> None:
    searched = [p.config.model for p in plan(preset) if not p.arm]
    assert {model.act_threshold for model in searched} == {TRAINED_AT}
    costs = [model.act_lambda for model in searched]
    assert costs[0] == MATRIX_LAMBDA, "a sweep of one model has it beside the arms"
    assert sorted(costs) == ([0.001, 0.01] if preset == "smoke" else list(LAMBDAS))


def test_the_arms_train_the_other_thresholds_beside_the_dense_rivals() -> None:
    rivals = {p.arm: p.config.model for p in plan() if p.arm}
    assert list(rivals) == ["dense-1", "dense-2", "dense-3", "dense-4", "act-0.5", "act-0.99"]
    swept = next(p.config.model for p in plan() if not p.arm)
    for threshold in (0.5, 0.99):
        arm = rivals[f"act-{threshold}"]
        assert arm == swept.model_copy(update={"act_threshold": threshold})
    assert sorted({0.5, 0.99, TRAINED_AT}) == list(MATRIX_THRESHOLDS)


def test_pinned_knobs_hold_for_the_matrix_too() -> None:
    plans = plan(overrides={"act_threshold": 0.5, "act_lambda": 0.02})
    act = [p for p in plans if p.config.model.depth == "act"]
    assert {p.config.model.act_lambda for p in act} == {0.02}
    assert [p.arm for p in act] == ["act-0.9", "act-0.99", ""]
    assert act[-1].config.model.act_threshold == 0.5


@pytest.mark.parametrize("knobs", [{"depth": "act_exit"}, {"depth": "exit"}, {"multiscale": True}])
def test_what_cannot_be_swept_at_inference_is_refused_before_training(knobs: Overrides) -> None:
    with pytest.raises(ConfigError, match=r"--frontier sweeps the threshold of model\.depth=act"):
        plan(overrides=knobs)


OWN = replace(FRONTIER, rivals=no_rivals)
"""As a user's own sweep may be: nothing but its space and knob."""


@pytest.mark.parametrize("knobs", [{"depth": "act_exit"}, {"multiscale": True}])
def test_nor_can_it_be_in_a_sweep_of_ones_own(knobs: Overrides) -> None:
    with pytest.raises(ConfigError, match=r"--frontier sweeps the threshold of model\.depth=act"):
        check(overrides=knobs)


def check(scheduler: str | None = None, overrides: Overrides | None = None) -> None:
    options = SweepOptions(out=Path("none"), preset="small", overrides=overrides or {})
    check_at_inference(OWN, base_config(resolve(OWN, options)), scheduler)


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_a_scheduler_that_ends_trials_early_is_refused(scheduler: str) -> None:
    with pytest.raises(ConfigError, match=rf"scheduler={scheduler} ends trials early: use"):
        check(scheduler)
    check("none")
    check()


def test_by_default_none_does() -> None:
    one = replace(FRONTIER, objectives=FRONTIER.objectives[:1])
    assert choose(None, one) == "none"
    assert choose(None, replace(one, at_inference="")) == "asha"


@pytest.mark.parametrize("knob", ["model.mixer", "model.act_lambda", "act_threshold", "nonsense"])
def test_a_knob_that_no_checkpoint_can_be_swept_in_is_refused(knob: str) -> None:
    allowed = ", ".join(SWEPT_AT_INFERENCE)
    with pytest.raises(ConfigError, match=f"at_inference must be one of {allowed}, got '{knob}'$"):
        replace(FRONTIER, at_inference=knob)


def test_every_other_sweep_refuses_and_says_who_does_not() -> None:
    for name in set(names()) - {"act"}:
        with pytest.raises(ConfigError, match=rf"--frontier: the sweep {name} .*such .*are: act$"):
            load(name, frontier=True)
