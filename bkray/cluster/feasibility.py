"""Where trials have diverged: how likely a point is to do so, by those tried near it.

Shapes: P points, T tried ones, C columns of the unit cube; a choice takes one column for each of
its values.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

_NEIGHBOURS = 5
_LEAST_RELEVANCE = 0.05
"""Of a knob that seems not to matter: divergence need not rise or fall along it."""

SearchSpace = Mapping[str, BaseDistribution]
Point = dict[str, Any]


def risk(
    space: SearchSpace,
    points: Sequence[Point],
    tried: Sequence[Point],
    diverged_T: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the share of diverged ones among the five tried points nearest to each point, (P,).

    A knob counts in the distance by how strongly it correlates with divergence: an edge along one
    of many knobs is found by a few trials, and the others are not held responsible for it.

    Args:
        space: at least one knob, each with more than one value.
        points: values of every knob of the space, and possibly others.
        tried: as ``points``, at least one.
        diverged_T: which of the tried ones diverged.

    Source: nearest neighbours, Cover and Hart 1967, IEEE Trans. Inf. Theory 13(1), 21-27.
    """
    tried_TC = _columns(space, tried)
    relevance_C = _relevance(tried_TC, diverged_T)
    apart_PTC = _columns(space, points)[:, None] - tried_TC
    distance_PT = np.square(apart_PTC * relevance_C).sum(-1)
    nearest = np.argsort(distance_PT, axis=1, kind="stable")[:, :_NEIGHBOURS]
    share_P: NDArray[np.float64] = diverged_T[nearest].mean(axis=1)
    return share_P


def _relevance(
    tried_TC: NDArray[np.float64], diverged_T: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the absolute correlation of each column with divergence, at least a little."""
    column_TC = tried_TC - tried_TC.mean(axis=0)
    verdict_T = diverged_T - diverged_T.mean()
    norm_C = np.sqrt(np.square(column_TC).sum(axis=0) * np.square(verdict_T).sum())
    product_C = np.abs(verdict_T @ column_TC)
    correlation_C = np.divide(product_C, norm_C, out=np.zeros_like(norm_C), where=norm_C > 0)
    relevance_C: NDArray[np.float64] = np.maximum(correlation_C, _LEAST_RELEVANCE)
    return relevance_C


def _columns(space: SearchSpace, points: Sequence[Point]) -> NDArray[np.float64]:
    """Return the points in the unit cube, (P, C)."""
    columns = [
        _unit(distribution, np.array([distribution.to_internal_repr(p[name]) for p in points]))
        for name, distribution in space.items()
    ]
    return np.concatenate(columns, axis=1)


def _unit(distribution: BaseDistribution, value_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values of one knob, as Optuna stores them, between 0 and 1, (P, columns)."""
    unit_PC: NDArray[np.float64]
    if isinstance(distribution, CategoricalDistribution):
        one_hot = value_P[:, None] == np.arange(len(distribution.choices))
        unit_PC = one_hot / np.sqrt(2)  # two different choices are 1 apart
        return unit_PC
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        value_P, low, high = np.log(value_P), np.log(low), np.log(high)
    unit_PC = ((value_P - low) / (high - low))[:, None]
    return unit_PC
