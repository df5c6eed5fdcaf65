"""``bkray mlflow-sync``."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bkray.cli.words import NO_SUCCESS, AsJson, print_json, where_to_look


def mlflow_sync(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    runs: Annotated[
        Path | None, typer.Option(help="Folder of the embedded MLflow store, if another one.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Upload what an MLflow store lacks of a sweep that runs, ended or was killed.

    The store is the server that MLFLOW_TRACKING_URI names, else the one that
    the sweep was started with. Run it as often as you like: nothing is written twice.

    --json prints "store", "trials", "points" (of metrics that were missing)
    and "refused" (requests that the store will not take).
    """
    from bkray.report.render import write_report
    from bkray.report.stability import write_artifacts
    from bkray.sinks.mlflow import open_store
    from bkray.sinks.mlflow_sync import sync_sweep

    written = write_report(folder)
    record = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    runs = runs or Path(record.get("runs", "runs"))
    tracking = open_store(runs)
    synced = sync_sweep(
        folder,
        tracking,
        artifacts=write_artifacts,
        report=[written.html, *written.figures],
        warn=lambda said: print(said, file=sys.stderr),
    )
    counts = {"trials": synced.n_trials, "points": synced.n_points, "refused": synced.n_refused}
    if as_json:
        print_json({"store": tracking.shown, **counts})
    else:
        print(f"{synced.n_trials} trials; {synced.n_points} points of metrics were missing")
        print(f"MLflow UI: {where_to_look(tracking, runs, synced.ui_path)}")
    return NO_SUCCESS if synced.n_refused else 0
