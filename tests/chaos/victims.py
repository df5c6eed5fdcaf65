"""A sweep in a process of its own, and the death of any of its processes at a chosen moment."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

DRIVER, WORKER, NODE = "driver", "worker", "node"
_NAMES = {WORKER: ("ray::ResourceTrainable", "ray::RayTrainWorker"), NODE: ("/raylet",)}
AT_THE_END = "report"
_FILES = {
    "train": "trials/*/config.json",
    "checkpoint": "trials/*/checkpoints/*",
    "evaluation": "trials/*/events/*",
    "outcome": "trials/*/outcome.json*",
    "ledger": "study.db*",
    AT_THE_END: "*.parquet*",
}
"""What changes on the disk around a moment."""
MOMENTS = ("start", *(moment for moment in _FILES if moment != AT_THE_END))
WHILE_TRAINING = ("checkpoint", "evaluation")
_LAG_SECONDS = {"start": 8.0, "train": 0.5, AT_THE_END: 0.5}
_SHORT_LAG_SECONDS = 0.03
"""How long after its moment a kill comes, at most."""
_POLL_SECONDS = 0.01
_WAIT_SECONDS = 600.0
_LEAVE_SECONDS = 30.0


class Kill(NamedTuple):
    """Who is killed, after how many changes of the files that tell the moment."""

    who: str
    moment: str
    n_changes: int


class Victim:
    """One ``bkray`` process and all its children; standard output and error go to ``log``."""

    def __init__(self, words: Sequence[str], cwd: Path, log: Path) -> None:
        with log.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bkray.cli", *words],
                cwd=cwd,
                env={**os.environ, "RAY_AUTH_MODE": "disabled"},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self._family = {psutil.Process(self.process.pid)}

    def suffer(self, kill: Kill, out: Path, chance: random.Random) -> bool:
        """Kill when its moment has come; return false if the process ended before that."""
        if not self.reaches(kill.moment, kill.n_changes, out):
            return False
        time.sleep(chance.uniform(0.0, _LAG_SECONDS.get(kill.moment, _SHORT_LAG_SECONDS)))
        while self.process.poll() is None:
            found = sorted((p for p in self.family() if self._plays(kill.who, p)), key=_pid)
            with suppress(psutil.NoSuchProcess, IndexError):  # the next one is about to come
                chance.choice(found).kill()
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def reaches(self, moment: str, n_changes: int, out: Path) -> bool:
        """Wait for so many changes; return false if the process ends before, or is too slow."""
        deadline = time.monotonic() + _WAIT_SECONDS
        before, n_looks = _look(out, moment), 0
        while n_changes > 0 and moment in _FILES:
            if self.process.poll() is not None or time.monotonic() > deadline:
                return False
            if n_looks % 100 == 0:
                self.family()
            time.sleep(_POLL_SECONDS)
            now = _look(out, moment)
            n_changes -= now != before
            before, n_looks = now, n_looks + 1
        return True

    def wait(self, seconds: float = _WAIT_SECONDS) -> int:
        """Return the exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after so long; it is killed.
        """
        try:
            while self.process.poll() is None and (seconds := seconds - 0.2) > 0:
                self.family()
                time.sleep(0.2)
            return self.process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            self.end()
            raise

    def end(self) -> None:
        """Kill whatever is left of the family."""
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def family(self) -> set[psutil.Process]:
        """Return the process and its descendants that live, those of dead parents as well."""
        everybody = list(psutil.process_iter())
        parents = {process.pid for process in self._family if _lives(process)}
        while born := {p for p in everybody if p not in self._family and _parent(p) in parents}:
            self._family |= born
            parents |= {process.pid for process in born}
        return {process for process in self._family if _lives(process)}

    def _plays(self, who: str, process: psutil.Process) -> bool:
        return process.pid == self.process.pid if who == DRIVER else is_a(who, process)

    def orphans(self) -> list[str]:
        """Return what still lives long after the process has ended."""
        deadline = time.monotonic() + _LEAVE_SECONDS
        while (left := self.family()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [_command(process) for process in left]


def is_a(who: str, process: psutil.Process) -> bool:
    """Return whether a process is one of those that carry a trial, or a node, by its name."""
    command = _command(process)
    return command.startswith(_NAMES[who]) or command.endswith(_NAMES[who])


def _look(out: Path, moment: str) -> frozenset[tuple[str, int]]:
    """Return the files that tell a moment, and when each was written."""
    seen = set()
    for path in out.glob(_FILES.get(moment, "")) if moment in _FILES else ():
        with suppress(FileNotFoundError):
            seen.add((str(path), path.stat().st_mtime_ns))
    return frozenset(seen)


def _pid(process: psutil.Process) -> int:
    return int(process.pid)


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.NoSuchProcess:
        return 0


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return ""
