"""What the verbs share: options, exit statuses, printing."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bkray.atomic import jsonable
from bkray.sweep import Objective

if TYPE_CHECKING:
    from bkray.report.ladder import Ladder
    from bkray.report.tables import Row

USER_ERROR, NO_SUCCESS, BUDGET_REACHED, INTERRUPTED = 2, 3, 4, 130

Words = Annotated[list[str] | None, typer.Argument(metavar="[path=value]...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
Runs = Annotated[Path, typer.Option(help="Folder of all runs and of the embedded MLflow store.")]


def print_json(value: Any) -> None:
    print(json.dumps(jsonable(value), indent=2, default=str))


def where_to_look(uri: str, runs: Path, path: str | None) -> str:
    """Return the address of a page on a server, or how to serve it and where it is then."""
    from bkray.sinks.mlflow import ui_address

    if uri.startswith("http"):
        return uri.rstrip("/") + (path or "")
    return f"bkray ui --runs {shlex.quote(str(runs))}" + (
        f"\n  then {ui_address(5000)}{path}" if path else ""
    )


def print_tables(
    rows: "list[Row]", objectives: Sequence[Objective], ladder: "Ladder | None"
) -> None:
    from rich.console import Console

    from bkray.report.terminal import render, render_text

    console = Console()
    if console.is_terminal:
        console.print(render(rows, objectives, ladder))
    else:
        print(render_text(rows, objectives, ladder))
