"""What broke first: the steps since the last good state, repeated under a magnifying glass."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bkray.stability import Verdict
from bkray.train.checkpoint import State
from bkray.train.findings import FOLDER, Diagnosis, Record, Remembered, write_diagnosis
from bkray.train.forensics import write_record
from bkray.train.growth import BlockStep, growth, magnitudes
from bkray.train.locate import Found, located
from bkray.train.probe import Fault, Spot
from bkray.train.repeat import Repeated, probe_validation, repeat, restore
from bkray.train.run import Run


def write_forensics(run: Run, verdict: Verdict) -> list[str]:
    """Write the folder ``forensics/`` of a trial that diverged, where it has a folder.

    The whole team calls this; the trial cannot go on afterwards. Whatever goes wrong is returned,
    for the user: it does not change that the trial diverged.
    """
    if run.folder is None or run.memory.snapshot is None:
        return []
    messages: list[str] = []
    record = Record(
        verdict=verdict,
        snapshot_step=run.memory.snapshot_step,
        split=run.split,
        blocks=run.blocks.names,
        steps=run.memory.history,
    )
    try:
        _write_record(run, run.folder / FOLDER, record)
    except Exception as error:  # the disk may be full; the diagnosis is told all the same
        messages.append(f"forensics could not be kept: {type(error).__name__}: {error}")
    try:
        diagnosis = diagnose(run, run.memory.snapshot, record)
        if run.team.leads:
            write_diagnosis(run.folder / FOLDER, diagnosis)
    except Exception as error:  # the user's model may do anything when it runs again
        messages.append(f"the divergence was not explained: {type(error).__name__}: {error}")
    return messages


def diagnose(run: Run, snapshot: State, record: Record) -> Diagnosis:
    """Return what broke first when the steps of ``record`` are repeated from ``snapshot``.

    The whole team calls this and gets one answer. The snapshot is used up.
    """
    restore(run, snapshot)
    steps = record.to_repeat
    own = repeat(run, steps)
    on_validation = probe_validation(run) if record.verdict.rule == "validation" else []
    team = run.team.gather(_Seen(own, on_validation))
    blocks = _blocks(record, steps, [seen.steps for seen in team])
    found = _first_fault(record, team)
    plain = Diagnosis(
        kind="vanished",
        step=steps[-1].step if steps else record.verdict.step,
        blocks=magnitudes(blocks) if blocks else {},
        n_repeated=len(steps),
        largest_loss_difference=_largest_difference(steps, own),
    )
    if record.is_finite:
        before = snapshot["progress"]["health"]["last_loss_nats"]
        grown = growth(blocks, before) if blocks else None
        return replace(plain, kind="growth", growth=grown)
    if found is not None:
        return located(run, steps, plain, found)
    return _overflow(plain, blocks[-1] if blocks else None, own)


class _Seen(NamedTuple):
    """What one process saw."""

    steps: list[Repeated]
    on_validation: list[Fault]


def _write_record(run: Run, folder: Path, record: Record) -> None:
    snapshot = run.memory.snapshot
    assert snapshot is not None
    rng = run.team.gather(snapshot["rng"][0])
    if run.team.leads:
        write_record(folder, record, snapshot, rng)


def _first_fault(record: Record, team: Sequence[_Seen]) -> Found | None:
    """Return the first fault of the step that broke; a forward pass comes before a backward one.

    What is infinite in every step is meant to be, as a mask of scores is.
    """
    numbers = [one.step for one in record.to_repeat]
    searched = list(range(len(numbers)))
    if record.verdict.rule == "validation":
        found = [
            Found(
                record.verdict.step, rank, seen.on_validation[0], _spot(seen.on_validation), True
            )
            for rank, seen in enumerate(team)
            if seen.on_validation
        ]
        return min(found, key=lambda one: one.fault.part, default=None)
    if not record.is_hidden:
        searched = searched[-1:]
    for i in searched:
        found = []
        for rank, seen in enumerate(team):
            usual = _infinite_in_all(seen.steps[:i])
            faults = [one for one in seen.steps[i].faults if (one.module, one.tensor) not in usual]
            if faults:
                found.append(Found(numbers[i], rank, faults[0], _spot(faults), False))
        if found:
            return min(found, key=lambda one: (one.fault.during != "forward", one.fault.part))
    return None


def _infinite_in_all(steps: Sequence[Repeated]) -> set[tuple[str, str]]:
    each = [
        {(fault.module, fault.tensor) for fault in one.faults if not fault.n_nan} for one in steps
    ]
    return set.intersection(*each) if each else set()


def _spot(faults: Sequence[Fault]) -> Spot | None:
    """Return the token of the first tensor that tells the tokens apart; of an expert's the sum."""
    first = faults[0]
    same = (one for one in faults if (one.during, one.part) == (first.during, first.part))
    return next((one.spot for one in same if one.has_sites), None)


def _blocks(
    record: Record, steps: Sequence[Remembered], ranks: Sequence[Sequence[Repeated]]
) -> list[BlockStep]:
    return [
        BlockStep(
            one.step,
            ranks[0][i].loss_nats,
            _largest([seen[i].activations for seen in ranks], record.blocks),
            dict(zip(record.blocks, ranks[0][i].block_norms, strict=True)),
        )
        for i, one in enumerate(steps)
    ]


def _largest(activations: Sequence[dict[str, float]], blocks: Sequence[str]) -> dict[str, float]:
    """Return the largest over the ranks, in the order of the blocks; NaN wins."""
    seen = {name: [one[name] for one in activations if name in one] for name in blocks}
    return {
        name: math.nan if any(map(math.isnan, values)) else max(values)
        for name, values in seen.items()
        if values
    }


def _largest_difference(steps: Sequence[Remembered], repeated: Sequence[Repeated]) -> float | None:
    largest = 0.0
    for then, now in zip(steps, repeated, strict=True):
        if math.isfinite(then.loss_nats) != math.isfinite(now.loss_nats):
            return None
        if math.isfinite(now.loss_nats):
            largest = max(largest, abs(then.loss_nats - now.loss_nats))
    return largest


def _overflow(plain: Diagnosis, last: BlockStep | None, own: Sequence[Repeated]) -> Diagnosis:
    """Name the loss or the norm that is not finite though every tensor is, if it came again."""
    if last is None or not own:
        return plain
    if not math.isfinite(own[-1].loss_nats):
        return replace(plain, kind="overflow", during="forward", module="loss", tensor="loss")
    if not math.isfinite(own[-1].grad_norm):
        largest = max(last.grad_norms, key=lambda name: last.grad_norms[name])
        return replace(
            plain, kind="overflow", during="backward", module=largest, tensor="gradient norm"
        )
    return plain
