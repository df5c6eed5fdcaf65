"""Samplers made anew for each proposal."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from bkray.cluster.samplers import SAMPLERS, check_sampler, sampler, spread
from bkray.errors import ConfigError


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_allowed_name_gives_a_sampler(name: str) -> None:
    assert isinstance(sampler(name, seed=0, position=3), optuna.samplers.BaseSampler)


def test_a_wrong_name_is_told_the_allowed_ones() -> None:
    with pytest.raises(ConfigError, match=r"tpe, gp, nsga2, qmc, random, grid.*'tbe'"):
        check_sampler("tbe")


@pytest.mark.parametrize("u", [0.0, 0.25, 0.5, 0.999999])
@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(-1.0, 2.0),
        FloatDistribution(1e-4, 1e-1, log=True),
        FloatDistribution(0.0, 0.3, step=0.1),
        IntDistribution(1, 9),
        IntDistribution(1, 9, step=4),
        IntDistribution(1, 100, log=True),
        CategoricalDistribution(["a", "b", "c"]),
    ],
)
def test_spread_stays_inside_its_distribution(
    distribution: optuna.distributions.BaseDistribution, u: float
) -> None:
    value = spread(distribution, u)
    assert distribution._contains(distribution.to_internal_repr(value))


def test_spread_gives_each_choice_its_share() -> None:
    shares = [spread(IntDistribution(0, 3), (i + 0.5) / 8) for i in range(8)]
    assert shares == [0, 0, 1, 1, 2, 2, 3, 3]


def test_spread_is_even_in_the_logarithm() -> None:
    assert spread(FloatDistribution(1e-4, 1e-2, log=True), 0.5) == pytest.approx(1e-3, rel=1e-12)


def test_qmc_fills_the_plane_more_evenly_than_chance() -> None:
    study = optuna.create_study()
    cells = set()
    for position in range(16):
        study.sampler = sampler("qmc", seed=1, position=position)
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        y = trial.suggest_float("y", 0, 1)
        cells.add((int(4 * x), int(4 * y)))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    # 16 random points fill 10 of 16 cells on average
    assert len(cells) == 16
