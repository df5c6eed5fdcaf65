"""What the UI opens with, and that a browser finds the tree there."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import free_port, served
from shown import SWEPT, runs_of, show, started

from bkray.cli.words import where_to_look
from bkray.events import Event, TrialEnded
from bkray.sinks.mlflow import (
    MlflowView,
    Tracking,
    embedded_store,
    newest_paths,
    ui_address,
)
from bkray.sinks.mlflow_ui import experiment_tags, runs_path

LOSSES = (3.0, 1.0, 2.0)


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def tracking(runs_dir: Path) -> Tracking:
    """A store with a sweep of three configurations of two seeds each, and a report."""
    tracking = embedded_store(runs_dir)
    assert newest_paths(tracking) == {}
    figures = runs_dir / "figures"
    figures.mkdir()
    (runs_dir / "report.html").write_text("<h1>Report</h1>")
    (figures / "pareto.png").write_bytes(b"no picture")
    view = MlflowView(tracking, "act", "first", {}, SWEPT, seeds=2)
    for i, loss in enumerate(LOSSES):
        for seed in range(2):
            config = {**started().config, "model.act_lambda": (i + 1) / 10, "seed": seed}
            sink = view.trial(f"{i}-{seed}")
            sink(started(f"{i}-{seed}", seed=seed, config=config))
            summary = {"best_val_loss_nats": loss, "final_val_loss_nats": loss}
            sink(TrialEnded(step=1, outcome="ok", reason="", summary=summary))
            sink.close()
    view.attach([runs_dir / "report.html", figures])
    view.close()
    assert view.ui_path == runs_path("1", "first")
    return tracking


def test_the_views_hold_columns_order_and_filter() -> None:
    tags = experiment_tags("a-b", "a b", SWEPT, seeds=1, unix_ms=7)
    ranking = json.loads(tags["mlflow.sharedViewState.a-b"])
    assert (ranking["name"], ranking["createdAt"]) == ("Ranking of a b", 7)
    state = json.loads(ranking["state"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`best/val_loss_nats`", True)
    assert "tags.sweep_run = 'a-b'" in state["searchFilter"]
    assert {"metrics.`final/speedup_measured`", "params.`model.act_lambda`", "tags.`outcome`"} < {
        *state["selectedColumns"]
    }
    assert "metrics.`n_diverged`" not in state["selectedColumns"]
    tree = json.loads(json.loads(tags["mlflow.sharedViewState.bkray"])["state"])
    assert "searchFilter" not in tree  # the UI nests nothing that was filtered
    several = json.loads(
        experiment_tags("s", "s", SWEPT, seeds=2, unix_ms=7)["mlflow.sharedViewState.s"]
    )
    assert "metrics.`n_diverged`" in json.loads(several["state"])["selectedColumns"]


def test_the_newest_sweep_is_where_the_ui_begins(tracking: Tracking) -> None:
    events: list[Event] = [started()]
    show(tracking, "a later/one", events)
    names = newest_paths(tracking)
    assert list(names) == ["ranking of a later/one", "all sweeps"]
    assert names["ranking of a later/one"] == runs_path("1", "a_later_one")
    assert names["all sweeps"].endswith("viewStateShareKey=bkray")


def test_the_default_experiment_goes_unless_somebody_uses_it(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(embedded_store(tmp_path).uri)
    assert client.search_experiments() == []
    client.restore_experiment("0")
    client.create_run("0")
    embedded_store(tmp_path)
    assert [found.name for found in client.search_experiments()] == ["Default"]


def test_report_and_figures_are_artifacts_of_the_sweep(tracking: Tracking) -> None:
    from mlflow import MlflowClient

    sweep, _ = runs_of(tracking, "first")
    client = MlflowClient(tracking.uri)
    top = [file.path for file in client.list_artifacts(sweep.info.run_id)]
    assert top == ["figures", "report.html"]
    below = client.list_artifacts(sweep.info.run_id, "figures")
    assert [file.path for file in below] == ["figures/pareto.png"]


def test_the_machine_is_watched_in_the_sweeps_run_and_not_after(tracking: Tracking) -> None:
    from mlflow import MlflowClient

    sweep, _ = runs_of(tracking, "first")
    names = {"cpu_utilization_percentage", "system_memory_usage_megabytes"}
    names |= {"disk_usage_percentage", "network_receive_megabytes"}
    assert {f"system/{name}" for name in names} <= sweep.data.metrics.keys()
    told = MlflowClient(tracking.uri).get_metric_history(
        sweep.info.run_id, "system/system_memory_usage_megabytes"
    )
    assert all(point.value > 0 for point in told)
    assert all(point.timestamp <= sweep.info.end_time for point in told)


@pytest.mark.parametrize(
    ("uri", "path", "said"),
    [
        ("http://host:1/", "/#/x", "http://host:1/#/x"),
        ("https://host", None, "https://host"),
        ("https://user:secret@host", "/#/x", "https://***@host/#/x"),
        ("sqlite:///r/mlflow.db", "/#/x", "bkray ui --runs r\n  then http://127.0.0.1:5000/#/x"),
        ("sqlite:///r/mlflow.db", None, "bkray ui --runs r"),
    ],
)
def test_the_end_of_a_sweep_says_where_to_look(uri: str, path: str | None, said: str) -> None:
    assert where_to_look(Tracking(uri, None), Path("r"), path) == said


@pytest.mark.slow
def test_ui_prints_the_addresses_of_the_newest_sweep(tracking: Tracking, runs_dir: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "bkray.cli", "ui", "--runs", str(runs_dir)]
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert server.stdout is not None
        said = [server.stdout.readline().strip() for _ in range(3)]
        paths = newest_paths(tracking)
        assert said[1:] == [f"{name}: {ui_address(port)}{path}" for name, path in paths.items()]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.communicate(timeout=20)


@contextmanager
def browsed(address: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        try:
            page = browser.new_page(viewport={"width": 1600, "height": 900})
            page.set_default_timeout(60_000)
            page.goto(address)
            yield page
        finally:
            browser.close()


def names_shown(page: Any, n_rows: int) -> list[str]:
    """The run names of the table from top to bottom, once there are ``n_rows`` of them."""
    links = page.locator("[row-index] a[href*='/runs/']")
    links.nth(n_rows - 1).wait_for()
    row_of = (
        "link => [Number(link.closest('[row-index]').getAttribute('row-index')), link.innerText]"
    )
    return [name for _, name in sorted(links.evaluate_all(f"links => links.map({row_of})"))]


def expand(page: Any, name: str) -> None:
    page.locator("[row-index]", has_text=name).locator("button").first.click()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium to open the page")
def test_a_browser_finds_ranking_and_tree(
    tracking: Tracking, runs_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("playwright", reason="needs playwright, of the dev extra")
    path = runs_path("1", "first")
    with served(runs_dir, tmp_path / "server.log") as address, browsed(address + path) as page:
        ranked = [f"thr=0.95 lam=0.{i}" for i in (2, 3, 1)]
        assert names_shown(page, 3) == ranked
        for header in ("best/val_loss_nats", "final/val_loss_nats", "n_diverged"):
            assert page.get_by_text(header).count() > 0
        page.goto("about:blank")
        page.goto(address + runs_path("1", "bkray"))
        page.get_by_text("first", exact=True).wait_for()
        assert not {*ranked} & {*names_shown(page, 1)}  # folded
        expand(page, "first")
        assert {*ranked} <= {*names_shown(page, 4)}
        expand(page, ranked[0])
        assert {f"seed={seed} {ranked[0]}" for seed in range(2)} <= {*names_shown(page, 6)}
