"""Nodes of a Ray cluster come and go: no trial is lost, and what was trained stays trained.

One cluster for all: each test leaves two nodes of one core for the next.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nodes
import psutil
import pyarrow.parquet as pq
import pytest
from intact import flaws
from storm import SMALL
from tiny import write_text
from victims import WORKER, Victim, is_a

from bkray.sinks.parquet import read_rows

pytestmark = pytest.mark.slow

EXACT = "precision=float64"
"""In float32 the order of a sum is 0.1 nats after 288 steps at this learning rate."""
WINDOW = 16
"""Steps between two looks at whether a trial is to end."""


class RayNodes:
    """``nodes.py``, from outside."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, nodes.__file__],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._hear()

    def lose(self, raylet: int) -> None:
        assert self._say(f"lose {raylet}") == "lost"

    def drain(self, raylet: int) -> None:
        assert self._say(f"drain {raylet}") == "drained"

    def add(self) -> int:
        """Return the process id of the new node."""
        return int(self._say("add"))

    def trainers(self, n_nodes: int = 1) -> dict[int, int]:
        """Return the worker that trains at each node, by the node's process id, once so many do.

        A worker has its name only while it does something.
        """
        found: dict[int, int] = {}

        def enough() -> bool:
            ours = psutil.Process(self._process.pid).children(recursive=True)
            found.clear()
            found.update({p.ppid(): p.pid for p in ours if is_a(WORKER, p)})
            return len(found) == n_nodes

        until(enough, lambda: f"{found}")
        return found

    def end(self) -> None:
        self._process.communicate(timeout=60)

    def _say(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def until(so: Callable[[], bool], what: Callable[[], str], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator[RayNodes]:
    started = RayNodes()
    yield started
    started.end()


class Swept:
    """A sweep on the nodes, and what it leaves."""

    def __init__(self, at: RayNodes, tmp_path: Path, n_trials: int, *more: str) -> None:
        self.out, self._log = tmp_path / "out", tmp_path / "log.txt"
        self.n_trials = n_trials
        text = write_text(tmp_path / "text.txt", seed=0)
        words = ["sweep", SMALL, "--preset", "smoke", "--trials", str(n_trials)]
        words += ["--out", str(self.out), "--scheduler", "none", "--address", at.address, *more]
        self.victim = Victim([*words, f"data.corpus={text}"], tmp_path, self._log)

    def reaches(self, moment: str, n_changes: int) -> None:
        assert self.victim.reaches(moment, n_changes, self.out), self._log.read_text()

    def table(self) -> list[dict[str, Any]]:
        """Wait for the end, at which nothing may be missing; return a row per trial."""
        assert self.victim.wait() == 0, self._log.read_text()
        assert not any(flaws(self.out, n_planned=self.n_trials, done={}))
        rows: list[dict[str, Any]] = pq.read_table(self.out / "trials.parquet").to_pylist()
        assert [row["outcome"] for row in rows] == ["ok"] * self.n_trials
        return rows

    def failures(self, trial_id: str) -> Sequence[Any]:
        said = json.loads((self.out / "trials" / trial_id / "attempt.json").read_text())
        return list(said["failures"])

    def steps_of(self, row: dict[str, Any], attempt: int) -> list[int]:
        """Return the steps that an attempt trained, as far as it could write them down."""
        parts = (self.out / "trials" / row["trial_id"] / "events").glob(f"{attempt}-*.parquet")
        tables = [pq.read_table(part).to_pylist() for part in sorted(parts)]
        named = [r for table in tables for r in table if r["name"] == "train/loss_nats"]
        return sorted(r["step"] for r in named)


@pytest.fixture
def sweep(ray_nodes: RayNodes, tmp_path: Path) -> Iterator[Callable[..., Swept]]:
    """Call it with a number of trials and further words; the sweep is gone at the end."""
    begun: list[Swept] = []

    def begin(n_trials: int, *more: str) -> Swept:
        begun.append(Swept(ray_nodes, tmp_path, n_trials, *more))
        return begun[-1]

    yield begin
    for one in begun:
        one.victim.end()


def test_a_lost_node_costs_a_try_and_a_new_one_is_used(
    ray_nodes: RayNodes, sweep: Callable[..., Swept]
) -> None:
    swept = sweep(4, "--concurrency", "2")
    swept.reaches("evaluation", 2)
    lost, _ = ray_nodes.trainers(2)
    ray_nodes.lose(lost)
    new = ray_nodes.add()
    until(lambda: new in ray_nodes.trainers(2), lambda: "the new node does nothing")
    again = [row for row in swept.table() if row["attempt"] > 1]
    assert len(again) == 1
    assert len(swept.failures(again[0]["trial_id"])) == 1


@pytest.mark.parametrize("how", ["sigterm", "drained"])
def test_a_trial_that_is_told_to_leave_goes_on_where_it_was(
    how: str, ray_nodes: RayNodes, sweep: Callable[..., Swept]
) -> None:
    steps = {"sigterm": 288, "drained": 1440}[how]  # Ray's mark is looked for every few seconds
    lengths = (f"train.{name}={steps}" for name in ("steps", "checkpoint_every", "eval_every"))
    swept = sweep(1, *lengths)
    swept.reaches("train", 1)
    ((raylet, trainer),) = ray_nodes.trainers().items()
    if how == "drained":
        ray_nodes.drain(raylet)
    else:
        os.kill(trainer, signal.SIGTERM)
    (row,) = swept.table()
    assert row["attempt"] == 2
    assert not swept.failures(row["trial_id"]), "a notice is no failure"
    before, after = swept.steps_of(row, 1), swept.steps_of(row, 2)
    assert before, "it wrote nothing down before it left"
    assert after[0] > 1, "it began again"
    n_redone = before[-1] - after[0] + 1
    assert 0 <= n_redone <= WINDOW
    if how == "drained":
        ray_nodes.lose(raylet)
        ray_nodes.add()


def test_two_workers_at_two_nodes_train_as_one_though_one_is_told_to_leave(
    ray_nodes: RayNodes, sweep: Callable[..., Swept], tmp_path: Path
) -> None:
    swept = sweep(1, "--workers", "2", EXACT)
    youngest = max(ray_nodes.trainers(2).values())  # not the actor that waits for them
    swept.reaches("evaluation", 1)
    os.kill(youngest, signal.SIGTERM)
    (row,) = swept.table()
    assert row["attempt"] == 2
    assert not swept.failures(row["trial_id"])
    whole = tmp_path / "alone"
    text = tmp_path / "text.txt"
    words = ["sweep", SMALL, "--preset", "smoke", "--trials", "1", "--scheduler", "none"]
    words += ["--out", str(whole), "--local", EXACT, f"data.corpus={text}"]
    alone = Victim(words, tmp_path, tmp_path / "alone.txt")
    assert alone.wait() == 0
    ours, theirs = (
        {
            (r["step"], r["name"]): r["value"]
            for r in read_rows(out / "trials" / row["trial_id"]).to_pylist()
            if r["name"] in ("train/loss_nats", "val/loss_nats")
        }
        for out in (swept.out, whole)
    )
    assert len(ours) == len(theirs) > 288
    assert max(abs(ours[key] - theirs[key]) for key in theirs) < 1e-4
