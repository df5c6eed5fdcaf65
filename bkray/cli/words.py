"""What the verbs share: options, exit statuses, printing."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bkray.atomic import jsonable
from bkray.errors import ConfigError
from bkray.sweep import Objective

if TYPE_CHECKING:
    from bkray.cluster.search import Proposal
    from bkray.report.findings import Findings
    from bkray.report.tables import Row
    from bkray.sinks.mlflow import Tracking

USER_ERROR, NO_SUCCESS, BUDGET_REACHED, INTERRUPTED = 2, 3, 4, 130

Words = Annotated[list[str] | None, typer.Argument(metavar="[path=value]...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
Runs = Annotated[Path, typer.Option(help="Folder of all runs and of the embedded MLflow store.")]


def print_json(value: Any) -> None:
    print(json.dumps(jsonable(value), indent=2, default=str))


def times_seeds(n_configurations: int, n_trials: int) -> str:
    """Return how the trials come about, where they are more than the configurations."""
    if n_trials == n_configurations:
        return ""
    seeds, rest = divmod(n_trials, n_configurations)
    times = "" if rest else f" x {seeds} seeds"
    return f" ({n_configurations} configurations{times})"


def print_plan(proposals: "Sequence[Proposal]", as_json: bool) -> None:
    plans = [proposal.overrides for proposal in proposals]
    if as_json:
        print_json(plans)
        return
    for plan in plans:
        print(" ".join(f"{path}={value}" for path, value in plan.items()))
    n_trials = sum(proposal.n_seeds for proposal in proposals)
    of_seeds = times_seeds(len(plans), n_trials)
    print(f"{n_trials} trials{of_seeds} are known before the sampler is asked")


def seconds(text: str | None) -> float | None:
    """Return the seconds of ``90s``, ``30m``, ``2h`` or a bare number of seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"--time-budget must be above 0, such as 90s, 30m or 2h, got {text!r}")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def n_bytes(text: str | None) -> int:
    """Return the bytes of ``512M`` or ``8G`` (powers of 1024), 0 for nothing."""
    if text is None:
        return 0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([MG])(?:iB)?", text)
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"--memory-per-worker must be above 0, such as 512M or 8G, got {text!r}")
    return int(float(found[1]) * {"M": 2**20, "G": 2**30}[found[2]])


def n_gpus(text: str) -> float:
    """Return the GPUs of one worker."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"--gpus-per-worker must be a number or auto, such as 1 or 0.25, got {text!r}"
        ) from None


def where_to_look(store: "Tracking", runs: Path, path: str | None) -> str:
    """Return the address of a page on a server, without a password, or how to serve it and where
    it is then."""
    from bkray.sinks.mlflow import ui_address

    if store.shown.startswith("http"):
        return store.shown.rstrip("/") + (path or "")
    return f"bkray ui --runs {shlex.quote(str(runs))}" + (
        f"\n  then {ui_address(5000)}{path}" if path else ""
    )


def print_tables(rows: "list[Row]", objectives: Sequence[Objective], findings: "Findings") -> None:
    from rich.console import Console

    from bkray.report.terminal import render, render_text

    console = Console()
    if console.is_terminal:
        console.print(render(rows, objectives, findings))
    else:
        print(render_text(rows, objectives, findings))
