"""A knob swept from the checkpoints of a real sweep, small enough to check by hand."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bkray.cluster.at_inference import at_inference, cost_of, lost_nats
from bkray.cluster.tuner import SweepOptions, run_sweep
from bkray.train.evaluate import evaluate
from bkray.train.frontier import StopPoint
from bkray.train.verdict import AtInference, Cost, Matrix
from bkray.trial import open_checkpoint
from sweeps.load import load

WHOLE = load("act", frontier=True)
DEEP = ("dense-2", "dense-3")
SWEEP = replace(
    WHOLE, rivals=lambda base: [arm for arm in WHOLE.rivals(base) if arm.name not in DEEP]
)
THRESHOLDS = (0.5, 0.9, 0.99)
TINY = {
    "mixer": "linear_recurrence",
    "d_model": 16,
    "n_layers": 3,
    "n_seq": 16,
    "d_hidden": 24,
    "train.steps": 40,
    "batch_size": 4,
    "eval_every": 40,
    "eval_windows": 4,
    "checkpoint_every": 40,
    "lr": 0.03,
    "precision": "float64",
    "device": "cpu",
}
SEARCHED = ["model.act_lambda"]


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of two costs and two seeds that has ended."""
    folder = tmp_path_factory.mktemp("at_inference") / "sweep"
    options = SweepOptions(
        out=folder,
        preset="smoke",
        overrides={**TINY, "corpus": str(text)},
        scheduler="none",
        local=True,
        seeds=2,
    )
    assert run_sweep(SWEEP, options).outcomes == {"ok": 2 * (2 + 2 + 1)}
    return folder


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "sweep"))


def configs(sweep: Path) -> dict[Path, dict[str, Any]]:
    found = {
        path.parent: json.loads(path.read_text())["config"]
        for path in sweep.glob("trials/*/config.json")
    }
    return {folder: c for folder, c in found.items() if c["model.depth"] == "act"}


def arms(sweep: Path, threshold: float) -> list[Path]:
    found = configs(sweep)
    return [f for f in found if found[f]["model.act_threshold"] == threshold and found[f]["arm"]]


def matrix_of(found: AtInference) -> Matrix:
    assert found.matrix is not None
    return found.matrix


def scored(folder: Path, threshold: float) -> tuple[float, float]:
    """Return layers and loss of a trial's checkpoint at a threshold."""
    run, _ = open_checkpoint(folder)
    model: Any = run.model
    model.depth.threshold = threshold
    score = evaluate(model, *run.validation, batch_size=4, autocast=run.autocast)
    return score.metrics["act/avg_layers_executed"], score.loss_nats


def between(points: Sequence[tuple[float, float]], layers: float) -> float:
    below = max(point for point in points if point[0] <= layers)
    above = min(point for point in points if point[0] >= layers)
    share = (layers - below[0]) / (above[0] - below[0]) if above[0] > below[0] else 0.0
    return below[1] + share * (above[1] - below[1])


@torch.no_grad()
def test_the_matrix_is_evaluated_from_the_checkpoints(sweep: Path) -> None:
    matrix = matrix_of(at_inference(sweep, SWEEP, SEARCHED))
    assert matrix.knobs == {"model.act_lambda": 0.01}
    assert [(cell.trained, cell.tested) for cell in matrix.cells] == [
        (trained, tested) for trained in THRESHOLDS for tested in THRESHOLDS
    ]
    trials = configs(sweep)
    for cell in matrix.cells:
        losses, layers = [], []
        for folder, config in trials.items():
            if (config["model.act_threshold"], config["model.act_lambda"]) == (cell.trained, 0.01):
                at, loss = scored(folder, cell.tested)
                losses.append(loss)
                layers.append(at)
        assert len(losses) == cell.n_seeds == 2
        assert cell.loss_nats == pytest.approx(sum(losses) / 2, rel=1e-12)
        assert cell.avg_layers == pytest.approx(sum(layers) / 2, rel=1e-12)
    assert len({cell.avg_layers for cell in matrix.cells}) > 3, "else this says little"


@torch.no_grad()
def test_the_cost_that_decides_is_the_mean_over_seeds_at_equal_layers(sweep: Path) -> None:
    matrix = matrix_of(at_inference(sweep, SWEEP, SEARCHED))
    trials = configs(sweep)
    assert [cost.value for cost in matrix.costs] == [0.5, 0.99]
    for cost in matrix.costs:
        lost = {}
        for rival in arms(sweep, cost.value):
            seed = trials[rival]["seed"]
            (swept,) = (
                folder
                for folder, c in trials.items()
                if (c.get("arm") or "", c["model.act_lambda"], c["seed"]) == ("", 0.01, seed)
            )
            thresholds = {*(i / 8 for i in (1, 2, 3, 4, 5, 6, 8)), *THRESHOLDS}
            layers, loss = scored(rival, cost.value)
            lost[seed] = between([scored(swept, at) for at in thresholds], layers) - loss
        assert cost.nats == pytest.approx((lost[0] + lost[1]) / 2, abs=1e-12)
        assert abs(lost[0] - lost[1]) > 1e-4, "else one seed would do"
        assert cost.n_seeds == 2


