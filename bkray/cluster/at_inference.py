"""A knob swept from the checkpoints of a sweep in place of training: scores, files, verdict.

A *swept* trial is one that the space proposed; the arms of the sweep train other values of the
knob, for the matrix of trained by tested values.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from bkray.atomic import write_json
from bkray.cluster.store import end_of
from bkray.config import TrialConfig
from bkray.errors import BkrayError, ConfigError, ResumeError
from bkray.nn.act import ActDepth
from bkray.nn.exits import ExitDepth
from bkray.sweep import SWEPT_AT_INFERENCE, Sweep
from bkray.train.frontier import StopFrontier, StopPoint, frontier
from bkray.train.run import Run
from bkray.train.stops import scored_at_each
from bkray.train.subject import model_of, windows_of, within
from bkray.train.verdict import (
    AtInference,
    Cell,
    Cost,
    Matrix,
    Rival,
    SweptModel,
    judge,
)
from bkray.trial import open_checkpoint

FILE = "frontier.json"
"""In a trial's folder the frontier of its checkpoint, in the sweep's folder all of this."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """A trial that ended ``ok``, after ``step`` steps."""

    folder: Path
    config: Mapping[str, Any]
    step: int
    loss_nats: float

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
    ended = list(_ended(folder))
    trials = [trial for trial in ended if knob in trial.config]
    beside = _beside(trials, knob)
    tested = sorted({trial.value(knob) for trial in beside})
    models: dict[Path, SweptModel] = {}
    rows: dict[Path, list[StopPoint]] = {}
    notes: list[str] = []
    for trial in trials:
        try:
            run = _opened(trial)
            if trial.is_swept:
                whole = frontier(run)
                assert whole.stops is not None and whole.stops.knob == knob
                write_json(trial.folder / FILE, asdict(whole))
                models[trial.folder] = _model(trial, whole.stops, searched)
            if trial in beside:
                rows[trial.folder] = _row(run, tested)
        except BkrayError as error:
            notes.append(f"trial {trial.folder.name} could not be read: {error}")
    matrix = _matrix([one for one in beside if one.folder in rows], rows, models, knob, searched)
    in_order = tuple(sorted(models.values(), key=_place))
    found = judge(knob, in_order, matrix, tuple(notes), _dense(ended))
    write_json(folder / FILE, asdict(found))
    return found


def check_at_inference(sweep: Sweep, config: TrialConfig, scheduler: str | None) -> None:
    """Raise ``ConfigError`` for what no checkpoint of the sweep could be swept in.

    ``config`` is the sweep's without what is searched; a sweep without such a knob passes.
    """
    if not sweep.at_inference:
        return
    if scheduler not in (None, "none"):
        raise ConfigError(
            f"--frontier sweeps models that were trained to their end, and scheduler={scheduler} "
            "ends trials early: use --scheduler none"
        )
    depth = SWEPT_AT_INFERENCE[sweep.at_inference]
    if config.model.depth != depth or config.model.multiscale:
        raise ConfigError(
            f"--frontier sweeps the threshold of model.depth={depth} with model.multiscale=false, "
            f"got depth={config.model.depth} and multiscale={config.model.multiscale}"
        )


def n_checkpoints(folder: Path, knob: str) -> int:
    """Return how many checkpoints of the sweep in ``folder`` have the knob."""
    return sum(knob in trial.config for trial in _ended(folder))


def _place(model: SweptModel) -> list[Any]:
    """Return what orders models by their knobs, which may be of different types."""
    return [(type(value).__name__, value) for value in (*model.knobs.values(), model.seed)]


def _opened(trial: _Ended) -> Run:
    """Return the trial as its last checkpoint left it.

    Raises:
        ResumeError: that one is gone or damaged; one from before its end tells nothing here.
    """
    run, _ = open_checkpoint(trial.folder)
    if run.progress.step != trial.step:
        raise ResumeError(
            f"its checkpoint is that of step {run.progress.step}, and it ended at {trial.step}"
        )
    return run


def _dense(ended: Sequence[_Ended]) -> tuple[Rival, ...]:
    """Return what the dense arms came to."""
    groups: dict[str, list[_Ended]] = defaultdict(list)
    for trial in ended:
        if trial.config.get("model.depth") == "dense" and not trial.is_swept:
            groups[trial.config["arm"]].append(trial)
    return tuple(
        Rival(arm, trials[0].config["model.n_layers"], fmean(one.loss_nats for one in trials))
        for arm, trials in sorted(groups.items())
    )


def _ended(folder: Path) -> Iterator[_Ended]:
    for path in sorted(folder.glob("trials/*/config.json")):
        config = json.loads(path.read_text())["config"]
        ended = end_of(path.parent)
        if ended is not None and ended.outcome == "ok":
            loss_nats = ended.summary["final_val_loss_nats"]
            yield _Ended(path.parent, config, ended.step, loss_nats)


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
    scores = scored_at_each(values, model, depth, windows)
    return [StopPoint(value, *score) for value, score in zip(values, scores, strict=True)]


def _model(trial: _Ended, stops: StopFrontier, searched: Sequence[str]) -> SweptModel:
    return SweptModel(
        trial_id=trial.folder.name,
        seed=trial.config["seed"],
        knobs={path: trial.config.get(path) for path in searched},
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
        pairs = []
        for trial in trials:
            other = swept.get(trial.config["seed"])
            if other is not None and other is not trial:
                curve = [*models[other.folder].evaluated, *rows[other.folder]]
                (there,) = [point for point in rows[trial.folder] if point.threshold == value]
                pairs.append((curve, there))
        costs += [cost_of(value, pairs)] if pairs else []
    knobs = {path: beside[0].config.get(path) for path in searched}
    return Matrix(knobs, tuple(cells), tuple(costs)) if costs else None


def _cell(trained: float, points: Sequence[StopPoint]) -> Cell:
    layers = fmean(point.avg_layers for point in points)
    loss = fmean(point.loss_nats for point in points)
    return Cell(trained, points[0].threshold, layers, loss, len(points))


def cost_of(value: float, pairs: Sequence[tuple[Sequence[StopPoint], StopPoint]]) -> Cost:
    """Return the mean over seeds of what swept models lose against those trained at ``value``.

    A pair is all evaluations of the swept model, and the other one's at its own value.
    """
    lost = [lost_nats(curve, there) for curve, there in pairs]
    known = [nats for nats in lost if nats is not None]
    return Cost(value, fmean(known) if len(known) == len(lost) else None, len(lost))


def lost_nats(curve: Sequence[StopPoint], trained_there: StopPoint) -> float | None:
    """Return how much more a swept model loses with as many layers, between its evaluations;
    ``None`` where it has fewer or more at every one of them."""
    points = sorted((point.avg_layers, point.loss_nats) for point in curve)
    layers, losses = zip(*points, strict=True)
    if not layers[0] <= trained_there.avg_layers <= layers[-1]:
        return None
    return float(np.interp(trained_there.avg_layers, layers, losses)) - trained_there.loss_nats
