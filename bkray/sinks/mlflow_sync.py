"""Uploads a sweep from its folder: what the store lacks is written, and nothing twice."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bkray.errors import TrackingError
from bkray.sinks.mlflow_client import PatientClient, StoreAwayError
from bkray.sinks.mlflow_files import Artifacts, TrialFiles, placed
from bkray.sinks.mlflow_runs import SweepRun, SweepShown
from bkray.sinks.mlflow_store import Tracking, sole_writer
from bkray.sinks.mlflow_trial import TrialRun
from bkray.sinks.mlflow_ui import runs_path
from bkray.sinks.replay import dated_events


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """What a store took: of ``n_trials`` trials ``n_points`` points of metrics that it lacked.

    It refused ``n_refused`` requests for good. ``ui_path`` is where its UI shows the sweep.
    """

    n_trials: int
    n_points: int
    n_refused: int
    ui_path: str | None


def sync_sweep(
    folder: Path,
    tracking: Tracking,
    *,
    artifacts: Artifacts | None = None,
    report: Sequence[Path] = (),
    warn: Callable[[str], None],
) -> Synced:
    """Bring a store up to date with a sweep that runs, ended or was killed, from its files alone.

    Runs and points get the times at which the files were written. A trial without an outcome is
    shown as interrupted until it has one. ``artifacts`` is that of ``MlflowView``; ``report`` are
    files and folders for the run of the sweep.

    Raises:
        TrackingError: the store went away, or the sweep writes to it right now by itself.
    """
    folder = folder.absolute()
    hasty = threading.Event()
    hasty.set()  # who asks for an upload should hear soon that the store is away
    client = PatientClient(tracking, hasty, warn, "MLflow hesitates or refused something")
    record = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    files = TrialFiles(folder, artifacts, warn)
    sweep = SweepRun(client, _shown(record, folder.name), files, watched=False)
    with sole_writer(folder, tracking, wait=False) as alone:
        if not alone:
            raise TrackingError(
                f"the sweep in {folder} is being written to this store by another process: "
                "run this again when that has ended"
            )
        try:
            return _upload(folder, record, sweep, report)
        except StoreAwayError:
            raise TrackingError(
                "the MLflow store went away in the middle: run this again when it is back, "
                "nothing will be doubled"
            ) from None


def _upload(
    folder: Path, record: dict[str, Any], sweep: SweepRun, report: Sequence[Path]
) -> Synced:
    started_ms = int(1000 * datetime.fromisoformat(record["started"]).timestamp())
    n_trials, n_points, last_ms = 0, 0, started_ms
    sweep.begin(started_ms)
    for trial in _trials(folder):
        run = TrialRun(sweep)
        unix_ms = started_ms
        for event, unix_ms in dated_events(trial):
            run.take(event, unix_ms)
        run.leave(unix_ms)
        run.write()
        sweep.write()
        n_trials, last_ms = n_trials + 1, max(last_ms, unix_ms)
        n_points += run.run.n_told if run.run is not None else 0
    sweep.attach(list(placed(report)))
    sweep.end(last_ms)
    path = runs_path(sweep.experiment_id, sweep.shown.key) if sweep.experiment_id else None
    n_refused = sweep.client.n_refused
    return Synced(n_trials=n_trials, n_points=n_points, n_refused=n_refused, ui_path=path)


def _shown(record: dict[str, Any], name: str) -> SweepShown:
    meta = {"preset": record["preset"]} if "preset" in record else {}
    git = record.get("git")
    return SweepShown(
        experiment=record["name"],
        name=name,
        meta=meta | ({"git_sha": git["sha"]} if git else {}),
        swept=tuple(record["swept"]),
        seeds=record.get("seeds", 1),
        first_seed=record.get("base", {}).get("seed", 0),
    )


def _trials(folder: Path) -> list[Path]:
    """Return the folders of the trials that began, in the order of their proposals."""

    def number(trial: Path) -> int:
        return int(json.loads((trial / "proposal.json").read_text(encoding="utf-8"))["number"])

    return sorted((path.parent for path in folder.glob("trials/*/config.json")), key=number)
