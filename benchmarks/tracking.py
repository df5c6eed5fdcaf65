"""What tracking costs: a thousand trials into the embedded store, and a server that answers late.

    python -m benchmarks.tracking thousand    # 1,000 trials that train nothing; then the UI
    python -m benchmarks.tracking slow        # real tiny trials; ratios of their time

Both use a temporary folder and this machine alone.
"""

import contextlib
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.slow_server import slowed
from bkray.cluster.carriers import Parts
from bkray.cluster.tuner import SweepOptions, run_sweep
from bkray.config import TrialConfig
from bkray.events import EvalDone, Event, StepsDone, TrialEnded, TrialStarted
from bkray.overrides import flatten, trial_id
from bkray.sinks.mlflow import (
    MlflowView,
    Tracking,
    embedded_store,
    newest_paths,
    ui_address,
    ui_command,
    ui_environment,
)
from bkray.sinks.parquet import ParquetSink
from bkray.sinks.sink import Null, Sink
from bkray.sweep import Objective, Preset, Sweep, Trial
from bkray.train.run import Stop
from bkray.train.team import ALONE, Team
from sweeps.act import SWEEP as ACT

N_TRIALS, BLOCK = 1000, 100
ROUNDS, DELAY_SECONDS = 3, 2.0


def main() -> None:
    """Run the benchmark that was asked for."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as there:
        {"thousand": thousand, "slow": slow}[sys.argv[1]](Path(there))


def thousand(folder: Path) -> None:
    """Show what a trial costs driver and writer, whether that grows, and how the UI copes."""
    alone = Clock()
    seconds = sweep_seconds(STUB, folder / "alone", [alone], parts=PARTS)
    print(f"{N_TRIALS} trials without MLflow: {seconds:.1f} s; {alone.growth()}", flush=True)
    tracking, clock = embedded_store(folder), Clock()
    view = MlflowView(tracking, "stub", "thousand", {}, SWEPT)
    seconds = sweep_seconds(STUB, folder / "shown", [clock, view], parts=PARTS)
    began = time.perf_counter()
    view.close()
    print(f"with the embedded store: {seconds:.1f} s; {clock.growth()}")
    print(f"closing the view: {time.perf_counter() - began:.1f} s", flush=True)
    began = time.perf_counter()
    view = MlflowView(tracking, "stub", "writer", {}, SWEPT)
    for i in range(N_TRIALS):
        sink = view.trial(f"w{i}")
        for event in stub_events(f"w{i}", "stub", {SWEPT[0]: i / N_TRIALS}, i / N_TRIALS):
            sink(event)
        sink.close()
    view.close()
    each = (time.perf_counter() - began) / N_TRIALS
    print(f"the writer alone: {1000 * each:.1f} ms per trial", flush=True)
    with served(folder) as address:
        page_through(Tracking(address, None))
        browse(address + newest_paths(tracking)["ranking of writer"])


def page_through(tracking: Tracking) -> None:
    """Time the sorted query that the UI makes, and fetch every trial by it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri)
    experiment = client.get_experiment_by_name("stub")
    assert experiment is not None
    wanted = "tags.sweep_run = 'writer' and tags.level = 'configuration'"
    losses: list[float] = []
    pages: list[float] = []
    token: str | None = None
    while not pages or token:
        began = time.perf_counter()
        page = client.search_runs(
            [experiment.experiment_id],
            wanted,
            max_results=100,
            order_by=["metrics.`best/val_loss_nats` ASC"],
            page_token=token,
        )
        pages.append(time.perf_counter() - began)
        losses += [run.data.metrics["best/val_loss_nats"] for run in page]
        token = page.token
    assert losses == sorted(losses)
    print(
        f"sorted by loss over HTTP: {len(losses)} trials in {len(pages)} pages, "
        f"first page {pages[0]:.2f} s, slowest {max(pages):.2f} s",
        flush=True,
    )


