"""A trial's end in a few lines: what broke first, where, what came before, and what to try."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bkray.errors import ResumeError
from bkray.train.findings import (
    FOLDER,
    Diagnosis,
    Record,
    Remembered,
    read_diagnosis,
    read_record,
)
from bkray.train.growth import GROWN

SHOWN_STEPS, SHOWN_ERROR_LINES = 5, 12


def explain(folder: Path) -> list[str]:
    """Return what there is to say of a trial's end, line by line.

    Raises:
        ResumeError: the folder holds no trial, or its forensics are damaged.
    """
    told = ending(folder)
    lines = [
        f"{told['outcome']} at step {told['step']}: {told['stop_reason'] or 'no reason given'}"
    ]
    if told["outcome"] == "diverged" and (folder / FOLDER).exists():
        record, diagnosis = read_record(folder / FOLDER), read_diagnosis(folder / FOLDER)
        config = _json(folder / "config.json")["config"]
        lines += [*_what(diagnosis), *_before(record)]
        lines += [f"to try: {words}" for words in advice(record, diagnosis, config)]
    elif told["outcome"] == "diverged":
        lines.append(f"nothing more is known: {FOLDER}/ is missing")
    elif (folder / "error.txt").exists() and told["outcome"] in ("failed", "oom"):
        error = (folder / "error.txt").read_text(encoding="utf-8").rstrip().splitlines()
        lines += ["the end of error.txt:", *(f"  {line}" for line in error[-SHOWN_ERROR_LINES:])]
    return lines


def plain(folder: Path) -> dict[str, Any]:
    """Return the same as one JSON value: the files of the trial as they are, with the advice.

    Raises:
        ResumeError: the folder holds no trial, or its forensics are damaged.
    """
    said = {**ending(folder), "lines": explain(folder)}
    if said["outcome"] != "diverged" or not (folder / FOLDER).exists():
        return said
    record, diagnosis = read_record(folder / FOLDER), read_diagnosis(folder / FOLDER)
    config = _json(folder / "config.json")["config"]
    return {
        **said,
        "record": _json(folder / FOLDER / "record.json"),
        "diagnosis": _json(folder / FOLDER / "diagnosis.json") if diagnosis else None,
        "advice": advice(record, diagnosis, config),
    }


def ending(folder: Path) -> dict[str, Any]:
    """Return what ``outcome.json`` says.

    Raises:
        ResumeError: the folder holds no trial, or one that has not ended.
    """
    if not (folder / "config.json").exists():
        raise ResumeError(f"{folder} holds no trial: config.json is missing")
    if not (folder / "outcome.json").exists():
        raise ResumeError(f"{folder} has not ended: outcome.json is missing")
    return _json(folder / "outcome.json")


def advice(record: Record, diagnosis: Diagnosis | None, config: dict[str, Any]) -> list[str]:
    """Return what follows from what was found, the likeliest first."""
    lr, lower = config["optimizer.lr"], "lower optimizer.lr"
    warmer = f"raise optimizer.warmup_steps (it is {config['optimizer.warmup_steps']})"
    rule = record.verdict.rule
    if rule == "collapse":
        return [
            f"lower generator.kl_weight (it is {config['generator.kl_weight']:g}): what varies "
            "less is taken for noise",
            f"raise generator.kl_warmup_steps (it is {config['generator.kl_warmup_steps']})",
            "raise generator.training_sequence_length: pooling may have left nothing to tell",
        ]
    if rule == "plateau":
        return [f"another optimizer.lr (it is {lr:g}), lower first; then more steps of warm-up"]
    if diagnosis is None or diagnosis.kind == "vanished":
        return [
            "run the trial again: what does not come again is a race, a GPU's atomic additions "
            "or a fault of the machine, and nothing here says which"
        ]
    if diagnosis.kind == "growth":
        return [f"{lower} (it is {lr:g})", warmer]
    if (diagnosis.tensor or "").startswith("parameter "):
        return [f"{lower} (it is {lr:g}): the update before made the parameter what it is"]
    if grew := _grew(diagnosis):
        return [f"{lower} (it is {lr:g}): {grew}", warmer]
    quiet = [
        f"look at {diagnosis.module}: nothing had grown {GROWN:g}-fold since step "
        f"{record.snapshot_step}, so a lower optimizer.lr (it is {lr:g}) may not help; divisions, "
        "logarithms, roots and exponentials are what to look for"
    ]
    if config.get("train.precision") != "float64" and diagnosis.n_inf:
        more = "float32" if config.get("train.precision") == "bf16" else "float64"
        quiet.append(f"train.precision={more}: a number overflowed")
    return quiet


def found(diagnosis: Diagnosis) -> str:
    """Return one line on what broke first."""
    lines = {"tensor": _tensor, "overflow": _overflow, "growth": _growth, "vanished": _vanished}
    return lines[diagnosis.kind](diagnosis)


def _what(diagnosis: Diagnosis | None) -> Iterator[str]:
    if diagnosis is None:
        yield "what broke first is not known: diagnosis.json is missing"
        return
    yield found(diagnosis)
    if diagnosis.site is not None:
        site = diagnosis.site
        where = f"token: position {site.position} of row {site.row}"
        if diagnosis.batch and "first_token" in diagnosis.batch:
            where += (
                f", which begins at token {diagnosis.batch['first_token']} of the training text"
            )
        also = f"; {site.n_tokens} tokens of its part are hit" if site.n_tokens > 1 else ""
        yield where + also
        yield f"text: {site.before}[{site.token}]{site.after}"
    elif diagnosis.kind == "tensor":
        yield "token: none in particular"
    if diagnosis.batch is not None:
        yield (
            f"batch: epoch {diagnosis.batch['epoch']}, from window "
            f"{diagnosis.batch['position']} of the epoch's order"
        )
    yield diagnosis.compared()


def _tensor(found: Diagnosis) -> str:
    n_values = math.prod(found.shape)
    holds = [f"{n} {what}" for n, what in ((found.n_nan, "NaN"), (found.n_inf, "infinite")) if n]
    return (
        f"first not finite: {found.tensor} of {found.module}, {found.during} pass of step "
        f"{found.step}: {' and '.join(holds)} of {n_values} values"
    )


def _overflow(found: Diagnosis) -> str:
    return (
        f"every tensor between the modules is finite, but the {found.tensor} of {found.module} "
        f"overflows at step {found.step}"
    )


def _growth(found: Diagnosis) -> str:
    said = f"every tensor is finite up to step {found.step}"
    growth = found.growth
    if growth is None:
        return f"{said}; no step was left to repeat"
    if growth.block is None:
        said += f"; no block grew {GROWN:g}-fold since the last good state"
    else:
        said += (
            f"; growth began at step {growth.step} in {growth.block}: {growth.quantity} "
            f"{growth.factor:.3g} times that of the last good state"
        )
    if growth.jump_step is not None:
        said += (
            f"; the loss rose most at step {growth.jump_step}, "
            f"from {growth.jump_from:.4g} to {growth.jump_to:.4g}"
        )
    return said


def _vanished(found: Diagnosis) -> str:
    return (
        f"the fault did not come again when step {found.step} was repeated: what broke first "
        "is not known"
    )


def _before(record: Record) -> Iterator[str]:
    yield "step   loss (nats)   gradient norm   of it most"
    last = record.to_repeat[-1].step if record.to_repeat else math.inf
    for one in [one for one in record.steps if one.step <= last][-SHOWN_STEPS:]:
        yield f"{one.step:4d}  {one.loss_nats:12.5g}  {one.grad_norm:14.5g}   {_most(record, one)}"


def _most(record: Record, one: Remembered) -> str:
    norms = dict(zip(record.blocks, one.block_norms, strict=True))
    broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if broken:
        return "not finite: " + (broken[0] if len(broken) == 1 else f"{len(broken)} blocks")
    largest = max(norms, key=lambda name: norms[name])
    return f"{largest} {norms[largest]:.3g}"


def _grew(diagnosis: Diagnosis) -> str:
    """Return which block had grown most by the step that broke, as far as that is a number."""
    ratios = [
        (now / then, name, what)
        for name, block in diagnosis.blocks.items()
        for what, then, now in (
            ("output", block.activation_before, block.activation),
            ("gradient", block.grad_norm_before, block.grad_norm),
        )
        if then > 0 and math.isfinite(now)
    ]
    ratio, name, what = max(ratios, default=(0.0, "", ""))
    return f"the {what} of {name} had grown {ratio:.3g}-fold" if ratio > GROWN else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResumeError(f"{path} cannot be read ({error})") from error
    return told
