"""The length sweep as a value."""

from pathlib import Path

import pytest

from bkray.cluster.search import Proposal
from bkray.cluster.tuner import SweepOptions, planned
from bkray.overrides import Overrides
from search_spaces.length import GUIDE_PRESETS
from sweeps.length import SWEEP

KNOBS = ("model.length_penalty", "model.length_layout", "model.length_bins")


def plan(preset: str = "small", overrides: Overrides | None = None) -> list[Proposal]:
    options = SweepOptions(out=Path("none"), preset=preset, overrides=overrides or {})
    return planned(SWEEP, options)


def knobs(proposal: Proposal) -> dict[str, object]:
    model = proposal.config.model
    return {path: getattr(model, path.removeprefix("model.")) for path in KNOBS}


@pytest.mark.parametrize("n_layers", [1, 4])
def test_dense_models_of_every_depth_come_first(n_layers: int) -> None:
    proposals = plan(overrides={"n_layers": n_layers})
    rivals = proposals[:n_layers]
    depths = range(1, n_layers + 1)
    assert [rival.arm for rival in rivals] == [f"dense-{depth}" for depth in depths]
    assert [rival.config.model.n_layers for rival in rivals] == list(depths)
    assert {rival.config.train.speed_reference_layers for rival in rivals} == {n_layers}
    assert {rival.config.model.length for rival in rivals} == {"fixed"}
    assert {p.config.model.length for p in proposals[n_layers:]} == {"learned"}


def test_rivals_and_searched_models_differ_in_length_alone() -> None:
    *rivals, dense = [p.config for p in plan() if p.arm]
    searched = next(p.config for p in plan() if not p.arm)
    assert rivals
    assert (dense.data, dense.optimizer) == (searched.data, searched.optimizer)
    ours, theirs = searched.model.model_dump(), dense.model.model_dump()
    different = {name for name in ours if ours[name] != theirs[name]}
    assert "length" in different
    assert all(name.startswith("length") for name in different)


def test_rivals_are_dense_whatever_else_is_on() -> None:
    for adaptive in ({"depth": "act"}, {"multiscale": True}, {"sparsity": "learned"}):
        proposals = plan(overrides=adaptive)
        models = [p.config.model for p in proposals if p.arm]
        assert {(m.depth, m.multiscale, m.sparsity) for m in models} == {("dense", False, "off")}
        ((name, value),) = adaptive.items()
        assert {getattr(p.config.model, name) for p in proposals if not p.arm} == {value}


@pytest.mark.parametrize("preset", SWEEP.presets)
def test_all_train_on_the_mixture_with_as_many_rows_of_each_kind(preset: str) -> None:
    configs = [p.config for p in plan(preset)]
    assert {config.data.corpus for config in configs} == {"mixture"}
    assert {config.train.batch_size % 3 for config in configs} == {0}
    assert {config.train.eval_windows % 3 for config in configs} == {0}


def test_the_guides_presets_are_tried_before_the_sampler() -> None:
    searched = [proposal for proposal in plan() if not proposal.arm]
    assert [knobs(p) for p in searched[:3]] == list(GUIDE_PRESETS)
    assert len(searched) == SWEEP.presets["small"].trials


def test_the_full_preset_is_the_whole_grid() -> None:
    searched = [tuple(knobs(p).values()) for p in plan("full") if not p.arm]
    assert len(searched) == len(set(searched)) == 30


def test_a_user_may_pin_the_layout_and_bring_text_of_their_own() -> None:
    pinned = {"length_layout": "exponential", "length_bins": 4, "corpus": "stdlib"}
    proposals = plan(overrides=pinned)
    searched = [knobs(p) for p in proposals if not p.arm]
    assert {(k[KNOBS[1]], k[KNOBS[2]]) for k in searched} == {("exponential", 4)}
    assert len({k[KNOBS[0]] for k in searched}) == 12
    assert {p.config.data.corpus for p in proposals} == {"stdlib"}
    assert all(p.config.model.length_bins is None for p in proposals if p.arm)
