"""Servers on this machine, for tests that need one."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from bkray.sinks.mlflow import (
    ui_address,
    ui_command,
    ui_environment,
)


def wait_until(so: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(runs_dir: Path, log: Path) -> Iterator[str]:
    """The address of ``ui_command``, once it answers; the server is gone at the end."""
    port = free_port()
    with log.open("w") as out:
        server = subprocess.Popen(
            ui_command(runs_dir, port),
            env=ui_environment(),
            stdout=out,
            stderr=out,
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        wait_until(lambda: answers(ui_address(port) + "/health"), seconds=90)
        yield ui_address(port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
