"""What may be concluded of a knob swept at inference, from made numbers."""

from typing import Any

import pytest

from bkray.train.frontier import StopPoint
from bkray.train.verdict import (
    ALLOWED_COST_NATS,
    ALLOWED_GAP_NATS,
    Cost,
    Matrix,
    SweptModel,
    judge,
)

KNOB = "model.act_threshold"
POINTS = (StopPoint(0.1, 1.0, 2.5), StopPoint(0.9, 2.0, 2.3), StopPoint(1.0, 3.0, 2.4))


def model(gap: float = 0.004, cost: float = 0.01, *points: StopPoint) -> SweptModel:
    knobs = {"model.act_lambda": cost}
    return SweptModel("0a1b", 0, knobs, 0.9, gap, points or POINTS)


def matrix(*nats: float) -> Matrix:
    costs = [Cost(value, lost) for value, lost in zip((0.5, 0.99), nats, strict=True)]
    return Matrix({"model.act_lambda": 0.01}, (), tuple(costs))


def test_it_is_replaced_where_gap_and_matrix_allow() -> None:
    found = judge(KNOB, (model(), model(ALLOWED_GAP_NATS)), matrix(0.0012, ALLOWED_COST_NATS))
    assert found.is_replaced
    assert found.verdict == (
        "act_threshold swept at inference: largest gap 0.0100 nats <= 0.01; at equal layers, "
        "testing away from the trained 0.9 costs at most 0.0300 nats <= 0.03"
    )


def test_a_model_better_than_those_trained_there_costs_nothing() -> None:
    found = judge(KNOB, (model(),), matrix(-0.2, -0.1))
    assert found.matrix is not None
    assert found.matrix.largest_cost_nats == 0
    assert "costs at most 0.0000 nats" in found.verdict


def test_a_model_with_a_gap_is_named_and_left_out() -> None:
    found = judge(KNOB, (model(), model(0.05, 0.1, StopPoint(0.9, 1.0, 0.1))), matrix(0.0, 0.0))
    assert found.is_replaced
    assert (
        "act_threshold swept at inference, but not at act_lambda=0.1 seed=0, where estimate and "
        "truth are up to 0.0500 nats apart: largest gap 0.0040 nats <= 0.01"
    ) in found.verdict
    assert {point["model.act_lambda"] for point in found.front} == {0.01}


@pytest.mark.parametrize(
    ("models", "beside", "why"),
    [
        (
            (model(),),
            matrix(0.01, 0.031),
            "costs at most 0.0310 nats > 0.03, against a model trained at 0.99",
        ),
        ((model(0.011), model(0.05)), matrix(0.0, 0.0), "up to 0.0500 nats apart > 0.01"),
        ((model(),), None, "the matrix lacks trials that ended ok"),
    ],
    ids=["matrix", "gap", "no matrix"],
)
def test_else_it_is_not_and_it_is_said_why(models: Any, beside: Any, why: str) -> None:
    found = judge(KNOB, models, beside)
    assert not found.is_replaced
    assert found.front == ()
    assert found.verdict.startswith("training at other values of act_threshold was not replaced: ")
    assert why in found.verdict


def test_without_a_model_nothing_was_swept() -> None:
    found = judge(KNOB, (), matrix(0.0, 0.0), ("0a1b left out: gone",))
    assert not found.is_replaced
    assert "no trial to sweep it from ended ok" in found.verdict
    assert found.notes == ("0a1b left out: gone",)


def test_the_front_has_what_none_beats_in_layers_and_loss() -> None:
    other = model(0.0, 0.1, StopPoint(0.3, 1.0, 2.4), StopPoint(0.8, 2.5, 2.2))
    found = judge(KNOB, (model(), other), matrix(0.0, 0.0))
    assert found.front == (
        {"avg_layers": 1, "loss_nats": 2.4, "model.act_lambda": 0.1, KNOB: 0.3, "seed": 0},
        {"avg_layers": 2, "loss_nats": 2.3, "model.act_lambda": 0.01, KNOB: 0.9, "seed": 0},
        {"avg_layers": 2.5, "loss_nats": 2.2, "model.act_lambda": 0.1, KNOB: 0.8, "seed": 0},
    )
