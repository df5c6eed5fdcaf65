"""What broke first: the steps since the last good state, repeated under a magnifying glass."""

import math
from collections.abc import Sequence
from dataclasses import replace

from bkray.stability import Verdict
from bkray.train.checkpoint import State
from bkray.train.findings import (
    DIAGNOSIS,
    FOLDER,
    Diagnosis,
    Record,
    Remembered,
    write_diagnosis,
)
from bkray.train.forensics import write_record
from bkray.train.growth import BlockStep, growth, magnitudes
from bkray.train.locate import Found, located
from bkray.train.probe import Fault, Spot
from bkray.train.repeat import (
    Repeated,
    Tensors,
    harmless,
    probe_validation,
    repeat,
    restore,
)
from bkray.train.run import Run
from bkray.train.team import ALONE
from bkray.train.turns import taking_turns


def write_forensics(run: Run, verdict: Verdict) -> list[str]:
    """Write the folder ``forensics/`` of a trial that diverged, where it has a folder.

    The whole team calls this and its leading process repeats the steps, with everybody's rows; the
    trial cannot go on afterwards. Whatever goes wrong is returned, for the user: it does not
    change that the trial diverged.
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
    snapshot = {**run.memory.snapshot, "rng": run.team.gather(run.memory.snapshot["rng"][0])}
    if not run.team.leads:  # alone no process can keep the others waiting, whatever happens to it
        return []
    try:
        (run.folder / FOLDER / DIAGNOSIS).unlink(missing_ok=True)
        write_record(run.folder / FOLDER, record, snapshot)
    except Exception as error:  # the disk may be full; the diagnosis is told all the same
        messages.append(f"forensics could not be kept: {type(error).__name__}: {error}")
    try:
        alone = replace(run, team=ALONE, trained=run.model, split=run.split * run.team.size)
        with taking_turns(alone, snapshot["rng"]):
            write_diagnosis(run.folder / FOLDER, diagnose(alone, snapshot, record))
    except Exception as error:  # the user's model may do anything when it runs again
        messages.append(f"the divergence was not explained: {type(error).__name__}: {error}")
    return messages


def diagnose(run: Run, snapshot: State, record: Record) -> Diagnosis:
    """Return what broke first when the steps of ``record`` are repeated from ``snapshot``.

    ``run`` is trained by this process alone. The snapshot is used up.
    """
    restore(run, snapshot)
    steps = record.to_repeat
    on_validation = record.verdict.rule == "validation"
    usual = harmless(run, next(run.batches) if on_validation else run.validation)
    own = repeat(run, steps)
    blocks = _blocks(record, steps, own)
    found = (
        _fault_of_validation(record, run, usual)
        if on_validation
        else _first_fault(record, own, usual)
    )
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


def _fault_of_validation(record: Record, run: Run, usual: Tensors) -> Found | None:
    faults = [one for one in probe_validation(run) if (one.module, one.tensor) not in usual]
    return Found(record.verdict.step, faults[0], _spot(faults), True) if faults else None


def _first_fault(record: Record, repeated: Sequence[Repeated], usual: Tensors) -> Found | None:
    """Return the first fault of the step that broke; forward passes come before backward ones."""
    searched = list(zip(record.to_repeat, repeated, strict=True))
    for one, seen in searched if record.is_hidden else searched[-1:]:
        faults = [fault for fault in seen.faults if (fault.module, fault.tensor) not in usual]
        if faults:
            return Found(one.step, faults[0], _spot(faults), False)
    return None


def _spot(faults: Sequence[Fault]) -> Spot | None:
    """Return the token of the first tensor that tells the tokens apart; of an expert's the sum."""
    first = faults[0]
    same = (one for one in faults if (one.during, one.part) == (first.during, first.part))
    return next((one.spot for one in same if one.has_sites), None)


def _blocks(
    record: Record, steps: Sequence[Remembered], repeated: Sequence[Repeated]
) -> list[BlockStep]:
    return [
        BlockStep(
            one.step,
            seen.loss_nats,
            {name: seen.activations[name] for name in record.blocks if name in seen.activations},
            dict(zip(record.blocks, seen.block_norms, strict=True)),
        )
        for one, seen in zip(steps, repeated, strict=True)
    ]


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
