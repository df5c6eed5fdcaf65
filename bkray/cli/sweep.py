"""``bkray sweep``."""

import itertools
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bkray.cli.frontier import DropsStale, sweep_checkpoints
from bkray.cli.words import (
    BUDGET_REACHED,
    INTERRUPTED,
    NO_SUCCESS,
    AsJson,
    Runs,
    Words,
    n_bytes,
    n_gpus,
    print_json,
    print_plan,
    print_tables,
    seconds,
    times_seeds,
    where_to_look,
)
from bkray.errors import ConfigError, TrackingError
from bkray.sweep import Sweep

if TYPE_CHECKING:  # each verb imports what it needs, so that --help stays quick
    from bkray.cluster.search import Search
    from bkray.cluster.tuner import SweepOptions, SweepOutcome
    from bkray.sinks.mlflow import Tracking
    from bkray.sinks.sink import SweepView


def sweep(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE.py")],
    overrides: Words = None,
    preset: Annotated[str, typer.Option(help="smoke, small or full.")] = "small",
    trials: Annotated[int | None, typer.Option(help="Searched configurations.")] = None,
    sampler: Annotated[str | None, typer.Option(help="tpe|gp|nsga2|qmc|random|grid")] = None,
    scheduler: Annotated[str | None, typer.Option(help="none|asha|hyperband|median")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials at once.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers of each trial.")] = 1,
    ray_train: Annotated[bool, typer.Option(help="Ray Train also for one worker.")] = False,
    gpus_per_worker: Annotated[
        str, typer.Option(help="GPUs of each worker; auto lets small trials share them.")
    ] = "0",
    memory_per_worker: Annotated[
        str | None, typer.Option(help="Reserved for each worker: 512M, 8G.")
    ] = None,
    accelerator_type: Annotated[str, typer.Option(help="Kind of GPU, by Ray's name: A10G.")] = "",
    address: Annotated[str | None, typer.Option(help="A running Ray cluster: auto|HOST.")] = None,
    out: Annotated[
        str | None,
        typer.Option(help="A new folder for the sweep, or a URI such as s3://b/runs/x."),
    ] = None,
    runs: Runs = Path("runs"),
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Trials per configuration, rivals too.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the sampler.")] = 0,
    time_budget: Annotated[str | None, typer.Option(help="Such as 90s, 30m or 2h.")] = None,
    max_gpu_hours: Annotated[
        float | None, typer.Option(help="Of all trials, over every resume.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Show what is known to be tried, run none.")
    ] = False,
    local: Annotated[bool, typer.Option(help="In this process, one by one, without Ray.")] = False,
    frontier: Annotated[
        bool, typer.Option(help="Sweep the sweep's threshold from checkpoints, not by training.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Run a whole sweep and show its leaderboard and Pareto front."""
    from bkray.cluster.mirror import local_folder
    from bkray.cluster.storage import is_uri
    from bkray.cluster.tuner import SweepOptions, planned
    from bkray.overrides import parse
    from sweeps.load import load

    value = load(name, frontier=frontier)
    storage = out if out and is_uri(out) else ""
    if storage:
        folder = local_folder(storage, runs, value.name)
    else:
        folder = Path(out or runs / value.name / f"{datetime.now():%Y%m%d-%H%M%S}-{preset}")
    options = SweepOptions(
        runs=runs,
        out=folder,
        storage=storage,
        preset=preset,
        source=str(Path(name).resolve()) if name.endswith(".py") else name,
        overrides=parse(overrides or []),
        trials=trials,
        sampler=sampler,
        scheduler=scheduler,
        concurrency=concurrency,
        local=local,
        seed=seed,
        seeds=seeds,
        workers=workers,
        ray_train=ray_train,
        time_budget_seconds=seconds(time_budget),
        max_gpu_hours=max_gpu_hours,
        address=address,
        gpus=0.0 if gpus_per_worker == "auto" else n_gpus(gpus_per_worker),
        pack=gpus_per_worker == "auto",
        memory_bytes=n_bytes(memory_per_worker),
        accelerator_type=accelerator_type,
        frontier=frontier,
    )
    if dry_run:
        _resolved(value, options)
        print_plan(planned(value, options), as_json)
        return 0
    if out is not None:
        return run(value, options, as_json)
    with _new_folder(options.out) as folder:
        return run(value, replace(options, out=folder), as_json)


def run(value: Sweep, options: "SweepOptions", as_json: bool, *, resume: bool = False) -> int:
    """Run a sweep under its views, write its table, show it; return the exit status."""
    from bkray.cluster.mirror import mirrored
    from bkray.cluster.options import check_room
    from bkray.cluster.record import git_state
    from bkray.cluster.room import room_in
    from bkray.cluster.store import n_ended
    from bkray.cluster.tuner import base_config, run_sweep
    from bkray.report.render import write_report
    from bkray.report.stability import write_artifacts
    from bkray.sinks.console import ConsoleView
    from bkray.sinks.mlflow import MlflowView, open_store

    runs = options.runs
    for folder in (options.out, runs):
        if set("?#%") & set(str(folder)):  # databases are opened by address, where these mean more
            raise ConfigError(f"the folder {str(folder)!r} must be without ?, # and %")
    search = _resolved(value, options)
    check_room(options, base_config(search))
    swept = search.swept()
    git = git_state()
    n_done = n_ended(options.out)
    if not as_json:
        of_seeds = times_seeds(search.n_configurations, search.n_planned)
        done = f", {n_done} of them done" if resume else ""
        what = f"{max(search.n_planned, n_done)} trials{of_seeds}{done} into {options.out}"
        print(f"{what}; starting up", flush=True)
    meta = {"preset": options.preset} | ({"git_sha": git["sha"]} if git else {})
    tracking = open_store(runs)
    console = ConsoleView(search.n_planned, swept=swept, n_done=n_done)
    views: list[SweepView] = [] if as_json else [console]
    shown = MlflowView(
        tracking,
        value.name,
        options.out.name,
        meta,
        swept,
        seeds=search.seeds,
        first_seed=search.first_seed,
        folder=options.out,
        artifacts=write_artifacts,
    )
    views += [shown, DropsStale(options.out)]
    with mirrored(options.out, options.storage, _warn, resume=resume):
        try:
            ended = run_sweep(value, options, views, resume=resume)
            with room_in(ended.folder):
                written = write_report(ended.folder)
            results = [path for path in (written.results, written.cells) if path is not None]
            shown.attach([written.html, *results, *written.figures])
        finally:
            for view in views:
                view.close()
        if resume:
            _bring_up_to_date(ended.folder, tracking)
        ended = _tell(ended, value, swept, as_json)
    if not as_json:
        where = where_to_look(tracking, runs, shown.ui_path)
        print(f"Compare the trials in the MLflow UI: {where}")
    return _status(ended, options)


def _resolved(value: Sweep, options: "SweepOptions") -> "Search":
    """Return the sweep with the user's choices; an error where none of it could be swept."""
    from bkray.cluster.at_inference import check_at_inference
    from bkray.cluster.tuner import base_config, resolve

    search = resolve(value, options)
    check_at_inference(value, base_config(search), options.scheduler)
    return search


def _warn(said: str) -> None:
    print(said, file=sys.stderr, flush=True)


def _bring_up_to_date(folder: Path, tracking: "Tracking") -> None:
    """Upload what a killed driver had not sent; the views have seen the rest."""
    from bkray.sinks.mlflow_sync import sync_sweep

    try:
        sync_sweep(folder, tracking, warn=_warn)
    except TrackingError as error:
        again = shlex.join(["bkray", "mlflow-sync", str(folder)])
        print(f"MLflow may lack something ({error}): later run {again}", file=sys.stderr)


def _status(ended: "SweepOutcome", options: "SweepOptions") -> int:
    """Say what went wrong or is left to do; return the exit status."""
    from bkray.cluster.budget import GPU_HOURS_ARE_UP, gpu_hours

    if ended.always_fails:
        print(f"{ended.always_fails.rstrip()}\nthe first trials all ended so", file=sys.stderr)
        return NO_SUCCESS
    if ended.first_failure:
        print(f"first failure: {ended.first_failure}", file=sys.stderr)
    if ended.interrupted or ended.over_budget:
        again = ["bkray", "resume", options.storage or str(options.out)]
        if options.storage and options.runs.resolve() != Path("runs").resolve():
            again += ["--runs", str(options.runs)]
        again += ["--address", options.address] if options.address else []
        if ended.over_budget == GPU_HOURS_ARE_UP:
            print(f"{gpu_hours(options.out) or 0:.4g} GPU-hours are spent", file=sys.stderr)
            again += ["--max-gpu-hours", "MORE"]
        print(f"go on with: {shlex.join(again)}", file=sys.stderr)
        return INTERRUPTED if ended.interrupted else BUDGET_REACHED
    return 0 if ended.outcomes.get("ok") else NO_SUCCESS


@contextmanager
def _new_folder(wanted: Path) -> Iterator[Path]:
    """Make and yield a folder that no other sweep has, of two started in one second either; take
    it away again if it was not used."""
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    try:
        yield folder
    finally:
        with suppress(OSError):  # it is in use
            folder.rmdir()


def _tell(
    ended: "SweepOutcome", value: Sweep, searched: list[str], as_json: bool
) -> "SweepOutcome":
    """Print what came out, the leaderboard before checkpoints are swept; drop those that nobody
    needs any more. Return how it ended, which Ctrl-C may have changed."""
    from bkray.cluster.retention import settle_checkpoints
    from bkray.report import tables
    from bkray.report.configurations import configurations, front_trials
    from bkray.report.findings import findings

    folder = ended.folder
    rows, objectives = tables.collect(folder), tables.objectives(folder)
    front = front_trials(configurations(rows, objectives), objectives)
    counts = {"folder": str(folder), "outcomes": dict(ended.outcomes)}
    told = {**counts, "n_reused": ended.n_reused, "pareto_front": front}
    if not as_json:
        print_tables(rows, objectives, findings(folder, rows))
    is_over = not (ended.interrupted or ended.over_budget)
    if is_over and value.at_inference:
        found = sweep_checkpoints(folder, value, searched, as_json)
        is_over = found is not None
        ended = replace(ended, interrupted=not is_over)
        if found is not None:
            told["frontier"] = asdict(found)
    if is_over:
        settle_checkpoints(folder, front)
    if as_json:
        print_json(told)
    else:
        print(
            f"\nReport: {folder}/report.html, and trials.parquet; again with: bkray show {folder}"
        )
    return ended
