"""A knob swept from the checkpoints of a sweep in place of training: scores, files, verdict.

A *swept* trial is one that the space proposed; the arms of the sweep train other values of the
knob, for the matrix of trained by tested values.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bkray.atomic import write_json
from bkray.cluster.store import end_of
from bkray.errors import BkrayError
from bkray.nn.depth import ActDepth
from bkray.nn.exits import ExitDepth
from bkray.sweep import Sweep
from bkray.train.frontier import StopFrontier, StopPoint, frontier
from bkray.train.recorded import scored_at
from bkray.train.run import Run
from bkray.train.subject import model_of, windows_of, within
from bkray.train.verdict import AtInference, Cell, Cost, Matrix, SweptModel, judge
from bkray.trial import open_checkpoint

FILE = "frontier.json"
"""In a trial's folder the frontier of its checkpoint, in the sweep's folder all of this."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """A trial that ended ``ok``, and whose model has the knob."""

    folder: Path
    config: Mapping[str, Any]

    @property
    def is_swept(self) -> bool:
        return not self.config.get("arm")

    def value(self, knob: str) -> float:
        return float(self.config[knob])

    def apart_from(self, knob: str) -> str:
        """Return what trials share that differ in the knob, label and seed alone."""
        rest = {k: v for k, v in self.config.items() if k not in (knob, "arm", "seed")}
        return json.dumps(rest, sort_keys=True)


def at_inference(folder: Path, sweep: Sweep, searched: Sequence[str]) -> AtInference:
    """Sweep the knob from every checkpoint of the sweep in ``folder``; write and return it all.

    ``searched`` are the config paths that the space asks for.
    """
    knob = sweep.at_inference
    trials = list(_ended(folder, knob))
    beside = _beside(trials, knob)
    tested = sorted({trial.value(knob) for trial in beside})
    models: dict[Path, SweptModel] = {}
    rows: dict[Path, list[StopPoint]] = {}
    notes: list[str] = []
    for trial in trials:
        try:
            run, _ = open_checkpoint(trial.folder)
            if trial.is_swept:
                whole = frontier(run)
                assert whole.stops is not None and whole.stops.knob == knob
                write_json(trial.folder / FILE, asdict(whole))
                models[trial.folder] = _model(trial, whole.stops, searched)
            if trial in beside:
                rows[trial.folder] = _row(run, tested)
        except BkrayError as error:
            notes.append(f"{trial.folder.name} left out: {error}")
    matrix = _matrix([one for one in beside if one.folder in rows], rows, models, knob, searched)
    in_order = sorted(models.values(), key=lambda one: (*one.knobs.values(), one.seed))
    found = judge(knob, tuple(in_order), matrix, tuple(notes))
    write_json(folder / FILE, asdict(found))
    return found


def _ended(folder: Path, knob: str) -> Iterator[_Ended]:
    for path in sorted(folder.glob("trials/*/config.json")):
        config = json.loads(path.read_text())["config"]
        ended = end_of(path.parent)
        if knob in config and ended is not None and ended.outcome == "ok":
            yield _Ended(path.parent, config)


def _beside(trials: Sequence[_Ended], knob: str) -> list[_Ended]:
    """Return the largest set of trials that differ in the knob, label and seed alone, a swept one
    among them; nothing where there is but one value."""
    groups: dict[str, list[_Ended]] = defaultdict(list)
    for trial in trials:
        groups[trial.apart_from(knob)].append(trial)
    with_swept = [group for group in groups.values() if any(one.is_swept for one in group)]
    largest = max(with_swept, key=lambda g: len({t.value(knob) for t in g}), default=[])
    return largest if len({trial.value(knob) for trial in largest}) > 1 else []


def _row(run: Run, values: Sequence[float]) -> list[StopPoint]:
    """Return true evaluations of a model at each value."""
    model, windows = within(model_of(run)), windows_of(run)
    depth = model.depth
    assert isinstance(depth, ActDepth | ExitDepth)
    return [StopPoint(value, *scored_at(value, model, depth, windows)) for value in values]


def _model(trial: _Ended, stops: StopFrontier, searched: Sequence[str]) -> SweptModel:
    return SweptModel(
        trial_id=trial.folder.name,
        seed=trial.config["seed"],
        knobs={path: trial.config[path] for path in searched},
        trained=stops.trained,
        largest_gap_nats=stops.largest_gap_nats,
        evaluated=tuple(one.evaluated for one in stops.checked),
    )


def _matrix(
    beside: Sequence[_Ended],
    rows: Mapping[Path, Sequence[StopPoint]],
    models: Mapping[Path, SweptModel],
    knob: str,
    searched: Sequence[str],
) -> Matrix | None:
    of_value: dict[float, list[_Ended]] = defaultdict(list)
    for trial in beside:
        of_value[trial.value(knob)].append(trial)
    swept = {one.config["seed"]: one for one in beside if one.folder in models}
    if len(of_value) < 2 or not swept:
        return None
    cells, costs = [], []
    for value, trials in sorted(of_value.items()):
        of_tested = zip(*(rows[trial.folder] for trial in trials), strict=True)
        cells += [_cell(value, points) for points in of_tested]
        lost = []
        for trial in trials:
            other = swept.get(trial.config["seed"])
            if other is not None and other is not trial:
                curve = [*models[other.folder].evaluated, *rows[other.folder]]
                (there,) = [point for point in rows[trial.folder] if point.threshold == value]
                lost.append(lost_nats(curve, there))
        costs += [Cost(value, float(np.mean(lost)))] if lost else []
    knobs = {path: beside[0].config[path] for path in searched}
    return Matrix(knobs, tuple(cells), tuple(costs)) if costs else None


def _cell(trained: float, points: Sequence[StopPoint]) -> Cell:
    layers = float(np.mean([point.avg_layers for point in points]))
    loss = float(np.mean([point.loss_nats for point in points]))
    return Cell(trained, points[0].threshold, layers, loss, len(points))


def lost_nats(curve: Sequence[StopPoint], trained_there: StopPoint) -> float:
    """Return how much more a swept model loses with as many layers, between its evaluations;
    with its fewest or most layers where it has no more to give."""
    points = sorted((point.avg_layers, point.loss_nats) for point in curve)
    layers, losses = zip(*points, strict=True)
    return float(np.interp(trained_there.avg_layers, layers, losses)) - trained_there.loss_nats
