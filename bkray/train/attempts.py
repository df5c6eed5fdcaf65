"""How often a trial was started in its folder, and how small its micro-batches had to become."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from bkray.atomic import write_json

_NAME = "attempt.json"


class Failure(NamedTuple):
    """How an attempt broke: ``failed`` or ``oom``, after which step, and one line."""

    outcome: str
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """``number`` counts starts from 1; ``split`` is how many each micro-batch is cut into.

    ``failures`` are those of all attempts so far.
    """

    number: int = 0
    split: int = 1
    failures: tuple[Failure, ...] = ()


def last(folder: Path) -> Attempt:
    """Return the latest attempt that began in a trial's folder, number 0 if none did."""
    path = folder / _NAME
    if not path.exists():
        return Attempt()
    read = json.loads(path.read_text())
    failures = tuple(Failure(*said) for said in read.get("failures", ()))
    return Attempt(**{**read, "failures": failures})


def begin(folder: Path | None) -> Attempt:
    """Count one attempt more and return it; nothing is counted without a folder."""
    if folder is None:
        return Attempt(number=1)
    before = last(folder)
    return _write(folder, replace(before, number=before.number + 1))


def note(folder: Path, failure: Failure, *, splits: bool = False) -> Attempt:
    """Write down how the last attempt broke, and whether the next one ``splits`` further."""
    before = last(folder)
    split = 2 * before.split if splits else before.split
    return _write(folder, replace(before, split=split, failures=(*before.failures, failure)))


def _write(folder: Path, attempt: Attempt) -> Attempt:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _NAME, asdict(attempt))
    return attempt
