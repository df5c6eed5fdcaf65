"""Samplers by name, made anew for each proposal so that a proposal depends on stored rows alone.

A sampler is seeded from (sweep seed, position), never carried from one proposal to the next: a
sweep that was resumed or repeated proposes what an undisturbed one does.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from scipy.stats import qmc

from bkray.errors import ConfigError

SAMPLERS = ("tpe", "gp", "nsga2", "qmc", "random", "grid")
UNLEARNING = ("qmc", "random", "grid")
"""Those whose proposals do not depend on results."""

_POPULATION = 10
"""Of NSGA-II. Optuna's 50 would make a sweep of some dozen trials a random search."""


def check_sampler(name: str) -> str:
    """Return ``name``, or raise ``ConfigError`` with the allowed ones."""
    if name not in SAMPLERS:
        raise ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    return name


def sampler(name: str, *, seed: int, position: int) -> BaseSampler:
    """Return the sampler for the proposal at ``position`` of a sweep with ``seed``.

    ``grid`` takes its points from ``grid.walk``; its sampler only fills the gaps of a first point
    that leaves knobs open.
    """
    own_seed = int(np.random.SeedSequence([seed, position]).generate_state(1)[0])
    match check_sampler(name):
        case "tpe":
            return TPESampler(seed=own_seed)
        case "gp":
            return GPSampler(seed=own_seed, warn_independent_sampling=False)
        case "nsga2":
            return NSGAIISampler(seed=own_seed, population_size=_POPULATION)
        case "qmc":
            return SobolSampler(seed=seed, position=position)
        case _:
            return RandomSampler(seed=own_seed)


class SobolSampler(BaseSampler):
    """Point ``position`` of a scrambled Sobol sequence; the i-th knob asked takes coordinate i.

    Optuna's own QMC sampler counts its points in the study, so an interrupted proposal shifts all
    later ones; it draws its first point at random and refuses conditional spaces.

    Source: Sobol 1967; Owen 1998, scrambling, as in ``scipy.stats.qmc.Sobol``.
    """

    _MAX_KNOBS = 64

    def __init__(self, *, seed: int, position: int) -> None:
        sequence = qmc.Sobol(self._MAX_KNOBS, scramble=True, rng=seed)
        if position:
            sequence.fast_forward(position)
        self._point: list[float] = sequence.random(1)[0].tolist()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        turn = len(trial.params)
        if turn >= self._MAX_KNOBS:
            raise ConfigError(f"sampler=qmc takes at most {self._MAX_KNOBS} knobs: use tpe")
        return spread(param_distribution, self._point[turn])


def spread(distribution: BaseDistribution, u: float) -> Any:
    """Return the value at the share ``u`` of the distribution, 0 <= u < 1."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(u * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if isinstance(distribution, IntDistribution) and distribution.log:
        # half a unit on each side gives the ends their full share; a tie of rounding may pass them
        return min(max(round(_log_between(low - 0.5, high + 0.5, u)), low), high)
    if distribution.log:
        return min(max(_log_between(low, high, u), low), high)
    if step is None:
        return low + u * (high - low)
    n_values = round((high - low) / step) + 1
    value = low + int(u * n_values) * step
    return value if isinstance(distribution, IntDistribution) else min(value, high)


def _log_between(low: float, high: float, u: float) -> float:
    return math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
