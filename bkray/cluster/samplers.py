"""Samplers by name, made anew for each proposal so that a proposal depends on stored rows alone.

A sampler is seeded from (sweep seed, position), never carried from one proposal to the next: a
sweep that was resumed or repeated proposes what an undisturbed one does.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial

from bkray.cluster.feasibility import Point, SearchSpace, risk
from bkray.errors import ConfigError

SAMPLERS = ("tpe", "gp", "nsga2", "qmc", "random", "grid")
UNLEARNING = ("qmc", "random", "grid")
"""Those whose proposals do not depend on results."""

_FEW_CANDIDATES = 4
"""Of TPE, when it draws again. It likes best where nothing was tried, and of its usual 24
candidates one nearly always lies where nothing was tried because it diverges."""
_POPULATION = 10
"""Of NSGA-II. Optuna's 50 would make a sweep of some dozen trials a random search."""


def check_sampler(name: str) -> str:
    """Return ``name``, or raise ``ConfigError`` with the allowed ones."""
    if name not in SAMPLERS:
        raise ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    return name


def sampler(name: str, *, seed: int, position: int, diverged: Mapping[int, bool]) -> BaseSampler:
    """Return the sampler for the proposal at ``position`` of a sweep with ``seed``.

    ``grid`` takes its points from ``grid.walk``; its sampler only fills the gaps of a first point
    that leaves knobs open.

    Args:
        diverged: by the number of the study's row; rows about which nothing is known are missing.
            Samplers that learn keep away from where trials diverged.
    """
    own_seed, other_seed = np.random.SeedSequence([seed, position]).generate_state(2).tolist()
    inner: BaseSampler
    again: BaseSampler
    match check_sampler(name):
        case "tpe":
            inner = TPESampler(seed=own_seed)
            again = TPESampler(seed=other_seed, n_ei_candidates=_FEW_CANDIDATES)
        case "gp":
            return GPSampler(seed=own_seed, warn_independent_sampling=False)
        case "nsga2":
            inner = again = NSGAIISampler(seed=own_seed, population_size=_POPULATION)
        case "qmc":
            return SobolSampler(seed=seed, position=position)
        case _:
            return RandomSampler(seed=own_seed)
    return AvoidingSampler(inner, again, diverged=diverged)


class AvoidingSampler(BaseSampler):
    """What ``inner`` proposes; where most trials nearby diverged, a draw of ``again`` instead.

    Where no draw is better, it is the least risky one: a region is shunned, never closed. Only the
    knobs that every finished trial was asked for are judged.
    """

    _N_DRAWS = 32
    _ACCEPTED = 0.5

    def __init__(
        self, inner: BaseSampler, again: BaseSampler, *, diverged: Mapping[int, bool]
    ) -> None:
        self._inner = inner
        self._again = again
        self._diverged = diverged
        self._inner_space: dict[str, BaseDistribution] = {}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        self._inner_space = self._inner.infer_relative_search_space(study, trial)
        rows = study.get_trials(deepcopy=False)
        common = self._inner_space or intersection_search_space(rows, include_pruned=True)
        return {name: knob for name, knob in common.items() if not knob.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        draw = partial(self._draw, study, trial, search_space)
        best = draw(self._inner)
        tried = [
            row
            for row in study.get_trials(deepcopy=False)
            if row.number in self._diverged and search_space.keys() <= row.params.keys()
        ]
        diverged = np.array([self._diverged[row.number] for row in tried], dtype=bool)
        if not search_space or not diverged.any():
            return best
        judge = partial(
            risk, search_space, tried=[row.params for row in tried], diverged_T=diverged
        )
        (least,) = judge([best])
        for _ in range(self._N_DRAWS):
            if least <= self._ACCEPTED:
                break
            other = draw(self._again)
            (share,) = judge([other])
            if share < least:
                best, least = other, share
        return best

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def _draw(
        self, study: Study, trial: FrozenTrial, space: SearchSpace, source: BaseSampler
    ) -> Point:
        joint = source.sample_relative(study, trial, self._inner_space)
        return {
            name: joint[name]
            if name in joint
            else source.sample_independent(study, trial, name, knob)
            for name, knob in space.items()
        }


class SobolSampler(BaseSampler):
    """Point ``position`` of a scrambled Sobol sequence; the i-th knob asked takes coordinate i.

    Optuna's own QMC sampler counts its points in the study, so an interrupted proposal shifts all
    later ones; it draws its first point at random and refuses conditional spaces.

    Source: Sobol 1967; Owen 1998, scrambling, as in ``scipy.stats.qmc.Sobol``.
    """

    _MAX_KNOBS = 64

    def __init__(self, *, seed: int, position: int) -> None:
        from scipy.stats import qmc  # as slow to import as torch is, and each worker would

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