def test_every_swept_model_is_written_down_and_all_of_it_in_the_sweeps_folder(
    sweep: Path,
) -> None:
    found = at_inference(sweep, SWEEP, SEARCHED)
    written = json.loads((sweep / "frontier.json").read_text())
    assert written["verdict"] == found.verdict
    assert [(m.knobs["model.act_lambda"], m.seed) for m in found.models] == [
        *((0.001, 0), (0.001, 1), (0.01, 0), (0.01, 1))
    ]
    for model in found.models:
        own = json.loads((sweep / "trials" / model.trial_id / "frontier.json").read_text())
        gaps = [abs(one["gap_nats"]) for one in own["stops"]["checked"]]
        assert model.largest_gap_nats == max(gaps)
        assert len(model.evaluated) == len(gaps) == 8
    holding = {path.parent.name for path in sweep.glob("trials/*/frontier.json")}
    assert holding == {model.trial_id for model in found.models}


def test_the_dense_rivals_stand_beside_with_their_mean_loss(sweep: Path) -> None:
    losses = [
        json.loads((path.parent / "outcome.json").read_text())["summary"]["final_val_loss_nats"]
        for path in sweep.glob("trials/*/config.json")
        if json.loads(path.read_text())["arm"] == "dense-1"
    ]
    assert len(set(losses)) == 2
    (rival,) = at_inference(sweep, SWEEP, SEARCHED).rivals
    assert (rival.name, rival.n_layers) == ("dense-1", 1)
    assert rival.loss_nats == pytest.approx(sum(losses) / 2)


def test_what_cannot_be_read_is_left_out_and_said(sweep: Path) -> None:
    spoiled = arms(sweep, 0.5)[0]
    shutil.rmtree(spoiled / "checkpoints")
    found = at_inference(sweep, SWEEP, SEARCHED)
    assert len(found.notes) == 1
    assert found.notes[0].startswith(f"trial {spoiled.name} could not be read: ")
    counts = {cell.trained: cell.n_seeds for cell in matrix_of(found).cells}
    assert counts == {0.5: 1, 0.9: 2, 0.99: 2}


def test_without_the_arms_there_is_no_matrix_and_no_replacement(sweep: Path) -> None:
    for folder in [*arms(sweep, 0.5), *arms(sweep, 0.99)]:
        said = json.loads((folder / "outcome.json").read_text())
        (folder / "outcome.json").write_text(json.dumps({**said, "outcome": "diverged"}))
    found = at_inference(sweep, SWEEP, SEARCHED)
    assert found.matrix is None
    assert not found.is_replaced
    assert len(found.models) == 4
    assert "the matrix lacks trials that ended ok, so nobody knows" in found.verdict


def test_damaged_checkpoints_are_the_reason_and_named(sweep: Path) -> None:
    """Nothing begins again here, and those trials did end ok."""
    damaged = [*arms(sweep, 0.5), *arms(sweep, 0.99)]
    for folder in damaged:
        for file in (folder / "checkpoints").iterdir():
            file.write_bytes(b"half")
    found = at_inference(sweep, SWEEP, SEARCHED)
    assert found.matrix is None
    assert not found.is_replaced
    for folder in damaged:
        assert f"trial {folder.name} could not be read: {folder}" in found.verdict
    assert "ended ok" not in found.verdict
    assert "began again" not in found.verdict


def test_a_checkpoint_from_before_the_end_is_not_taken_for_the_last(sweep: Path) -> None:
    early = arms(sweep, 0.5)[0]
    said = json.loads((early / "outcome.json").read_text())
    (early / "outcome.json").write_text(json.dumps({**said, "step": 80}))
    (note,) = at_inference(sweep, SWEEP, SEARCHED).notes
    assert note == (
        f"trial {early.name} could not be read: its checkpoint is that of step 40, and it ended "
        "at 80"
    )


def curve(*points: tuple[float, float]) -> Sequence[StopPoint]:
    return [StopPoint(0.5, layers, loss) for layers, loss in points]


@pytest.mark.parametrize(
    ("layers", "lost"), [(1.0, 0.5), (1.5, 0.25), (3.0, -0.5), (0.99, None), (3.01, None)]
)
def test_losses_are_compared_at_equal_layers(layers: float, lost: float | None) -> None:
    swept = curve((3.0, 1.5), (1.0, 2.5), (2.0, 2.0))
    assert lost_nats(swept, StopPoint(0.5, layers, 2.0)) == pytest.approx(lost)


def test_the_cost_is_a_mean_over_seeds_and_unknown_where_one_is() -> None:
    swept = curve((1.0, 2.5), (2.0, 2.0), (3.0, 1.5))
    first = (swept, StopPoint(0.5, 1.5, 2.0))
    second = (curve((1.0, 3.0), (3.0, 2.0)), StopPoint(0.5, 2.0, 1.5))
    assert cost_of(0.5, [first]) == Cost(0.5, 0.25, 1)
    assert cost_of(0.5, [first, second]) == Cost(0.5, 0.625, 2)
    assert cost_of(0.5, [first, (swept, StopPoint(0.5, 3.5, 1.0))]) == Cost(0.5, None, 2)
