"""Folders of sweeps for the upload, and all that a store holds of one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shown import SWEPT

from bkray.events import Event
from bkray.sinks.mlflow import Tracking
from bkray.sinks.parquet import ParquetSink


def keep_sweep(
    folder: Path, trials: Mapping[str, Sequence[Event]], *, seeds: int = 1, **further: Any
) -> Path:
    """Write what a sweep leaves of trials that said these events, by trial id."""
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    record = {
        "name": "act",
        "preset": "smoke",
        "swept": list(SWEPT),
        "seeds": seeds,
        "objectives": [{"column": "best_val_loss_nats", "direction": "minimize"}],
        "started": "2026-01-01T12:00:00+00:00",
        "git": {"sha": "abc123", "dirty": False},
    }
    (folder / "sweep.json").write_text(json.dumps({**record, **further}))
    for number, (trial_id, events) in enumerate(trials.items()):
        trial = folder / "trials" / trial_id
        trial.mkdir(exist_ok=True)
        proposal = {"number": number, "arm": "", "overrides": {}}
        (trial / "proposal.json").write_text(json.dumps(proposal))
        sink = ParquetSink(trial)
        for event in events:
            sink(event)
        sink.close()
    return folder


def stored(tracking: Tracking, sweep_name: str) -> dict[str, dict[str, Any]]:
    """All that a store says of the runs of a sweep, by their names: numbers, words and files.

    A run that is there twice is an error, points that are there twice are in the list twice.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri)
    experiment = client.get_experiment_by_name("act")
    known: dict[str, dict[str, Any]] = {}
    for run in client.search_runs([experiment.experiment_id], f"tags.sweep_run = '{sweep_name}'"):
        name = run.info.run_name
        assert name not in known, f"{name} is there twice"
        run_id = run.info.run_id
        known[name] = {
            "status": run.info.status,
            "level": run.data.tags["level"],
            "outcome": run.data.tags.get("outcome"),
            "tags": {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")},
            "params": run.data.params,
            "latest": run.data.metrics,
            "points": {
                key: sorted(
                    (point.step, point.value, point.timestamp)
                    for point in client.get_metric_history(run_id, key)
                )
                for key in run.data.metrics
            },
            "datasets": [
                (use.dataset.name, use.dataset.digest) for use in run.inputs.dataset_inputs
            ],
            "files": sorted(_files(client, run_id, "")),
        }
    return known


def points(tracking: Tracking, sweep_name: str) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Step and value of each metric of each run but the sweep's, whose load is its own affair."""
    return {
        (name, key): [(step, value) for step, value, _ in told]
        for name, run in stored(tracking, sweep_name).items()
        if run["level"] != "sweep"
        for key, told in run["points"].items()
    }


def _files(client: Any, run_id: str, folder: str) -> list[str]:
    found: list[str] = []
    for one in client.list_artifacts(run_id, folder or None):
        found += _files(client, run_id, one.path) if one.is_dir else [one.path]
    return found
