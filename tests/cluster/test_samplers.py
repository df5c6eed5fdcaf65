"""Samplers made anew for each proposal, and what they learn where trials diverge."""

import math
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from standin import LOSS, SPEED

from bkray.cluster.ledger import Ledger
from bkray.cluster.samplers import SAMPLERS, check_sampler, sampler, spread
from bkray.cluster.search import Proposal, Search
from bkray.errors import ConfigError
from bkray.overrides import Overrides
from bkray.sweep import Objective, Preset, Space, Sweep, Trial

CLIFF = 0.6
"""The share of the learning rate's range, in decades, in which trials end well."""


def with_a_cliff(trial: Trial) -> Overrides:
    trial.suggest_float("optimizer.lr", 1e-5, 10.0, log=True)
    trial.suggest_categorical("optimizer.warmup_steps", [0, 40])
    return {}


def conditional(trial: Trial) -> Overrides:
    if trial.suggest_categorical("model.n_layers", [1, 2]) == 2:
        trial.suggest_float("model.dropout", 0.0, 0.5)
    return with_a_cliff(trial)


def search(
    name: str,
    n_trials: int = 30,
    *,
    space: Space = with_a_cliff,
    objectives: tuple[Objective, ...] = (LOSS,),
    first: tuple[Overrides, ...] = (),
    seed: int = 5,
) -> Search:
    return Search(
        sweep=Sweep(name="t", space=space, objectives=objectives, presets={}, first=first),
        preset=Preset(trials=1),
        overrides={},
        sampler=name,
        seed=seed,
        n_trials=n_trials,
    )


def diverges(proposal: Proposal) -> bool:
    return height(proposal) > CLIFF


def height(proposal: Proposal) -> float:
    return (math.log10(proposal.config.optimizer.lr) + 5) / 6


def run_all(ledger: Ledger, at_most: int = 1000) -> list[Proposal]:
    """Run trials whose loss is the better the nearer they come to the cliff."""
    seen: list[Proposal] = []
    while len(seen) < at_most and (proposal := ledger.ask()) is not None:
        seen.append(proposal)
        values = [(0.55 - height(proposal)) ** 2, 1.0][: len(ledger.search.sweep.objectives)]
        broke = diverges(proposal)
        ledger.tell(proposal, None if broke else values, "diverged" if broke else "ok")
    return seen


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_allowed_name_gives_a_sampler(name: str) -> None:
    assert isinstance(sampler(name, seed=0, position=3, diverged={}), optuna.samplers.BaseSampler)


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
        study.sampler = sampler("qmc", seed=1, position=position, diverged={})
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        y = trial.suggest_float("y", 0, 1)
        cells.add((int(4 * x), int(4 * y)))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    # 16 random points fill 10 of 16 cells on average
    assert len(cells) == 16


@pytest.mark.parametrize(
    ("name", "objectives"), [("tpe", (LOSS,)), ("tpe", (LOSS, SPEED)), ("nsga2", (LOSS,))]
)
def test_a_sampler_that_learns_wastes_at_most_half_of_what_chance_wastes(
    name: str, objectives: tuple[Objective, ...]
) -> None:
    ledger = Ledger(None, search(name, 40, objectives=objectives, seed=0))
    late = run_all(ledger)[15:]
    ledger.close()
    assert sum(map(diverges, late)) <= 5  # chance wastes 40% of 25


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2"])
def test_a_resumed_sweep_remembers_where_trials_diverged(tmp_path: Path, name: str) -> None:
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    asked = search(name, 14, space=conditional)
    ledger = Ledger(folders[0], asked)
    whole = run_all(ledger)
    ledger.close()
    parts = []
    for portion in (7, 4, 100):  # the last proposal of each portion dies with its process
        ledger = Ledger(folders[1], asked)
        parts += run_all(ledger, portion)
        ledger.ask()
        ledger.close()
    assert parts == whole
    assert any(map(diverges, whole))


@pytest.mark.parametrize("n_objectives", [1, 2])
def test_what_diverged_before_any_trial_ended_well_is_remembered(n_objectives: int) -> None:
    high = tuple({"optimizer.lr": lr, "optimizer.warmup_steps": 0} for lr in (0.3, 1.0, 3.0, 9.0))
    low = tuple(
        {"optimizer.lr": lr, "optimizer.warmup_steps": 0} for lr in (1e-5, 1e-4, 1e-3, 1e-2)
    )
    objectives = (LOSS, SPEED)[:n_objectives]
    ledger = Ledger(None, search("tpe", 28, first=high + low, objectives=objectives))
    searched = run_all(ledger)[8:]
    ledger.close()
    there = [proposal for proposal in searched if height(proposal) > 0.74]
    assert len(there) <= 1  # chance puts 5 of 20 there
