"""Whether a knob that was swept at inference stands in for training at its other values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """Nats that the swept model loses, with as many layers, against one trained at ``value``."""

    value: float
    nats: float


@dataclass(frozen=True, slots=True)
class Matrix:
    """Trained by tested values, everything else the same; ``knobs`` are the searched ones."""

    knobs: Mapping[str, Any]
    cells: tuple[Cell, ...]
    costs: tuple[Cost, ...]

    @property
    def largest_cost_nats(self) -> float:
        """What testing away from the trained value costs at most, 0 if nothing anywhere."""
        return max(0.0, *(cost.nats for cost in self.costs))


@dataclass(frozen=True, slots=True)
class AtInference:
    """All of a sweep; ``matrix`` is ``None`` where its trials did not end well."""

    knob: str
    allowed_gap_nats: float
    allowed_cost_nats: float
    models: tuple[SweptModel, ...]
    matrix: Matrix | None
    front: tuple[Mapping[str, Any], ...]
    """Best true evaluations by layers and loss, of the models that the gap allows."""
    is_replaced: bool
    """Whether the sweep at inference stands in for training at other values, anywhere."""
    verdict: str
    notes: tuple[str, ...]


def judge(
    knob: str, models: tuple[SweptModel, ...], matrix: Matrix | None, notes: tuple[str, ...] = ()
) -> AtInference:
    """Return the models and the matrix with the verdict on them."""
    allowed = [model for model in models if model.is_allowed]
    cheap = matrix is not None and matrix.largest_cost_nats <= ALLOWED_COST_NATS
    is_replaced = bool(allowed) and cheap
    return AtInference(
        knob=knob,
        allowed_gap_nats=ALLOWED_GAP_NATS,
        allowed_cost_nats=ALLOWED_COST_NATS,
        models=models,
        matrix=matrix,
        front=front(allowed, knob) if is_replaced else (),
        is_replaced=is_replaced,
        verdict=_verdict(knob, models, matrix),
        notes=notes,
    )


def front(models: Sequence[SweptModel], knob: str) -> tuple[Mapping[str, Any], ...]:
    """Return the evaluations than which none has both fewer layers and a smaller loss."""
    best: list[Mapping[str, Any]] = []
    points = [(one.avg_layers, one.loss_nats, one, m) for m in models for one in m.evaluated]
    for layers, loss, point, model in sorted(points, key=lambda found: found[:2]):
        if not best or loss < best[-1]["loss_nats"]:
            at = {**model.knobs, knob: point.threshold, "seed": model.seed}
            best.append({"avg_layers": layers, "loss_nats": loss, **at})
    return tuple(best)


def _verdict(knob: str, models: Sequence[SweptModel], matrix: Matrix | None) -> str:
    name = knob.rpartition(".")[2]
    if not models:
        return f"{name} was not swept at inference: no trial to sweep it from ended ok"
    gap = max(model.largest_gap_nats for model in models)
    apart = [model for model in models if not model.is_allowed]
    refused = f"training at other values of {name} was not replaced: "
    if matrix is None:
        return f"{refused}the matrix lacks trials that ended ok, so nobody knows what it costs"
    worst = max(matrix.costs, key=lambda cost: cost.nats)
    tested = (
        f"at equal layers, testing away from the trained {models[0].trained:g} costs at most "
        f"{matrix.largest_cost_nats:.4f} nats"
    )
    if matrix.largest_cost_nats > ALLOWED_COST_NATS:
        return (
            f"{refused}{tested} > {ALLOWED_COST_NATS:g}, against a model trained at "
            f"{worst.value:g}"
        )
    if len(apart) == len(models):
        return f"{refused}estimate and truth are up to {gap:.4f} nats apart > {ALLOWED_GAP_NATS:g}"
    where = ""
    if apart:
        lost = "; ".join(_words(model) for model in apart)
        where = f", but not at {lost}, where estimate and truth are up to {gap:.4f} nats apart"
        gap = max(model.largest_gap_nats for model in models if model.is_allowed)
    return (
        f"{name} swept at inference{where}: largest gap {gap:.4f} nats <= {ALLOWED_GAP_NATS:g}; "
        f"{tested} <= {ALLOWED_COST_NATS:g}"
    )


def _words(model: SweptModel) -> str:
    knobs = [f"{path.rpartition('.')[2]}={value:g}" for path, value in model.knobs.items()]
    return " ".join([*knobs, f"seed={model.seed}"])
