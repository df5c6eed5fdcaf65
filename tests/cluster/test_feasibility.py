"""How likely a point is to diverge, by those tried near it."""

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from bkray.cluster.feasibility import risk

RATE = FloatDistribution(1e-5, 10.0, log=True)
RATES = [10.0**k for k in range(-5, 2)]


def test_it_is_the_share_of_the_five_nearest_by_decades() -> None:
    tried = [{"lr": rate} for rate in RATES]
    diverged = np.array([rate > 0.05 for rate in RATES])
    points = [{"lr": 1e-5}, {"lr": 2e-3}, {"lr": 2e-2}, {"lr": 10.0}]
    assert risk({"lr": RATE}, points, tried, diverged).tolist() == [0.2, 0.2, 0.4, 0.6]


@pytest.mark.parametrize(
    ("innocent", "values"),
    [
        (FloatDistribution(0.0, 1.0), [0.0, 1.0]),
        (IntDistribution(3, 9), [3, 9]),
        (CategoricalDistribution(["a", "b"]), ["a", "b"]),
        (CategoricalDistribution([True, False]), [True, False]),
    ],
)
def test_an_innocent_knob_moves_nothing(
    innocent: FloatDistribution | IntDistribution | CategoricalDistribution, values: list[object]
) -> None:
    rates = np.logspace(-5, 1, 12).tolist()
    tried = [{"lr": rate, "other": values[i % 2]} for i, rate in enumerate(rates)]
    diverged = np.arange(12) >= 7
    # neighbours that share the innocent value reach across the edge, those in the rate do not
    points = [{"lr": rates[4], "other": values[0]}, {"lr": rates[9], "other": values[1]}]
    space = {"lr": RATE, "other": innocent}
    assert risk(space, points, tried, diverged).tolist() == [0.0, 1.0]


def test_a_choice_can_be_the_one_that_diverges() -> None:
    space = {"lr": RATE, "optimizer": CategoricalDistribution(["adamw", "sgd", "lion"])}
    tried = [{"lr": rate, "optimizer": o} for o in ("adamw", "sgd", "lion") for rate in RATES]
    diverged = np.array([point["optimizer"] == "sgd" for point in tried])
    points = [{"lr": 0.02, "optimizer": o} for o in ("adamw", "sgd", "lion")]
    assert risk(space, points, tried, diverged).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("verdict", [True, False])
def test_points_of_one_verdict_say_that_verdict(verdict: bool) -> None:
    tried = [{"lr": 0.1}, {"lr": 0.1}]
    assert risk({"lr": RATE}, [{"lr": 1e-3}], tried, np.array([verdict] * 2)).tolist() == [verdict]
