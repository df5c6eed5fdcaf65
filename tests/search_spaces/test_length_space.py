"""The spaces of learned length."""

import optuna
import pytest

from bkray.cluster.grid import swept_paths, walk
from bkray.nn.build import bins_of
from bkray.overrides import build
from search_spaces.length import GUIDE_PRESETS, suggest, suggest_grid


def test_the_grid_is_five_penalties_by_six_layouts() -> None:
    points = [tuple(point.values()) for point in walk(suggest_grid, {})]
    assert len(set(points)) == len(points) == 30
    assert {penalty for penalty, *_ in points} >= {0.005, 0.01, 0.02}
    assert {(layout, n_bins) for _, layout, n_bins in points} == {
        (layout, n_bins) for layout in ("linear", "exponential") for n_bins in (4, 8, 16)
    }


def test_the_guides_presets_are_points_of_the_grid() -> None:
    points = list(walk(suggest_grid, {}))
    assert [preset["model.length_penalty"] for preset in GUIDE_PRESETS] == [0.005, 0.01, 0.02]
    assert all(preset in points for preset in GUIDE_PRESETS)


def test_both_spaces_search_the_same_knobs() -> None:
    knobs = [f"model.length_{name}" for name in ("penalty", "layout", "bins")]
    assert swept_paths(suggest, {}) == swept_paths(suggest_grid, {}) == knobs


@pytest.mark.parametrize("n_seq", [64, 128])
def test_every_point_of_the_grid_has_as_many_lengths_as_it_says(n_seq: int) -> None:
    for point in walk(suggest_grid, {}):
        model = build({"model.n_seq": n_seq, "model.length": "learned", **point}).model
        bins = bins_of(model)
        assert len(bins) == point["model.length_bins"]
        assert bins[-1] == n_seq


def test_the_continuous_space_covers_the_grid_and_spreads_the_penalty_by_its_logarithm() -> None:
    trial = optuna.create_study().ask()
    suggest(trial)
    penalty = trial.distributions["model.length_penalty"]
    assert penalty == optuna.distributions.FloatDistribution(0.005, 0.5, log=True)
    assert trial.params.keys() == set(swept_paths(suggest_grid, {}))
