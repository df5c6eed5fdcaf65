"""Whether a knob that was swept at inference stands in for training at its other values."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bkray.train.frontier import StopPoint

ALLOWED_GAP_NATS = 0.01
"""Between the estimate of a recorded pass and a true evaluation: 1% of perplexity."""

ALLOWED_COST_NATS = 0.03
"""Of testing away from the trained value. Equal runs that differ in rounding alone end about so
far apart (docs/log.md): a smaller cost could not be told from chance."""


@dataclass(frozen=True, slots=True)
class SweptModel:
    """One checkpoint and what the knob does to it. ``knobs`` are the searched ones.

    ``evaluated`` are true evaluations; the estimate between them is in the trial's own file.
    """

    trial_id: str
    seed: int
    knobs: Mapping[str, Any]
    trained: float
    largest_gap_nats: float
    evaluated: tuple[StopPoint, ...]

    @property
    def is_allowed(self) -> bool:
        """Whether estimate and truth are close enough."""
        return self.largest_gap_nats <= ALLOWED_GAP_NATS


@dataclass(frozen=True, slots=True)
class Cell:
    """Means over the seeds of a model trained at one value and evaluated at another."""

    trained: float
    tested: float
    avg_layers: float
    loss_nats: float
    n_seeds: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Nats that the swept model loses, with as many layers, against one trained at ``value``.

    Mean over ``n_seeds``; ``None`` where the swept model runs as many layers at no threshold.
    """

    value: float
    nats: float | None
    n_seeds: int = 1


@dataclass(frozen=True, slots=True)
class Matrix:
    """Trained by tested values, everything else the same; ``knobs`` are the searched ones."""

    knobs: Mapping[str, Any]
    cells: tuple[Cell, ...]
    costs: tuple[Cost, ...]

    @property
    def largest_cost_nats(self) -> float | None:
        """What testing away from the trained value costs at most, 0 if nothing anywhere; ``None``
        where a cost is unknown."""
        known = [cost.nats for cost in self.costs if cost.nats is not None]
        return max(0.0, *known) if len(known) == len(self.costs) else None


@dataclass(frozen=True, slots=True)
class Rival:
    """A dense model of the sweep; ``loss_nats`` is a mean over seeds."""

    name: str
    n_layers: float
    loss_nats: float


@dataclass(frozen=True, slots=True)
class AtInference:
    """All of a sweep; ``matrix`` is ``None`` where its trials did not end well."""

    knob: str
    allowed_gap_nats: float
    allowed_cost_nats: float
    models: tuple[SweptModel, ...]
    matrix: Matrix | None
    rivals: tuple[Rival, ...]
    front: tuple[Mapping[str, Any], ...]
    """Best true evaluations by layers and loss, means over the seeds of one configuration, of
    those that the gap allows with every seed."""
    is_replaced: bool
    """Whether the sweep at inference stands in for training at other values, anywhere."""
    verdict: str
    notes: tuple[str, ...]


def judge(
    knob: str,
    models: tuple[SweptModel, ...],
    matrix: Matrix | None,
    notes: tuple[str, ...] = (),
    rivals: tuple[Rival, ...] = (),
) -> AtInference:
    """Return the models and the matrix with the verdict on them.

    ``notes`` say which trials could not be read, ``rivals`` what dense models came to.
    """
    refused = _why_refused(knob, models, matrix, notes)
    best = front(_allowed(models), knob) if not refused else ()
    return AtInference(
        knob=knob,
        allowed_gap_nats=ALLOWED_GAP_NATS,
        allowed_cost_nats=ALLOWED_COST_NATS,
        models=models,
        matrix=matrix,
        rivals=rivals,
        front=best,
        is_replaced=not refused,
        verdict=refused or _admitted(knob, models, matrix) + _beaten(best, rivals),
        notes=notes,
    )


def front(models: Sequence[SweptModel], knob: str) -> tuple[Mapping[str, Any], ...]:
    """Return the means over seeds than which none has both fewer layers and a smaller loss."""
    points = []
    for seeds in _configurations(models):
        of_threshold: dict[float, list[StopPoint]] = defaultdict(list)
        for one in (point for model in seeds for point in model.evaluated):
            of_threshold[one.threshold].append(one)
        for threshold, ones in of_threshold.items():
            layers = fmean(one.avg_layers for one in ones)
            loss = fmean(one.loss_nats for one in ones)
            at = {**seeds[0].knobs, knob: threshold, "n_seeds": len(ones)}
            points.append({"avg_layers": layers, "loss_nats": loss, **at})
    best: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda one: (one["avg_layers"], one["loss_nats"])):
        if not best or point["loss_nats"] < best[-1]["loss_nats"]:
            best.append(point)
    return tuple(best)


