"""The walker of define-by-run spaces."""

import pytest

from bkray.cluster.grid import swept_paths, walk
from bkray.errors import ConfigError
from bkray.sweep import Trial


def conditional(trial: Trial) -> dict[str, object]:
    if trial.suggest_categorical("model.n_experts", [1, 2]) > 1:
        trial.suggest_int("top_k", 1, 2)
    trial.suggest_float("model.dropout", 0.0, 0.3, step=0.1)
    return {}


def test_walks_every_point_in_order_the_last_knob_fastest() -> None:
    def space(trial: Trial) -> dict[str, object]:
        trial.suggest_int("model.n_layers", 2, 6, step=2)
        trial.suggest_categorical("model.mixer", ["bk", "attention"])
        return {}

    assert [tuple(point.values()) for point in walk(space, {})] == [
        (2, "bk"),
        (2, "attention"),
        (4, "bk"),
        (4, "attention"),
        (6, "bk"),
        (6, "attention"),
    ]


def test_asks_for_a_conditional_knob_only_where_it_acts() -> None:
    points = list(walk(conditional, {}))
    assert len(points) == 4 + 2 * 4
    assert [p for p in points if p["model.n_experts"] == 1] == [
        {"model.n_experts": 1, "model.dropout": dropout} for dropout in (0.0, 0.1, 0.2, 0.3)
    ]
    assert {p["model.top_k"] for p in points if p["model.n_experts"] == 2} == {1, 2}


def test_steps_of_a_tenth_end_exactly_at_the_high_end() -> None:
    points = list(walk(conditional, {"model.n_experts": 1}))
    assert [point["model.dropout"] for point in points] == [0.0, 0.1, 0.2, 0.3]


def test_a_pinned_knob_is_no_dimension() -> None:
    points = list(walk(conditional, {"model.n_experts": 2, "model.top_k": 2}))
    assert points == [{"model.dropout": dropout} for dropout in (0.0, 0.1, 0.2, 0.3)]


def test_asking_twice_for_one_knob_counts_once() -> None:
    def space(trial: Trial) -> dict[str, object]:
        first = trial.suggest_int("model.n_layers", 1, 3)
        assert trial.suggest_int("model.n_layers", 1, 3) == first
        return {}

    assert [point["model.n_layers"] for point in walk(space, {})] == [1, 2, 3]


def test_a_continuous_float_is_refused_with_advice() -> None:
    def space(trial: Trial) -> dict[str, object]:
        trial.suggest_float("optimizer.lr", 1e-4, 1e-2, log=True)
        return {}

    with pytest.raises(ConfigError, match=r"optimizer\.lr.*step"):
        list(walk(space, {}))


def test_swept_paths_sees_behind_conditions_and_continuous_knobs() -> None:
    def space(trial: Trial) -> dict[str, object]:
        if trial.suggest_float("model.dropout", 0.0, 0.5) > 0.4:
            trial.suggest_float("optimizer.lr", 1e-4, 1e-2, log=True)
        return conditional(trial)

    assert set(swept_paths(space, {})) == {
        "model.dropout",
        "optimizer.lr",
        "model.n_experts",
        "model.top_k",
    }
    assert "model.dropout" not in swept_paths(space, {"model.dropout": 0.1})
