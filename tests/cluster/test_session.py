"""How many trials run at once, and what a worker is told."""

import re
import sys
from pathlib import Path

import pytest
from servers import free_port

from bkray.cluster.crew import Crew
from bkray.cluster.session import (
    ACCELERATOR,
    SLOT,
    check_needs,
    cores,
    places,
    session,
    worker_environment,
)
from bkray.errors import ConfigError


@pytest.mark.parametrize(
    ("threads", "n_trials", "asked", "n_cores", "expected"),
    [
        (1, 10, None, 4, 4),
        (2, 10, None, 5, 2),
        (1, 3, None, 8, 3),
        (4, 10, None, 4, 1),
        (1, 10, 2, 4, 2),
        (2, 1, 2, 4, 1),
        (1, 0, None, 4, 1),
    ],
)
def test_trials_fill_the_cores_but_no_more(
    threads: int, n_trials: int, asked: int | None, n_cores: int, expected: int
) -> None:
    found = places(threads=threads, n_trials=n_trials, asked=asked, n_cores=n_cores)
    assert found == expected


@pytest.mark.parametrize(("threads", "asked"), [(1, 5), (2, 3), (5, None), (1, 0), (1, -1)])
def test_more_threads_than_cores_are_refused(threads: int, asked: int | None) -> None:
    with pytest.raises(ConfigError, match="concurrency"):
        places(threads=threads, n_trials=9, asked=asked, n_cores=4)


def test_workers_count_like_threads() -> None:
    assert places(threads=1, workers=2, n_trials=9, asked=None, n_cores=5) == 2
    with pytest.raises(ConfigError, match="concurrency=2 x workers=3 x threads=1 needs 6 CPU"):
        places(threads=1, workers=3, n_trials=9, asked=2, n_cores=4)


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        pytest.raises(ConfigError, match=f"nothing listens at address={address}.*leave --address"),
        session(address=address, threads=1),
    ):
        pass


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        ({"GPU": 2.0}, "takes 2 of the resource 'GPU', the cluster has 1: lower --gpus"),
        ({"GPU": 2.0}, "an autoscaler is to bring it, bring one node first: bkray cluster verify"),
        ({"memory": 2.0**40}, "lower --memory-per-worker"),
        ({"slot": 8.0}, "start every node with one per core"),
        ({f"{ACCELERATOR}H100": 0.001}, "accelerator-type=H100: it has A10G"),
    ],
)
def test_a_trial_that_no_cluster_holds_is_told_what_lacks(
    needs: dict[str, float], says: str
) -> None:
    present = {"CPU": 4.0, "GPU": 1.0, "memory": 2.0**30, f"{ACCELERATOR}A10G": 1.0, "slot": 4.0}
    check_needs(present, present)
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_needs(present, needs)


def test_a_crew_takes_what_each_of_its_workers_takes() -> None:
    crew = Crew(workers=2, threads=3, gpus=1.0, memory_bytes=2**30, accelerator_type="A10G")
    apart = {"CPU": 6.0, "GPU": 2.0, "memory": 2.0**31, f"{ACCELERATOR}A10G": 0.002}
    assert crew.needs(nested=False) == apart
    assert crew.needs(nested=True) == {**apart, SLOT: 6.0}
    assert Crew(workers=1, threads=1, gpus=0.0).resources == {"CPU": 1.0}


def test_there_is_at_least_one_core() -> None:
    assert cores() >= 1


def test_a_worker_gets_its_threads_and_finds_the_users_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    told = worker_environment(3)
    assert told["OMP_NUM_THREADS"] == told["NUMBA_NUM_THREADS"] == "3"
    paths = told["PYTHONPATH"].split(":")
    assert paths[0] == str(tmp_path)
    assert not any(path.startswith(sys.base_prefix) and "lib" in path for path in paths)
