"""A node of a Ray cluster that is lost costs its trial a try, not its end."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nodes
import psutil
import pyarrow.parquet as pq
import pytest
from intact import flaws
from storm import SMALL
from tiny import write_text
from victims import WORKER, Victim, is_a

pytestmark = pytest.mark.slow

N_TRIALS = 2


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

    def lose_the_one_that_trains(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{self._raylet_that_trains()}\n")
        self._process.stdin.flush()
        assert self._hear() == "lost"

    def _raylet_that_trains(self) -> int:
        """Return the process id of the node that started the worker of a trial."""
        deadline = time.monotonic() + 20.0
        raylets: set[int] = set()
        while len(raylets) != 1:  # a worker has its name only while it does something
            assert time.monotonic() < deadline, raylets
            ours = psutil.Process(self._process.pid).children(recursive=True)
            raylets = {process.ppid() for process in ours if is_a(WORKER, process)}
        return raylets.pop()

    def end(self) -> None:
        self._process.communicate(timeout=60)

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def ray_nodes() -> Iterator[RayNodes]:
    started = RayNodes()
    yield started
    started.end()


def test_a_trial_goes_on_at_another_node(ray_nodes: RayNodes, tmp_path: Path) -> None:
    out, text = tmp_path / "out", write_text(tmp_path / "text.txt", seed=0)
    words = ["sweep", SMALL, "--preset", "smoke", "--trials", str(N_TRIALS), "--out", str(out)]
    words += ["--scheduler", "none", "--concurrency", "1", "--address", ray_nodes.address]
    driver = Victim([*words, f"data.corpus={text}"], tmp_path, tmp_path / "log.txt")
    try:
        assert driver.reaches("evaluation", 2, out), (tmp_path / "log.txt").read_text()
        ray_nodes.lose_the_one_that_trains()
        assert driver.wait() == 0, (tmp_path / "log.txt").read_text()
    finally:
        driver.end()
    assert not any(flaws(out, n_planned=N_TRIALS, done={}))
    table = pq.read_table(out / "trials.parquet").to_pylist()
    assert [row["outcome"] for row in table] == ["ok"] * N_TRIALS
    (again,) = (row for row in table if row["attempt"] > 1)
    folder = out / "trials" / again["trial_id"]
    assert len(json.loads((folder / "attempt.json").read_text())["failures"]) == 1
    went_on = pq.read_table(folder / "events" / f"{again['attempt']}-00000.parquet")
    assert min(went_on["step"].to_pylist()) > 16, "it began again"
