"""What MLflow shows of a trial's stability: numbers under their own names, files, and no winner
that diverged."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kept import keep_sweep, stored
from shown import SWEPT, ended, started, window

from bkray.events import Event, Spiked, TrialEnded, Warned
from bkray.report.stability import write_artifacts
from bkray.sinks.mlflow import MlflowView, Tracking, embedded_store

NAME = "thr=0.95 lam=0.01 seed=3"
BLOCKS = {"blocks.0": (1.0,) * 15 + (math.inf,), "blocks.1": (1.0,) * 15 + (0.25,)}


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return embedded_store(tmp_path_factory.mktemp("runs"))


def shown(
    tracking: Tracking,
    folder: Path,
    events: Sequence[Event],
    artifacts: Any = write_artifacts,
    told: list[str] | None = None,
) -> dict[str, Any]:
    """The run of the one trial that said the events, in its folder as well."""
    trial_id = "0123456789ab"
    keep_sweep(folder, {trial_id: events})
    warn = (told if told is not None else []).append
    view = MlflowView(
        tracking, "act", folder.name, {}, SWEPT, folder=folder, artifacts=artifacts, warn=warn
    )
    sink = view.trial(trial_id)
    for event in events:
        sink(event)
    sink.close()
    view.close()
    return stored(tracking, folder.name)[NAME]


def test_numbers_keep_their_names_and_no_nan_is_stored(tracking: Tracking, tmp_path: Path) -> None:
    told = replace(
        window(16), block_norms=BLOCKS, activations={"blocks.0": math.nan, "blocks.1": 7.0}
    )
    masked = replace(window(32), masked=(18, 30))
    spikes = [Spiked(step=32, ratio=3.0), Spiked(step=31, ratio=9.0, rule="robust")]
    run = shown(tracking, tmp_path / "names", [started(), told, masked, *spikes, ended(32)])
    of_stability = {
        key: [(step, value) for step, value, _ in points]
        for key, points in run["points"].items()
        if "stability" in key
    }
    assert of_stability == {
        "stability/grad_norm/blocks.1": [(16, 0.25)],
        "stability/activation/blocks.1": [(16, 7.0)],
        "stability/masked": [(18, 1.0), (30, 1.0)],
        "stability/spike_ratio": [(32, 3.0)],
        "stability/robust_spike": [(31, 9.0)],
    }
    assert run["tags"]["nonfinite"].split() == [
        "final/val_loss_nats",
        "stability/activation/blocks.0",
        "stability/grad_norm/blocks.0",
    ]


def test_warnings_and_a_cut_of_micro_batches_are_tags(tracking: Tracking, tmp_path: Path) -> None:
    warned = [Warned(step=0, message="one"), Warned(step=16, message="two")]
    begun = replace(started(), split=2)
    run = shown(tracking, tmp_path / "tags", [begun, warned[0], window(16), warned[1], ended(16)])
    assert (run["tags"]["warnings"], run["tags"]["split"]) == ("one; two", "2")


@pytest.mark.parametrize(
    ("outcome", "ranked"), [("ok", True), ("diverged", False), ("pruned", False)]
)
def test_only_what_ended_well_is_ranked_by_its_best_loss(
    tracking: Tracking, tmp_path: Path, outcome: str, ranked: bool
) -> None:
    """The UI sorts by this one metric: a diverged trial with the lowest loss would come first."""
    run = shown(tracking, tmp_path / f"rank-{outcome}", [started(), ended(16, outcome)])
    assert ("best/val_loss_nats" in run["latest"]) == ranked
    assert run["latest"]["final/steps"] == 16
    assert run["outcome"] == outcome


@pytest.mark.parametrize("outcome", ["ok", "diverged", "interrupted"])
def test_every_trial_has_its_stability_files(
    tracking: Tracking, tmp_path: Path, outcome: str
) -> None:
    end = [] if outcome == "interrupted" else [ended(16, outcome)]
    run = shown(tracking, tmp_path / f"files-{outcome}", [started(), window(16), *end])
    assert run["outcome"] == outcome
    assert run["files"] == [
        "config.json",
        "stability/gradient_norms.json",
        "stability/spikes.json",
        "stability/stability.png",
        "stability/summary.json",
    ]


def test_forensics_go_along_without_the_snapshot(tracking: Tracking, tmp_path: Path) -> None:
    forensics = tmp_path / "forensics" / "trials" / "0123456789ab" / "forensics"
    forensics.mkdir(parents=True)
    step = {"loss_nats": 1.0, "grad_norm": 1.0, "block_norms": [1.0], "masked": False}
    verdict = {"state": "diverged", "reason": "loss is nan at step 2", "step": 2, "rule": "nan"}
    record = {
        "verdict": verdict,
        "snapshot_step": 0,
        "blocks": ["blocks.0"],
        "steps": [{"step": 1, **step}, {"step": 2, **step, "loss_nats": None}],
    }
    (forensics / "record.json").write_text(json.dumps(record))
    (forensics / "snapshot.pt").write_bytes(b"large")
    run = shown(tracking, tmp_path / "forensics", [started(), window(16), ended(16, "diverged")])
    there = [path for path in run["files"] if path.startswith("forensics/")]
    assert there == ["forensics/forensics.png", "forensics/record.json"]


def test_a_figure_that_cannot_be_drawn_takes_no_number_with_it(
    tracking: Tracking, tmp_path: Path
) -> None:
    def broken(folder: Path) -> Sequence[Path]:
        raise ValueError(f"no picture of {folder.name}")

    told: list[str] = []
    events: list[Event] = [started(), window(16), ended(16)]
    run = shown(tracking, tmp_path / "broken", events, broken, told)
    assert (run["outcome"], run["files"]) == ("ok", ["config.json"])
    assert "train/loss_nats" in run["latest"]
    assert told == [
        "MLflow lacks the files of trial 0123456789ab (ValueError: no picture of 0123456789ab)"
    ]


def test_a_trial_that_never_trained_has_no_files_and_is_shown(
    tracking: Tracking, tmp_path: Path
) -> None:
    died = TrialEnded(step=0, outcome="failed", reason="ValueError: no", summary={})
    run = shown(tracking, tmp_path / "unborn", [started(), died])
    assert (run["outcome"], run["files"]) == ("failed", ["config.json"])
