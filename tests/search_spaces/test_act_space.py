"""The spaces of adaptive computation time."""

import optuna

from bkray.cluster.grid import swept_paths, walk
from search_spaces.act import (
    GUIDE_PRESETS,
    suggest,
    suggest_cost,
    suggest_cost_grid,
    suggest_grid,
)


def test_the_grid_is_the_guides_thirty_points() -> None:
    points = [tuple(point.values()) for point in walk(suggest_grid, {})]
    assert len(set(points)) == len(points) == 30
    assert {threshold for threshold, _ in points} == {0.5, 0.7, 0.8, 0.9, 0.95, 0.99}
    assert {penalty for _, penalty in points} == {0.001, 0.005, 0.01, 0.05, 0.1}


def test_the_guides_presets_are_points_of_the_grid() -> None:
    points = list(walk(suggest_grid, {}))
    assert len(GUIDE_PRESETS) == 3
    assert all(preset in points for preset in GUIDE_PRESETS)


def test_both_spaces_search_the_same_knobs() -> None:
    knobs = ["model.act_threshold", "model.act_lambda"]
    assert swept_paths(suggest, {}) == swept_paths(suggest_grid, {}) == knobs


def test_the_cost_alone_has_the_same_range_and_grid() -> None:
    assert [list(point.values()) for point in walk(suggest_cost_grid, {})] == [
        *([0.001], [0.005], [0.01], [0.05], [0.1])
    ]
    trial = optuna.create_study().ask()
    suggest_cost(trial)
    penalty = optuna.distributions.FloatDistribution(0.001, 0.1, log=True)
    assert trial.distributions == {"model.act_lambda": penalty}


def test_the_continuous_space_covers_the_grid_and_spreads_lambda_by_its_logarithm() -> None:
    trial = optuna.create_study().ask()
    suggest(trial)
    threshold = trial.distributions["model.act_threshold"]
    penalty = trial.distributions["model.act_lambda"]
    assert threshold == optuna.distributions.FloatDistribution(0.5, 0.99)
    assert penalty == optuna.distributions.FloatDistribution(0.001, 0.1, log=True)
