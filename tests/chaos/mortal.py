"""A sweep that is killed right before its n-th change to the disk, for one n after the other.

Each run is a forked child, so that nothing is imported twice; this process itself only forks.
``python tests/chaos/mortal.py FOLDER STRIDE`` prints a line of JSON for each of them: before which
changes the sweep died, and what was wrong once it was done, as ``intact.Flaws``.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  # which every first optimizer would import
from intact import Done, done_trials, flaws
from small_sweep import SWEEP
from sqlalchemy import Engine, event
from tiny import write_text

from bkray.cluster.tuner import SweepOptions, planned, run_sweep
from bkray.report.tables import collect

N_TRIALS = 4
_SHORT = {"train.steps": 24, "train.eval_every": 8, "train.checkpoint_every": 8}
_CHANGES = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir")


class Fuse:
    """Counts the changes to files below ``folder``, and kills this process before the n-th."""

    def __init__(self, folder: Path, n: int) -> None:
        self._folder = str(folder)
        self._n = n
        self.n_changes = 0
        sys.addaudithook(self._hear)
        event.listen(Engine, "commit", lambda connection: self._tick())

    def _hear(self, what: str, args: tuple[Any, ...]) -> None:
        if what in _CHANGES and str(args[0]).startswith(self._folder):
            self._tick()

    def _tick(self) -> None:
        self.n_changes += 1
        if self.n_changes == self._n:
            os.kill(os.getpid(), signal.SIGKILL)


def run(out: Path, *, dies_at: int = 0) -> int:
    """Run or resume the sweep in ``out``; return how many changes it made."""
    fuse = Fuse(out, dies_at)
    run_sweep(SWEEP, options(out), resume=(out / "sweep.json").exists())
    return fuse.n_changes


def options(out: Path) -> SweepOptions:
    return SweepOptions(
        out=out,
        preset="smoke",
        trials=N_TRIALS,
        overrides={**_SHORT, "data.corpus": str(out.parent / "text.txt")},
        local=True,
    )


def in_child(work: Callable[[], Any], answer: Path) -> Any:
    """Do ``work`` in a forked child; return what it returned, ``None`` if it was killed."""
    answer.unlink(missing_ok=True)
    if (pid := os.fork()) == 0:
        status = 1
        try:
            answer.write_text(json.dumps(work()))
            status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the sweep broke: see above")
    return json.loads(answer.read_text()) if answer.exists() else None


def survival(out: Path, whole: Path, *deaths: int) -> dict[str, Any]:
    """Run the sweep, let it die before each of these changes, resume it to its end; return where
    it died (one may come too late) and what is wrong then."""
    done: dict[str, Done] = {}
    at = []
    for dies_at in (*deaths, 0):
        if in_child(partial(run, out, dies_at=dies_at), out.with_suffix(".json")) is None:
            at.append(dies_at)
        done |= done_trials(out)
    look = partial(_look, out, whole, done)
    return {"at": at, **in_child(look, out.with_suffix(".json"))}


def _look(out: Path, whole: Path, done: dict[str, Done]) -> dict[str, list[str]]:
    assert len(collect(whole)) == N_TRIALS
    return flaws(out, n_planned=N_TRIALS, done=done, whole=whole)._asdict()


def main(base: Path, stride: int) -> None:
    """Kill the sweep before every ``stride``-th change, and again soon after it was resumed."""
    write_text(base / "text.txt", seed=0)
    whole = base / "whole"
    planned(SWEEP, options(whole))  # imports what every child would have to
    n_changes = in_child(partial(run, whole), base / "n_changes.json")
    for n in range(1, n_changes + 1, stride):
        print(json.dumps(survival(base / str(n), whole, n, 12 + n % 24)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
