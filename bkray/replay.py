"""A divergence again, on this machine: the trial rebuilt from its folder and taken to the end."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bkray import overrides
from bkray.config import TrialConfig
from bkray.errors import DataError, ResumeError
from bkray.ops.memory import keep_freed_memory
from bkray.train import checkpoint
from bkray.train.checkpoint import RngState
from bkray.train.diagnosis import diagnose
from bkray.train.findings import (
    FOLDER,
    SNAPSHOT,
    Diagnosis,
    read_diagnosis,
    read_record,
)
from bkray.train.turns import taking_turns
from bkray.trial import compose, prepared, use_threads

_ALIKE_NATS = 0.1
"""Losses that part by more are not those of the same run: where nothing is infinite, they are all
that can be compared."""


class Replayed(NamedTuple):
    """What broke here, what broke then, and what is not as it was."""

    diagnosis: Diagnosis
    recorded: Diagnosis | None
    remarks: tuple[str, ...]

    @property
    def is_reproduced(self) -> bool:
        """Whether the same tensor of the same module broke at the same step."""
        now, then = self.diagnosis, self.recorded
        if then is None or now.kind == "vanished" or now.first_bad != then.first_bad:
            return False
        parted = now.largest_loss_difference
        return now.kind != "growth" or (parted is not None and parted < _ALIKE_NATS)


def replay(folder: Path) -> Replayed:
    """Repeat the last steps of the diverged trial in ``folder``, in this process, on the CPU.

    The rows of a batch that several workers shared are taken one worker after the other, each
    with its own random numbers, so that the gradients are those of the team but for rounding.

    Raises:
        ResumeError: no trial, none that diverged, or its forensics are damaged.
        ConfigError, DataError: the model or the text cannot be had any more.
    """
    flat, data_hash = _description(folder)
    if not (folder / FOLDER).exists():
        raise ResumeError(f"{folder} has no {FOLDER}/: only a trial that diverged can be replayed")
    record, recorded = read_record(folder / FOLDER), read_diagnosis(folder / FOLDER)
    snapshot = checkpoint.read(folder / FOLDER / SNAPSHOT)
    config, remarks = _on_cpu(overrides.build(flat))
    use_threads(config.threads)
    keep_freed_memory()
    data = prepared(config)
    if data.fingerprint != data_hash:
        source = config.data.embeddings or f"corpus {config.data.corpus}"
        what = "what" if config.generator.acts else "the text that"
        raise DataError(
            f"{source} is not {what} {folder} was trained on: put the old one back to replay it"
        )
    rng: list[RngState] = snapshot["rng"]
    run = compose(config, data, None, split=record.split * len(rng))
    if flat["train.precision"] == "bf16":
        run.autocast = torch.autocast("cpu", torch.bfloat16)
    if any(state["cuda"] is not None for state in rng):
        remarks += ("it was trained on a GPU, which rounds otherwise and draws other dropout",)
    with taking_turns(run, rng):
        diagnosis = diagnose(run, snapshot, record)
    return Replayed(diagnosis, recorded, remarks)


def _description(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / "config.json"
    if not path.exists():
        raise ResumeError(f"{folder} holds no trial: config.json is missing")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return dict(told["config"]), str(told["data_hash"])
    except (ValueError, KeyError, TypeError) as error:
        raise ResumeError(f"{path} cannot be read ({error!r})") from error


def _on_cpu(config: TrialConfig) -> tuple[TrialConfig, tuple[str, ...]]:
    """Return the config as a CPU can run it, and what that changes."""
    flat: dict[str, Any] = {**overrides.flatten(config), "train.device": "cpu"}
    if config.train.precision != "bf16":
        return overrides.build(flat), ()
    flat["train.precision"] = "float32"  # compose refuses bf16 here; autocast follows
    return overrides.build(flat), ("bf16 autocast of a CPU stands in for that of a GPU",)
