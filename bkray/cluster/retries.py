"""Whether a trial that broke is tried again: one policy for sweeps and for ``bkray train``."""

import re
from pathlib import Path

from bkray.cluster.preemption import PREEMPTED
from bkray.config import TrainConfig
from bkray.events import TrialEnded, Warned
from bkray.train import attempts
from bkray.train.attempts import Attempt, Failure

MORE_TRIES = 2
"""After the first attempt that failed."""
BROKEN = ("failed", "oom")
"""Outcomes that another attempt may mend."""
WORKER_DIED = "the worker died"
WORKER_FAILED = "a worker failed"
"""How the reasons of deaths begin: unlike an exception, they say nothing when they repeat."""


_GOES_ON = "from its checkpoint"


def gives_up(attempt: Attempt) -> bool:
    """Return whether a trial that broke like this is not tried again.

    Memory that ran out is answered once, by splitting the micro-batches. Anything else has
    ``MORE_TRIES``, unless the same exception came twice at the same step.
    """
    if not attempt.failures:
        return False
    latest = attempt.failures[-1]
    alike = [failure for failure in attempt.failures if failure.outcome == latest.outcome]
    if latest.outcome == "oom":
        return len(alike) >= attempt.split
    died = latest.reason.startswith((WORKER_DIED, WORKER_FAILED))
    return len(alike) > MORE_TRIES or (not died and latest in alike[:-1])


def tries_again(folder: Path, ended: TrialEnded, plan: TrainConfig, workers: int = 1) -> str:
    """Note how a trial broke; return what is done about it, empty if nothing is.

    Args:
        folder: of the trial.
        plan: says whether its micro-batches can be split once more among its ``workers``.
    """
    if ended.reason == PREEMPTED:
        return _GOES_ON
    if ended.outcome not in BROKEN:
        return ""
    split = attempts.last(folder).split
    halves = plan.batch_size % (plan.accumulation * workers * 2 * split) == 0
    splits = ended.outcome == "oom" and split == 1 and halves
    failure = Failure(ended.outcome, ended.step, ended.reason)
    attempt = attempts.note(folder, failure, splits=splits)
    if gives_up(attempt):
        return ""
    return "with half the micro-batch" if ended.outcome == "oom" else _GOES_ON


def broke(ended: TrialEnded, remedy: str) -> Warned:
    """Return what views are told in place of an end that is none."""
    return Warned(
        step=ended.step, message=f"{ended.outcome}: {ended.reason}; trying again {remedy}"
    )


def bytes_asked(error: BaseException) -> int | None:
    """Return how much memory was asked for in vain, as far as the exception says.

    Known are torch on a GPU (``Tried to allocate 2.00 GiB``), torch on a CPU (``you tried to
    allocate 8589934592 bytes``) and NumPy (``Unable to allocate 74.5 GiB``).
    """
    found = _ASKED.search(str(error))
    return None if found is None else round(float(found[1]) * _UNITS[found[2].lower()])


_ASKED = re.compile(
    r"(?:tried|unable) to allocate (\d+(?:\.\d*)?) ?(bytes|[KMGTPE]iB)", re.IGNORECASE
)
_UNITS = {"bytes": 1} | {f"{letter}ib": 2 ** (10 * n) for n, letter in enumerate("kmgtpe", 1)}
