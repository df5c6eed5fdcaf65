"""One holder at a time, and none that is dead."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bkray.cluster.locks import HeldElsewhereError, held

HOLD = """
import pathlib, sys, time
from bkray.cluster.locks import held
with held(pathlib.Path(sys.argv[1]), "theirs"):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            yield other
        finally:
            other.kill()


def test_a_file_is_held_by_one_at_a_time_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path, "mine"):
        assert path.read_text() == "mine"
        with pytest.raises(HeldElsewhereError), held(path, "yours"):
            pass
        assert path.read_text() == "mine"
    assert not path.exists()


def test_the_kernel_frees_what_a_killed_process_held(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_by_another_process(path) as other:
        with pytest.raises(HeldElsewhereError), held(path):
            pass
        other.kill()
        with held(path, "mine", patience_seconds=30):
            assert path.read_text() == "mine"


def test_waiting_ends_when_it_is_not_wanted_any_more(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    answers = iter([True, True, False])
    with (
        held(path),
        pytest.raises(HeldElsewhereError),
        held(path, patience_seconds=600, wanted=lambda: next(answers)),
    ):
        pass


def test_of_many_who_wait_each_gets_it_alone(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "lock", [], []

    def work() -> None:
        for _ in range(5):
            with held(path, patience_seconds=60):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20
