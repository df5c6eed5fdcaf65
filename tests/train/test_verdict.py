"""What may be concluded of a knob swept at inference, from made numbers."""

from typing import Any

import pytest

from bkray.train.frontier import StopPoint
from bkray.train.verdict import (
    ALLOWED_COST_NATS,
    ALLOWED_GAP_NATS,
    Cost,
    Matrix,
    Rival,
    SweptModel,
    judge,
)

KNOB = "model.act_threshold"
POINTS = (StopPoint(0.1, 1.0, 2.5), StopPoint(0.9, 2.0, 2.3), StopPoint(1.0, 3.0, 2.4))


def model(
    gap: float = 0.004, cost: float | str = 0.01, *points: StopPoint, seed: int = 0
) -> SweptModel:
    knobs = {"model.act_lambda": cost}
    return SweptModel("0a1b", seed, knobs, 0.9, gap, points or POINTS)


def matrix(*nats: float | None, n_seeds: int = 1) -> Matrix:
    costs = [Cost(value, lost, n_seeds) for value, lost in zip((0.5, 0.99), nats, strict=True)]
    return Matrix({"model.act_lambda": 0.01}, (), tuple(costs))


def test_it_is_replaced_where_gap_and_matrix_allow() -> None:
    found = judge(
        KNOB,
        (model(), model(ALLOWED_GAP_NATS, seed=1)),
        matrix(0.0012, ALLOWED_COST_NATS, n_seeds=2),
    )
    assert found.is_replaced
    assert found.verdict == (
        "act_threshold swept at inference: largest gap 0.0100 nats <= 0.01; at equal layers, "
        "testing away from the trained 0.9 costs at most 0.0300 nats (mean over 2 seeds) <= 0.03"
    )


def test_a_verdict_on_one_seed_says_so() -> None:
    assert "0.0012 nats (one seed) <= 0.03" in judge(KNOB, (model(),), matrix(0.0012, 0)).verdict


def test_a_model_better_than_those_trained_there_costs_nothing() -> None:
    found = judge(KNOB, (model(),), matrix(-0.2, -0.1))
    assert found.matrix is not None
    assert found.matrix.largest_cost_nats == 0
    assert "costs at most 0.0000 nats (one seed)" in found.verdict


def test_a_model_with_a_gap_is_named_and_left_out() -> None:
    found = judge(KNOB, (model(), model(0.05, 0.1, StopPoint(0.9, 1.0, 0.1))), matrix(0.0, 0.0))
    assert found.is_replaced
    assert (
        "act_threshold swept at inference, but not at act_lambda=0.1, where estimate and "
        "truth are up to 0.0500 nats apart: largest gap 0.0040 nats <= 0.01"
    ) in found.verdict
    assert {point["model.act_lambda"] for point in found.front} == {0.01}


def test_a_configuration_that_one_seed_refuses_is_not_shown_by_its_other_seed() -> None:
    others = (model(0.05, 0.1), model(0.0, 0.1, StopPoint(0.9, 1.0, 0.1), seed=1))
    found = judge(KNOB, (model(), *others), matrix(0.0, 0.0))
    assert "but not at act_lambda=0.1, where" in found.verdict
    assert {point["model.act_lambda"] for point in found.front} == {0.01}


@pytest.mark.parametrize("seed", [0, 1])
def test_if_the_matrix_stands_on_a_model_with_a_gap_nothing_is_replaced(seed: int) -> None:
    """Another cost's model is close to the truth, but what it costs was not measured with it."""
    own = (model(0.05, seed=seed), model(seed=1 - seed))
    found = judge(KNOB, (*own, model(0.0, 0.1)), matrix(0.0, 0.0))
    assert not found.is_replaced
    assert found.front == ()
    assert "of the matrix's own model act_lambda=0.01 estimate and truth" in found.verdict


