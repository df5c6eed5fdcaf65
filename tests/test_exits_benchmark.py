"""The arithmetic of ``benchmarks.exits``: which side of the dense curve a point lies on."""

import pytest

from benchmarks.exits import Point, gain, together

DEPTHS = [Point(1, 3.0, 0.3), Point(2, 2.0, 0.5), Point(3, 2.4, 0.8), Point(4, 1.0, 1.0)]


@pytest.mark.parametrize(
    ("time", "dense_nats"),
    [(0.3, 3.0), (0.4, 2.5), (0.5, 2.0), (0.8, 2.0), (0.9, 1.5), (1.0, 1.0), (1.2, 1.0)],
)
def test_a_gain_is_over_the_best_dense_models_that_are_no_slower(
    time: float, dense_nats: float
) -> None:
    assert gain(Point(2.5, 1.8, time), DEPTHS) == pytest.approx(dense_nats - 1.8)
    assert gain(Point(2.5, 1.8, time), DEPTHS[::-1]) == pytest.approx(dense_nats - 1.8)


def test_nothing_is_said_where_every_dense_model_takes_longer() -> None:
    assert gain(Point(1, 9.0, 0.29), DEPTHS) is None
    assert together([None]) == "no dense model is as quick (0 of 1 win, 1 not compared)"


def test_seeds_that_cannot_be_compared_are_no_part_of_the_mean() -> None:
    said = together([0.3, None, -0.1])
    assert said == "gain +0.1000 nats: win (1 of 3 win, 1 not compared)"