def browse(address: str) -> None:
    """Time the runs page in a browser until it shows rows, the best first."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("no chromium here: the page was not opened")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(120_000)
        for visit in ("first visit", "second visit"):
            page.goto("about:blank")
            began = time.perf_counter()
            page.goto(address)
            first = page.locator("[row-index='0'] a[href*='/runs/']")
            first.wait_for()
            seconds = time.perf_counter() - began
            assert first.inner_text() == "lr=0 seed=0"  # the least loss of all
            print(f"runs page, {visit}: rows, the best first, after {seconds:.1f} s")
        browser.close()


def slow(folder: Path) -> None:
    """Show the time of real trials without MLflow, with it, and with it far away."""
    ways: dict[str, list[float]] = {"no MLflow": [], "embedded store": [], "late server": []}
    closing: dict[str, list[float]] = {way: [] for way in ways}
    inside: dict[str, list[float]] = {way: [] for way in ways}
    runs = folder / "runs"
    embedded = embedded_store(runs)
    with served(runs) as address, slowed(address, DELAY_SECONDS) as server:
        stores = {"embedded store": embedded, "late server": Tracking(server.address, None)}
        for round_ in range(ROUNDS + 1):
            for way, found in ways.items():
                name = f"{way.replace(' ', '-')}-{round_}"
                store = stores.get(way)
                views = [Timed(MlflowView(store, "act", name, {}, ()))] if store else []
                seconds = sweep_seconds(ACT, folder / name, views, trials=2)
                began = time.perf_counter()
                for view in views:
                    view.close()
                if round_:  # the first one compiles and warms up
                    found.append(seconds)
                    inside[way].append(sum(view.seconds for view in views))
                    closing[way].append(time.perf_counter() - began)
    for way, found in ways.items():
        ratios = [mine / plain for mine, plain in zip(found, ways["no MLflow"], strict=True)]
        print(
            f"{way:15s} {statistics.median(found):5.1f} s, ratio in the same round "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}), "
            f"of it in the view's calls {1000 * max(inside[way]):.1f} ms at most; "
            f"then {statistics.median(closing[way]):.1f} s to close"
        )


def sweep_seconds(
    sweep: Sweep,
    out: Path,
    views: list[Any],
    *,
    parts: Parts | None = None,
    trials: int | None = None,
) -> float:
    """Return the wall-clock seconds of a sweep in this process, one trial after the other."""
    options = SweepOptions(out=out, preset="smoke", local=True, trials=trials)
    began = time.perf_counter()
    if parts is None:
        ended = run_sweep(sweep, options, views)
    else:
        ended = run_sweep(sweep, options, views, parts=parts, identify=identify)
    assert set(ended.outcomes) == {"ok"}, ended
    return time.perf_counter() - began


class Timed:
    """Hands events to a view, and adds up how long the trial had to wait for that."""

    def __init__(self, view: MlflowView) -> None:
        self._view = view
        self.seconds = 0.0

    def trial(self, trial_id: str) -> Sink:
        return TimedSink(self, self._view.trial(trial_id))

    def close(self) -> None:
        self._view.close()


class TimedSink:
    """A trial's part of ``Timed``."""

    def __init__(self, timed: Timed, sink: Sink) -> None:
        self._timed = timed
        self._sink = sink

    def __call__(self, event: Event) -> None:
        began = time.perf_counter()
        self._sink(event)
        self._timed.seconds += time.perf_counter() - began

    def close(self) -> None:
        self._sink.close()


class Clock:
    """A view that notes when each trial ends."""

    def __init__(self) -> None:
        self._ends = [time.perf_counter()]

    def trial(self, trial_id: str) -> Sink:
        self._ends.append(time.perf_counter())
        return Null()

    def close(self) -> None:
        """Nothing is open."""

    def growth(self) -> str:
        """Return the time of a trial among the first and among the last ones."""
        first = (self._ends[BLOCK] - self._ends[1]) / (BLOCK - 1)
        last = (self._ends[-1] - self._ends[-BLOCK]) / (BLOCK - 1)
        return f"{1000 * first:.1f} ms each at first, {1000 * last:.1f} ms at last"


def identify(config: TrialConfig) -> tuple[str, str]:
    """Return id and data of a trial that reads no data."""
    return trial_id(config, "none", "0"), "none"


def stub(
    config: TrialConfig, folder: Path, *, sweep: str, stop: Stop, team: Team = ALONE
) -> Iterator[Event]:
    """Train nothing: the loss is a bowl over the learning rate."""
    loss = 1 + (math.log10(config.optimizer.lr) + 2.5) ** 2
    yield from stub_events(identify(config)[0], sweep, flatten(config), loss)


def stub_events(
    name: str, sweep: str, config: dict[str, Any], loss_nats: float
) -> Iterator[Event]:
    """Yield what a trial of four windows says."""
    yield TrialStarted(
        trial_id=name,
        sweep=sweep,
        arm="",
        seed=0,
        attempt=1,
        config=config,
        n_params=1,
        causal=True,
        data_hash="none",
    )
    for step in (16, 32, 48, 64):
        yield StepsDone(
            step=step,
            tokens=step,
            loss_nats=(loss_nats + 1 / step,) * 16,
            grad_norm=(1.0,) * 16,
            lr=0.1,
            window_seconds=0.1,
        )
        yield EvalDone(step=step, tokens=step, split="val", loss_nats=loss_nats + 1 / step)
    summary = {"best_val_loss_nats": loss_nats, "final_val_loss_nats": loss_nats, "steps": 64}
    yield TrialEnded(step=64, outcome="ok", reason="", summary=summary)


def space(trial: Trial) -> dict[str, object]:
    """Ask for a learning rate."""
    trial.suggest_float(SWEPT[0], 1e-4, 1e-1, log=True)
    return {}


SWEPT = ("optimizer.lr",)
PARTS = Parts(stub, ParquetSink)
STUB = Sweep(
    name="stub",
    space=space,
    objectives=(Objective(column="best_val_loss_nats", direction="minimize"),),
    presets={"smoke": Preset(trials=N_TRIALS)},
    sampler="qmc",
)


@contextlib.contextmanager
def served(runs: Path) -> Iterator[str]:
    """The address of the UI over the store in ``runs``, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (runs / "server.log").open("w") as log:
        command, environment = ui_command(runs, port), ui_environment()
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            for _ in range(240):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{ui_address(port)}/health", timeout=5).close()
                    break
                time.sleep(0.5)
            yield ui_address(port)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
