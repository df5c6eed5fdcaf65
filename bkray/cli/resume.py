"""``bkray resume``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bkray.cli.sweep import run
from bkray.cli.words import AsJson, seconds


def resume(
    place: Annotated[str, typer.Argument(metavar="DIR|URI")],
    trials: Annotated[int | None, typer.Option(help="Searched configurations, old ones too.")] = (
        None
    ),
    scheduler: Annotated[str | None, typer.Option(help="none|asha|hyperband|median")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials at once.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray Train workers of each trial, from now on.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster: auto|HOST.")] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder of the embedded MLflow store, if another one.")
    ] = None,
    time_budget: Annotated[str | None, typer.Option(help="From now on: 90s, 30m or 2h.")] = None,
    max_gpu_hours: Annotated[
        float | None, typer.Option(help="A new limit; what was spent before counts.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Go on with a sweep that was interrupted, killed, or ran out of its budget.

    Trials that ended are kept, those that were running go on from their
    checkpoints; from a URI they are fetched first. What is not given stays
    as it was, a time budget counts anew, GPU-hours go on counting; space,
    objectives, seeds and data may not change.
    """
    from bkray.cluster import record
    from bkray.cluster.mirror import fetched
    from bkray.cluster.options import chosen_before
    from bkray.cluster.storage import is_uri
    from sweeps.load import load

    folder = Path(place)
    if is_uri(place):
        runs = runs or Path("runs")
        folder = fetched(place, runs)
    said = record.read(folder)
    changes: dict[str, Any] = {
        "trials": trials,
        "scheduler": scheduler,
        "concurrency": concurrency,
        "workers": workers,
        "address": address,
        "runs": runs,
        "time_budget_seconds": seconds(time_budget),
        "max_gpu_hours": max_gpu_hours,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    options = replace(chosen_before(said, folder.resolve()), **given)
    value = load(said["source"], frontier=options.frontier)
    return run(value, options, as_json, resume=True)
