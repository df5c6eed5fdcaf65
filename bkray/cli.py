"""The command line: ``bkray --help``. Each verb reads its words, calls one function, prints.

Exit status: 0 done; 2 a mistake of the user; 3 no trial succeeded; 4 a budget was reached first;
130 interrupted.
"""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from bkray.errors import BkrayError, ConfigError
from bkray.sweep import Objective, Sweep

if TYPE_CHECKING:  # each verb imports what it needs, so that --help stays quick
    from bkray.cluster.tuner import SweepOptions
    from bkray.report.tables import Row
    from bkray.sinks.sink import SweepView

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

USER_ERROR, NO_SUCCESS, BUDGET_REACHED, INTERRUPTED = 2, 3, 4, 130

Words = Annotated[list[str] | None, typer.Argument(metavar="[path=value]...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
Runs = Annotated[Path, typer.Option(help="Folder of all runs and of the embedded MLflow store.")]


def main() -> None:
    """Run the command line; a mistake of the user is one message and status 2."""
    try:
        sys.path.append("")  # model=package.module:build of the folder one stands in
        sys.exit(app(standalone_mode=False))
    except BkrayError as error:
        _fail(f"error: {error}", USER_ERROR)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
        _fail(f"error: {error.strerror}: {error.filename}", USER_ERROR)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except TyperException as error:  # an unknown verb or option
        # no verb at all has shown the help already
        _fail(f"error: {error}" if str(error) else "", USER_ERROR)


@app.command(epilog="Example: bkray train mixer=attention train.steps=100")
def train(
    overrides: Words = None,
    out: Annotated[Path | None, typer.Option(help="The trial's folder; resumed if begun.")] = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> int:
    """Train one trial in this process: no Ray, no server.

    The same command again goes on from the last checkpoint; a finished trial is only shown.
    """
    from bkray.overrides import build, parse

    config = build(parse(overrides or []))  # a typo is told before torch is loaded
    from bkray.cluster.single import train_alone
    from bkray.sinks.console import ConsoleView
    from bkray.trial import identify

    folder = out or runs / "train" / identify(config)[0]
    view = None if as_json else ConsoleView(1)
    ended = train_alone(config, folder, [view] if view else [])
    if view:
        view.close()
    if as_json:
        _print_json({"folder": str(folder), **ended})
    else:
        loss = ended["summary"].get("best_val_loss_nats")
        best = "no validation" if loss is None else f"best validation loss {loss:.4f} nats/token"
        said = [best, ended["stop_reason"], ended["summary"].get("advice")]
        print(f"{ended['outcome']}: {'; '.join(filter(None, said))}; in {folder}")
    if ended["outcome"] == "interrupted":
        again = " ".join(["bkray train", *(overrides or []), f"--out {folder}"])
        print(f"go on with: {again}", file=sys.stderr)
        return INTERRUPTED
    return 0 if ended["outcome"] == "ok" else NO_SUCCESS


@app.command(epilog="Example: bkray sweep act --preset smoke train.steps=40")
def sweep(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE.py")],
    overrides: Words = None,
    preset: Annotated[str, typer.Option(help="smoke, small or full.")] = "small",
    trials: Annotated[int | None, typer.Option(help="Searched trials.")] = None,
    sampler: Annotated[str | None, typer.Option(help="tpe|gp|nsga2|qmc|random|grid")] = None,
    scheduler: Annotated[str | None, typer.Option(help="none|asha|hyperband|median")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials at once.")] = None,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs of each trial.")] = 0.0,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster: auto|HOST.")] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for the sweep.")] = None,
    runs: Runs = Path("runs"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the sampler.")] = 0,
    time_budget: Annotated[str | None, typer.Option(help="Such as 90s, 30m or 2h.")] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Show what is known to be tried, run none.")
    ] = False,
    local: Annotated[bool, typer.Option(help="In this process, one by one, without Ray.")] = False,
    as_json: AsJson = False,
) -> int:
    """Run a whole sweep and show its leaderboard and Pareto front."""
    from bkray.cluster.tuner import SweepOptions, planned
    from bkray.overrides import parse
    from sweeps.load import load

    value = load(name)
    options = SweepOptions(
        out=out or runs / value.name / f"{datetime.now():%Y%m%d-%H%M%S}-{preset}",
        preset=preset,
        source=name,
        overrides=parse(overrides or []),
        trials=trials,
        sampler=sampler,
        scheduler=scheduler,
        concurrency=concurrency,
        local=local,
        seed=seed,
        time_budget_seconds=_seconds(time_budget),
        address=address,
        gpus=gpus_per_worker,
    )
    if dry_run:
        _show_plan([proposal.overrides for proposal in planned(value, options)], as_json)
        return 0
    return _run(value, options, runs, as_json)


