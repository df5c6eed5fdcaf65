"""The ablation as a value: which arms there are, and that they differ in their features alone."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from standin import LOSS, SPEED, carry

from bkray.cluster.search import Proposal
from bkray.cluster.tuner import SweepOptions, planned, resolve
from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.overrides import Overrides, build
from sweeps.ablation import FEATURES, SET_BY_ARMS, SWEEP

APART = {("act", "exit"), ("act", "sparsity"), ("exit", "sparsity")}
"""Pairs that no config allows."""


def plan(preset: str = "small", overrides: Overrides | None = None) -> list[Proposal]:
    options = SweepOptions(out=Path("none"), preset=preset, overrides=overrides or {})
    return planned(SWEEP, options)


def features_on(config: TrialConfig) -> set[str]:
    model = config.model
    on = {
        "act": model.depth == "act",
        "exit": model.depth == "exit",
        "length": model.length == "learned",
        "multiscale": bool(model.multiscale),
        "sparsity": model.sparsity == "learned",
        "experts": (model.n_experts or 1) > 1,
    }
    return {name for name, is_on in on.items() if is_on}


@pytest.mark.parametrize("preset", SWEEP.presets)
def test_nothing_each_feature_and_every_pair_that_a_config_allows(preset: str) -> None:
    pairs = [pair for pair in itertools.combinations(FEATURES, 2) if pair not in APART]
    names = ["none", *FEATURES, *map("+".join, pairs)]
    proposals = plan(preset)
    assert [proposal.arm for proposal in proposals] == names
    assert len(names) == 19
    for name, proposal in zip(names, proposals, strict=True):
        assert features_on(proposal.config) == set(name.split("+")) - {"none"}


def test_pairs_that_are_left_out_are_those_that_no_config_allows() -> None:
    assert FEATURES["act"][0] == FEATURES["exit"][0]  # one slot
    for depth in ("act", "exit"):
        with pytest.raises(ConfigError, match="sparsity"):
            build({"model.depth": depth, "model.sparsity": "learned"})


def test_arms_differ_in_their_features_alone() -> None:
    none, *others = [proposal.config for proposal in plan()]
    knobs = ("act_", "halt_", "exit_", "sparsity_", "length_", "top_k", "balance_", "router")
    for other in others:
        assert (other.data, other.optimizer, other.train) == (
            none.data,
            none.optimizer,
            none.train,
        )
        ours, theirs = other.model.model_dump(), none.model.model_dump()
        differing = {name for name in ours if ours[name] != theirs[name]}
        slots = {path.removeprefix("model.") for path in SET_BY_ARMS}
        assert {name for name in differing if not name.startswith(knobs)} <= slots


def test_seeds_are_the_same_in_every_arm() -> None:
    search = resolve(SWEEP, SweepOptions(out=Path("none"), preset="smoke", seeds=3))
    assert (search.n_searched, search.n_planned) == (0, 3 * 19)
    seeds = {tuple(arm.seeded(turn)["seed"] for turn in range(3)) for arm in search.rivals()}
    assert seeds == {(0, 1, 2)}


def test_a_knob_goes_to_the_arms_in_which_it_acts() -> None:
    costs = {p.arm: p.config.model.act_lambda for p in plan(overrides={"act_lambda": 0.05})}
    assert {arm for arm, cost in costs.items() if cost is not None} == {
        *("act", "act+length", "act+multiscale", "act+experts")
    }
    assert costs["act+length"] == 0.05


@pytest.mark.parametrize("path", SET_BY_ARMS)
def test_a_feature_cannot_be_pinned(path: str) -> None:
    with pytest.raises(ConfigError, match=rf"sets {path} itself"):
        plan(overrides={path: 1})


def test_a_model_of_ones_own_has_no_ablation() -> None:
    with pytest.raises(ConfigError, match=r"model\.build"):
        plan(overrides={"model": "mine:build"})


def test_a_sweep_of_arms_alone_runs_to_its_end(tmp_path: Path) -> None:
    sweep = replace(SWEEP, objectives=(LOSS, SPEED))
    ended = carry(sweep, tmp_path, preset="smoke", local=True, seeds=2)
    assert (ended.outcomes, ended.n_planned, ended.n_reused) == ({"ok": 38}, 38, 0)
    again = carry(sweep, tmp_path, preset="smoke", local=True, seeds=2, resume=True)
    assert again.outcomes == {"ok": 38}