@pytest.mark.parametrize(
    ("models", "beside", "why"),
    [
        (
            (model(),),
            matrix(0.01, 0.031),
            "costs at most 0.0310 nats (one seed) > 0.03, against a model trained at 0.99",
        ),
        ((model(0.011), model(0.05)), matrix(0.0, 0.0), "up to 0.0500 nats apart > 0.01"),
        ((model(),), None, "the matrix lacks trials that ended ok"),
        (
            (model(),),
            matrix(0.0, None),
            "at no threshold does the swept model run as many layers as one trained at 0.99, so",
        ),
    ],
    ids=["matrix", "gap", "no matrix", "unknown"],
)
def test_else_it_is_not_and_it_is_said_why(models: Any, beside: Any, why: str) -> None:
    found = judge(KNOB, models, beside)
    assert not found.is_replaced
    assert found.front == ()
    assert found.verdict.startswith("training at other values of act_threshold was not replaced: ")
    assert why in found.verdict


def test_without_a_model_nothing_was_swept() -> None:
    found = judge(KNOB, (), matrix(0.0, 0.0))
    assert not found.is_replaced
    assert "no trial to sweep it from ended ok" in found.verdict


@pytest.mark.parametrize("models", [(), (model(),)], ids=["no model", "no matrix"])
def test_what_could_not_be_read_is_the_reason_then(models: Any) -> None:
    note = "trial 0a1b could not be read: gone"
    found = judge(KNOB, models, None, (note,))
    assert note in found.verdict
    assert "ended ok" not in found.verdict
    assert found.notes == (note,)


def test_the_front_has_what_none_beats_in_layers_and_loss() -> None:
    other = model(0.0, 0.1, StopPoint(0.3, 1.0, 2.4), StopPoint(0.8, 2.5, 2.2))
    found = judge(KNOB, (model(), other), matrix(0.0, 0.0))
    assert found.front == (
        {"avg_layers": 1, "loss_nats": 2.4, "model.act_lambda": 0.1, KNOB: 0.3, "n_seeds": 1},
        {"avg_layers": 2, "loss_nats": 2.3, "model.act_lambda": 0.01, KNOB: 0.9, "n_seeds": 1},
        {"avg_layers": 2.5, "loss_nats": 2.2, "model.act_lambda": 0.1, KNOB: 0.8, "n_seeds": 1},
    )


def test_the_front_is_of_means_over_seeds_and_not_of_the_luckiest() -> None:
    seeds = (
        model(0.0, 0.01, StopPoint(0.5, 1.0, 2.0), StopPoint(0.9, 2.0, 1.0)),
        model(0.0, 0.01, StopPoint(0.5, 2.0, 3.0), StopPoint(0.9, 3.0, 1.5), seed=1),
    )
    found = judge(KNOB, seeds, matrix(0.0, 0.0))
    assert found.front == (
        {"avg_layers": 1.5, "loss_nats": 2.5, "model.act_lambda": 0.01, KNOB: 0.5, "n_seeds": 2},
        {"avg_layers": 2.5, "loss_nats": 1.25, "model.act_lambda": 0.01, KNOB: 0.9, "n_seeds": 2},
    )


@pytest.mark.parametrize(
    ("n_layers", "loss", "is_better"), [(2, 2.2, True), (3, 2.2, False), (2, 2.3, False)]
)
def test_a_dense_rival_that_is_better_than_the_front_is_named(
    n_layers: int, loss: float, is_better: bool
) -> None:
    rivals = (Rival("dense-1", 1, 9.0), Rival("dense-x", n_layers, loss))
    found = judge(KNOB, (model(),), matrix(0.0, 0.0), (), rivals)
    said = (
        "; yet the dense rival dense-x is better than all of them: 2.2000 nats with 2 layers, "
        "against 2.3000 with 2.000"
    )
    assert found.verdict.endswith(said) == is_better
    assert ("rival" in found.verdict) == is_better


def test_knobs_that_are_no_numbers_are_said_as_they_are() -> None:
    """Such as a rule or a switch in the space of a user's own sweep."""
    found = judge(KNOB, (model(), model(0.05, "careful")), matrix(0.0, 0.0))
    assert "but not at act_lambda=careful, where" in found.verdict
