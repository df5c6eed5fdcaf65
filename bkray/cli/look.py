"""The verbs that look at what ran: ``show``, ``report``, ``ui``."""

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from bkray.cli.frontier import FILE
from bkray.cli.words import AsJson, Runs, print_json, print_tables
from bkray.errors import ConfigError


def show(folder: Path, as_json: AsJson = False) -> int:
    """Show leaderboard, Pareto front and outcomes of a running or finished sweep.

    Trials that differ in their seed alone are one configuration: with
    several seeds, means over them are ranked.

    --json prints "trials" ranked one by one, "configurations" with mean,
    interval, n and n_diverged, and "pareto_front": the trials on the front,
    with several seeds those of each configuration whose means are on it;
    "products" are the pairs of an ablation beside the product of their
    parts, "products_missing" the trials that these lack; "ladder" is a
    length ladder as in its long_context_results.json, else null;
    "comparison" are the families of one with their verdicts, and the
    speeds of its rivals by length, else null;
    "mismatch" are the cells of a mismatch sweep with their verdicts;
    "generator" are generators by training length, each against the longest,
    and the shortest length that loses nothing, else null;
    "frontier" is what a sweep with --frontier found, else null.
    """
    from bkray.report import (
        comparison,
        configurations,
        generator,
        ladder,
        mismatch,
        products,
        ranking,
        tables,
    )
    from bkray.report.findings import findings

    rows, objectives = tables.collect(folder), tables.objectives(folder)
    known = findings(folder, rows)
    frontier = folder / FILE
    swept = json.loads(frontier.read_text()) if frontier.exists() else None
    if as_json:
        found = configurations.configurations(rows, objectives)
        print_json(
            {
                "trials": ranking.leaderboard(rows, objectives),
                "configurations": configurations.plain(found, objectives),
                "pareto_front": configurations.front_trials(found, objectives),
                "products": [dataclasses.asdict(one) for one in products.products(rows)],
                "products_missing": products.missing(rows),
                "ladder": known.ladder and ladder.plain(known.ladder),
                "comparison": known.compared and comparison.plain(known.compared),
                "mismatch": mismatch.plain(known.mismatch),
                "generator": generator.plain(known.generator) if known.generator else None,
                "frontier": swept,
            }
        )
    else:
        print_tables(rows, objectives, known)
        if swept is not None:
            print(f"\nverdict: {swept['verdict']}")
    return 0


def report(folder: Path, as_json: AsJson = False) -> int:
    """Write one offline HTML page, PNGs and a CSV of a running or finished sweep, into its folder.

    --json prints the paths: "html", "csv", "parquet", "figures" as a list, and
    "results", the long_context_results.json of a length ladder, else null, and
    "cells", the mismatch.parquet of a mismatch sweep, else null.
    """
    from bkray.report.render import write_report

    written = write_report(folder)
    if as_json:
        print_json(dataclasses.asdict(written))
    else:
        paths = (written.html, written.csv, written.parquet, written.results, written.cells)
        print(*filter(None, paths), sep="\n")
        print(f"{folder / 'figures'}: {', '.join(path.name for path in written.figures)}")
    return 0


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    runs: Runs = Path("runs"),
) -> int:
    """Serve the MLflow UI over the embedded store, to this machine alone."""
    from bkray.sinks.mlflow import (
        embedded_store,
        newest_paths,
        ui_address,
        ui_command,
        ui_environment,
    )

    if not (runs / "mlflow.db").exists():
        raise ConfigError(f"{runs} holds no MLflow store yet: run a sweep first, or give --runs")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigError(f"port {port} is taken: give another one by --port") from None
    print(f"MLflow UI: {ui_address(port)}/#/experiments  (Ctrl-C ends it)")
    for shown, path in newest_paths(embedded_store(runs)).items():
        print(f"{shown}: {ui_address(port)}{path}")
    sys.stdout.flush()
    try:
        return subprocess.run(ui_command(runs, port), env=ui_environment(), check=False).returncode
    except KeyboardInterrupt:  # it went to the server as well
        return 0