@app.command(epilog="Example: bkray show runs/act/20260101-120000-small")
def show(folder: Path, as_json: AsJson = False) -> int:
    """Show leaderboard, Pareto front and outcomes of a running or finished sweep."""
    from bkray.report import ranking, tables

    rows = tables.collect(folder)
    objectives = tables.objectives(folder)
    if as_json:
        front = [row["trial_id"] for row in ranking.pareto_front(rows, objectives)]
        _print_json({"trials": ranking.leaderboard(rows, objectives), "pareto_front": front})
    else:
        _print_tables(rows, objectives)
    return 0


@app.command("eval", epilog="Example: bkray eval runs/train/1a2b3c4d5e6f --split test")
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="TRIAL_DIR")],
    split: Annotated[str, typer.Option(help="valid or test.")] = "valid",
    as_json: AsJson = False,
) -> int:
    """Score a trial's checkpoint on the whole of a split."""
    from bkray.trial import evaluate_checkpoint

    if split not in ("valid", "test"):
        raise ConfigError(f"--split must be valid or test, got {split!r}")
    step, score = evaluate_checkpoint(folder, split)
    if as_json:
        _print_json({"split": split, "step": step, "loss_nats": score.loss_nats, **score.metrics})
    else:
        print(f"{split}: {score.loss_nats:.4f} nats/token at step {step}")
        for metric, value in score.metrics.items():
            print(f"  {metric} {value:.4f}")
    return 0


@app.command(epilog="Example: bkray ui --port 5001")
def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    runs: Runs = Path("runs"),
) -> int:
    """Serve the MLflow UI over the embedded store, to this machine alone."""
    from bkray.sinks.mlflow import ui_address, ui_command, ui_environment

    if not (runs / "mlflow.db").exists():
        raise ConfigError(f"{runs} holds no MLflow store yet: run a sweep first, or give --runs")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigError(f"port {port} is taken: give another one by --port") from None
    print(f"MLflow UI: {ui_address(port)}/#/experiments  (Ctrl-C ends it)", flush=True)
    return subprocess.run(ui_command(runs, port), env=ui_environment(), check=False).returncode


def _run(value: Sweep, options: "SweepOptions", runs: Path, as_json: bool) -> int:
    """Run a sweep under its views, write its table, show it; return the exit status."""
    from bkray.cluster.record import git_state
    from bkray.cluster.tuner import resolve, run_sweep
    from bkray.report import ranking, tables
    from bkray.sinks.console import ConsoleView
    from bkray.sinks.mlflow import MlflowView, open_store

    for folder in (options.out, runs):
        if set("?#%") & set(str(folder)):  # databases are opened by address, where these mean more
            raise ConfigError(f"the folder {str(folder)!r} must be without ?, # and %")
    search = resolve(value, options)
    swept = search.swept()
    git = git_state()
    if not as_json:
        print(f"{search.n_planned} trials into {options.out}; starting up", flush=True)
    meta = {"preset": options.preset} | ({"git_sha": git["sha"]} if git else {})
    tracking = open_store(runs)
    views: list[SweepView] = [] if as_json else [ConsoleView(search.n_planned, swept=swept)]
    views.append(MlflowView(tracking, value.name, options.out.name, meta, swept))
    try:
        ended = run_sweep(value, options, views)
    finally:
        for view in views:
            view.close()
    tables.write_trials_parquet(ended.folder)
    rows, objectives = tables.collect(ended.folder), tables.objectives(ended.folder)
    if as_json:
        front = [row["trial_id"] for row in ranking.pareto_front(rows, objectives)]
        counts = {"folder": str(ended.folder), "outcomes": dict(ended.outcomes)}
        _print_json({**counts, "n_reused": ended.n_reused, "pareto_front": front})
    else:
        _print_tables(rows, objectives)
        print(f"\nTables: {ended.folder}/trials.parquet, again with: bkray show {ended.folder}")
        print(f"Compare the trials in the MLflow UI: {_where_to_look(tracking.uri, runs)}")
    if ended.first_failure:
        print(f"first failure: {ended.first_failure}", file=sys.stderr)
    if ended.interrupted:
        return INTERRUPTED
    if ended.out_of_time:
        return BUDGET_REACHED
    return 0 if ended.outcomes.get("ok") else NO_SUCCESS


def _where_to_look(uri: str, runs: Path) -> str:
    return uri if uri.startswith("http") else f"bkray ui --runs {runs}"


def _seconds(text: str | None) -> float | None:
    """Return the seconds of ``90s``, ``30m``, ``2h`` or a bare number of seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"--time-budget must be above 0, such as 90s, 30m or 2h, got {text!r}")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _show_plan(plans: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json(plans)
        return
    for plan in plans:
        print(" ".join(f"{path}={value}" for path, value in plan.items()))
    print(f"{len(plans)} trials are known before the sampler is asked")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def _print_tables(rows: "list[Row]", objectives: Sequence[Objective]) -> None:
    from rich.console import Console

    from bkray.report.terminal import render, render_text

    console = Console()
    if console.is_terminal:
        console.print(render(rows, objectives))
    else:
        print(render_text(rows, objectives))


def _fail(message: str, status: int) -> NoReturn:
    print(message or "give a verb, such as: bkray sweep act", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
