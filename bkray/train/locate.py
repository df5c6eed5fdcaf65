"""Where in its batch a fault is: part and row become one row of text."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from bkray.rungs import rung_at
from bkray.train.findings import Diagnosis, Remembered, Site
from bkray.train.probe import Fault, Spot
from bkray.train.run import Run, validation_at

TEXT_BEFORE, TEXT_AFTER = 24, 8
"""Tokens of text shown around the one that was hit."""


class Found(NamedTuple):
    """The first fault of its step and pass."""

    step: int
    fault: Fault
    spot: Spot | None
    is_validation: bool


def located(run: Run, steps: Sequence[Remembered], plain: Diagnosis, found: Found) -> Diagnosis:
    fault = found.fault
    taken = next((one for one in steps if one.step == found.step), None)
    in_text = found.spot is not None and run.task.vocabulary is not None
    row = _row(run, found) if in_text else None
    batch: dict[str, int] | None = None
    if taken is not None and not found.is_validation:
        batch = dict(taken.batch)
        if row is not None:
            batch["first_token"] = taken.starts[row]
    return replace(
        plain,
        kind="tensor",
        step=found.step,
        during="validation" if found.is_validation else fault.during,
        module=fault.module,
        tensor=fault.tensor,
        n_nan=fault.n_nan,
        n_inf=fault.n_inf,
        shape=fault.shape,
        site=None if found.spot is None or row is None else _site(run, found.spot, row),
        batch=batch,
    )


def _row(run: Run, found: Found) -> int:
    """Return the row in the whole batch, or among the validation windows."""
    assert found.spot is not None
    part, own = found.fault.part, found.spot.row
    if found.is_validation:
        return part * validation_at(run).rows + own
    return part * (rung_at(run.rungs, found.step).rows // run.split) + own


def _site(run: Run, spot: Spot, row: int) -> Site:
    vocabulary = run.task.vocabulary
    assert vocabulary is not None, "only tokens are at a spot"

    def text(begin: int, end: int) -> str:
        tokens = spot.tokens[max(0, begin - spot.first) : max(0, end - spot.first)]
        said = vocabulary.decode(np.array(tokens, dtype=np.int64))
        decoded = said.decode("utf-8", errors="replace")
        return "".join(_printable(character) for character in decoded)

    at = spot.position
    return Site(
        row=row,
        position=at,
        n_tokens=spot.n_tokens,
        before=text(at - TEXT_BEFORE, at),
        token=text(at, at + 1),
        after=text(at + 1, at + 1 + TEXT_AFTER),
    )


def _printable(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]
