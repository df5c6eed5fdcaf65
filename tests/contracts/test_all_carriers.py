"""Every carrier brings the same events, writes the same files and leaves nothing in Ray."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from ray_state import left_behind, pids_of
from standin import DIES, DIVERGES, FAILS, OUT_OF_MEMORY, carry, point, sweep_of
from views import Remembering

from bkray.events import EvalDone, Event, TrialStarted, Warned
from bkray.sinks.parquet import read_rows
from bkray.sinks.sink import InMemory
from bkray.sweep import Sweep

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

CARRIERS: dict[str, dict[str, Any]] = {
    "tune": {"concurrency": 1},
    "train": {"workers": 2},
}
EVERY_END = Counter(failed=1, oom=1, diverged=1, ok=1, pruned=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Remembering, Path]:
    """A sweep of trials of every end in this process: what the others are held to."""
    good_worse = [point(0.25), point(0.25, 0.1)]
    bad = [point(dropout) for dropout in (FAILS, OUT_OF_MEMORY, DIVERGES)]
    sweep = sweep_of(*good_worse, *bad, n_trials=5)
    view, out = Remembering(), tmp_path_factory.mktemp("plain")
    ended = carry(sweep, out, view, local=True, scheduler="asha")
    assert ended.outcomes == EVERY_END
    return sweep, view, out


@pytest.mark.parametrize("carrier", CARRIERS)
def test_views_and_files_are_those_of_the_plain_carrier(
    carrier: str, plain: tuple[Sweep, Remembering, Path], tmp_path: Path
) -> None:
    sweep, expected, out = plain
    view = Remembering()
    ended = carry(sweep, tmp_path, view, scheduler="asha", **CARRIERS[carrier])
    assert repr(view.events) == repr(expected.events)  # NaN is not equal to itself
    assert ended.outcomes == EVERY_END
    for trial_id, _ in expected.trials:
        here, there = tmp_path / "trials" / trial_id, out / "trials" / trial_id
        assert repr(read_rows(here).to_pylist()) == repr(read_rows(there).to_pylist())
        assert (here / "outcome.json").read_text() == (there / "outcome.json").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["study.db", "sweep.json", "trials"]
    assert left_behind() == []


def test_a_worker_that_dies_costs_its_trial_alone(tmp_path: Path) -> None:
    view = Remembering()
    ended = carry(sweep_of(point(DIES), n_trials=2), tmp_path, view, ray_train=True, concurrency=1)
    assert ended.outcomes == Counter(failed=1, ok=1)
    outcome, reason = view.endings[0]
    assert outcome == "failed"
    assert reason.startswith("a worker failed: ")
    assert "ActorDiedError" in reason
    trial_id, sink = view.trials[0]
    folder = tmp_path / "trials" / trial_id
    assert json.loads((folder / "outcome.json").read_text())["stop_reason"] == reason
    assert [type(event).__name__ for event in sink.events].count("TrialStarted") == 1
    assert (folder / "error.txt").read_text()
    assert left_behind() == []


def test_a_session_of_our_own_refuses_who_has_no_token() -> None:
    import ray

    dashboard = ray.init(ignore_reinit_error=True).address_info["webui_url"]
    with pytest.raises(HTTPError) as refused:
        urlopen(f"http://{dashboard}/api/jobs/", timeout=20)
    refused.value.close()
    assert refused.value.code == 401


@contextmanager
def another_session() -> Iterator[None]:
    """Ray of somebody else on this machine: asking for "the" session is ambiguous then."""
    program = (
        "import ray; ray.init('local', num_cpus=1, include_dashboard=False, log_to_driver=False);"
        "print('up', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        yield
    finally:
        other.communicate("\n", timeout=60)


def test_an_actor_that_is_killed_costs_an_attempt_and_leaves_no_worker(tmp_path: Path) -> None:
    class Killing(Remembering):
        def trial(self, trial_id: str) -> InMemory:
            super().trial(trial_id)
            return self  # type: ignore[return-value]

        def __call__(self, event: Event) -> None:
            self.trials[-1][1](event)
            if isinstance(event, EvalDone) and len(self.trials) == 1:
                for pid in pids_of("Trainable"):
                    os.kill(pid, signal.SIGKILL)

    view = Killing()
    with another_session():
        ended = carry(sweep_of(n_trials=1), tmp_path, view, workers=2)
    assert ended.outcomes == Counter(ok=1)
    (died, *_), (again, *_) = view.trials[0][1].events[-1:], view.trials[1][1].events
    assert isinstance(died, Warned)
    assert "ActorDiedError" in died.message
    assert isinstance(again, TrialStarted)
    assert again.attempt == 3  # the second one is the obituary of the first
    assert left_behind() == []
