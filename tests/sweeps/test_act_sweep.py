"""The ACT sweep as a value."""

from pathlib import Path

import pytest

from bkray.cluster.search import Proposal
from bkray.cluster.tuner import SweepOptions, planned
from bkray.errors import ConfigError
from bkray.overrides import Overrides
from search_spaces.act import GUIDE_PRESETS
from sweeps.act import SWEEP


def plan(preset: str = "small", overrides: Overrides | None = None) -> list[Proposal]:
    options = SweepOptions(out=Path("none"), preset=preset, overrides=overrides or {})
    return planned(SWEEP, options)


def test_dense_models_of_every_depth_come_first() -> None:
    rivals = [proposal for proposal in plan() if proposal.arm]
    assert plan()[: len(rivals)] == rivals
    assert [rival.arm for rival in rivals] == ["dense-1", "dense-2", "dense-3", "dense-4"]
    assert [rival.config.model.n_layers for rival in rivals] == [1, 2, 3, 4]
    assert {rival.config.model.depth for rival in rivals} == {"dense"}


@pytest.mark.parametrize("n_layers", [2, 6])
def test_the_rivals_follow_the_depth_of_the_searched_models(n_layers: int) -> None:
    proposals = plan(overrides={"n_layers": n_layers})
    rivals = [p.config for p in proposals if p.arm]
    assert [rival.model.n_layers for rival in rivals] == list(range(1, n_layers + 1))
    # speed is told relative to the model of full depth, for every one of them
    assert {rival.train.speed_reference_layers for rival in rivals} == {n_layers}
    assert {p.config.model.n_layers for p in proposals if not p.arm} == {n_layers}


def test_a_single_layer_that_could_not_stop_early_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_layers"):
        plan(overrides={"n_layers": 1})


def test_rivals_and_searched_models_differ_in_depth_alone() -> None:
    *rivals, dense = [p.config for p in plan() if p.arm]
    searched = next(p.config for p in plan() if not p.arm)
    assert rivals
    assert dense.data == searched.data
    assert dense.optimizer == searched.optimizer
    ours, theirs = searched.model.model_dump(), dense.model.model_dump()
    different = {name for name in ours if ours[name] != theirs[name]}
    assert different == {"depth", "act_threshold", "act_lambda", "halt_lr_factor"}


def test_the_guides_presets_are_tried_before_the_sampler() -> None:
    searched = [proposal for proposal in plan() if not proposal.arm]
    assert [
        {
            "model.act_threshold": p.config.model.act_threshold,
            "model.act_lambda": p.config.model.act_lambda,
        }
        for p in searched[:3]
    ] == list(GUIDE_PRESETS)
    assert len(searched) == SWEEP.presets["small"].trials


def test_the_full_preset_is_the_guides_whole_grid() -> None:
    searched = [p.config.model for p in plan("full") if not p.arm]
    assert len(searched) == len({(m.act_threshold, m.act_lambda) for m in searched}) == 30


def test_a_user_may_pin_lambda_and_search_the_threshold() -> None:
    proposals = plan("full", {"act_lambda": 0.02})
    searched = [p.config.model for p in proposals if not p.arm]
    assert {model.act_lambda for model in searched} == {0.02}
    assert sorted(model.act_threshold or 0 for model in searched) == [
        0.5,
        0.7,
        0.8,
        0.9,
        0.95,
        0.99,
    ]
    assert all(p.config.model.act_lambda is None for p in proposals if p.arm)