def knob_words(knobs: Mapping[str, Any]) -> str:
    """Return short names and values, each followed by a space."""
    words = (f"{value:g}" if isinstance(value, float) else value for value in knobs.values())
    return "".join(
        f"{path.rpartition('.')[2]}={word} " for path, word in zip(knobs, words, strict=True)
    )


def _configurations(models: Sequence[SweptModel]) -> list[list[SweptModel]]:
    """Return the models in groups that differ in the seed alone."""
    groups: dict[str, list[SweptModel]] = defaultdict(list)
    for model in models:
        groups[json.dumps(dict(model.knobs), sort_keys=True)].append(model)
    return list(groups.values())


def _allowed(models: Sequence[SweptModel]) -> list[SweptModel]:
    """Return the models of those configurations that the gap allows with every seed."""
    groups = _configurations(models)
    return [one for group in groups if all(m.is_allowed for m in group) for one in group]


def _why_refused(
    knob: str, models: Sequence[SweptModel], matrix: Matrix | None, notes: Sequence[str]
) -> str:
    """Return why training was not replaced, nothing where it was."""
    name = knob.rpartition(".")[2]
    unread = "; ".join(notes)
    if not models:
        why = unread or "no trial to sweep it from ended ok"
        return f"{name} was not swept at inference: {why}"
    refused = f"training at other values of {name} was not replaced: "
    if matrix is None:
        why = unread or "the matrix lacks trials that ended ok"
        return f"{refused}{why}, so nobody knows what it costs"
    own = [model for model in models if model.knobs == matrix.knobs]
    gap = max(model.largest_gap_nats for model in own)
    if gap > ALLOWED_GAP_NATS:
        return (
            f"{refused}of the matrix's own model {knob_words(matrix.knobs)}estimate and truth are "
            f"up to {gap:.4f} nats apart > {ALLOWED_GAP_NATS:g}"
        )
    outside = [f"{cost.value:g}" for cost in matrix.costs if cost.nats is None]
    if outside:
        return (
            f"{refused}at no threshold does the swept model run as many layers as one trained at "
            f"{' or '.join(outside)}, so nobody knows what it costs"
        )
    worst = max(matrix.costs, key=lambda cost: cost.nats or 0.0)
    if (matrix.largest_cost_nats or 0.0) > ALLOWED_COST_NATS:
        return (
            f"{refused}{_tested(matrix, models)} > {ALLOWED_COST_NATS:g}, against a model "
            f"trained at {worst.value:g}"
        )
    return ""


def _tested(matrix: Matrix, models: Sequence[SweptModel]) -> str:
    n_seeds = min(cost.n_seeds for cost in matrix.costs)
    seeds = "one seed" if n_seeds == 1 else f"mean over {n_seeds} seeds"
    return (
        f"at equal layers, testing away from the trained {models[0].trained:g} costs at most "
        f"{matrix.largest_cost_nats:.4f} nats ({seeds})"
    )


def _admitted(knob: str, models: Sequence[SweptModel], matrix: Matrix | None) -> str:
    assert matrix is not None
    allowed = _allowed(models)
    where, apart = "", [group for group in _configurations(models) if group[0] not in allowed]
    if apart:
        lost = "; ".join(knob_words(group[0].knobs).rstrip() for group in apart)
        gap = max(model.largest_gap_nats for group in apart for model in group)
        where = f", but not at {lost}, where estimate and truth are up to {gap:.4f} nats apart"
    gap = max(model.largest_gap_nats for model in allowed)
    return (
        f"{knob.rpartition('.')[2]} swept at inference{where}: largest gap {gap:.4f} nats <= "
        f"{ALLOWED_GAP_NATS:g}; {_tested(matrix, models)} <= {ALLOWED_COST_NATS:g}"
    )


def _beaten(best: Sequence[Mapping[str, Any]], rivals: Sequence[Rival]) -> str:
    """Return which dense model needs no more layers than the front's smallest loss, and loses
    less. Of the measured speed nothing is known away from the trained threshold."""
    layers, loss = best[-1]["avg_layers"], best[-1]["loss_nats"]
    better = [one for one in rivals if one.n_layers <= layers and one.loss_nats < loss]
    if not better:
        return ""
    rival = min(better, key=lambda one: one.loss_nats)
    return (
        f"; yet the dense rival {rival.name} is better than all of them: {rival.loss_nats:.4f} "
        f"nats with {rival.n_layers:g} layers, against {loss:.4f} with {layers:.3f}"
    )
