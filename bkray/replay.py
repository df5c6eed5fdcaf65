"""A divergence again, on this machine: the trial rebuilt from its folder and taken to the end."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bkray import overrides
from bkray.config import TrialConfig
from bkray.data.shards import prepare
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
from bkray.train.run import Run
from bkray.trial import compose, use_threads


class Replayed(NamedTuple):
    """What broke here, what broke then, and what is not as it was."""

    diagnosis: Diagnosis
    recorded: Diagnosis | None
    remarks: tuple[str, ...]

    @property
    def is_reproduced(self) -> bool:
        """Whether the same tensor of the same module broke at the same step."""
        now, then = self.diagnosis, self.recorded
        return then is not None and now.kind != "vanished" and now.first_bad == then.first_bad


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
    shards = prepare(config.data, config.model.n_seq)
    if shards.fingerprint != data_hash:
        raise DataError(
            f"corpus {config.data.corpus} is not the text that {folder} was trained on: "
            "put the old one back to replay it"
        )
    rng: list[RngState] = snapshot["rng"]
    run = compose(config, shards, None, split=record.split * len(rng))
    if flat["train.precision"] == "bf16":
        run.autocast = torch.autocast("cpu", torch.bfloat16)
    if any(state["cuda"] is not None for state in rng):
        remarks += ("it was trained on a GPU, which rounds otherwise and draws other dropout",)
    with _taking_turns(run, rng):
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


@contextmanager
def _taking_turns(run: Run, rng: Sequence[RngState]) -> Iterator[None]:
    """Let every worker's share of a part be computed with that worker's own state."""
    if len(rng) == 1:
        yield
        return
    turns = _Turns(rng, run.config.train.accumulation * run.split)
    handles = [
        run.model.register_forward_pre_hook(turns.begin),
        run.model.register_forward_hook(turns.end),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Turns:
    """Random numbers and buffers of each worker; all begin a step with the first one's buffers.

    A batch comes in ``n_parts``, of which the k-th is that of worker ``k % len(rng)``.
    """

    def __init__(self, rng: Sequence[RngState], n_parts: int) -> None:
        self._numbers = [state["torch"] for state in rng]
        self._buffers: list[list[Tensor]] = [[] for _ in rng]
        self._at_step_begin: list[Tensor] = []
        self._n_parts, self._n_taken = n_parts, 0

    def begin(self, model: nn.Module, _: Any) -> None:
        if not model.training:
            _put(model, self._buffers[0])
            return
        part = self._n_taken % self._n_parts
        worker = part % len(self._numbers)
        if part == 0:
            self._at_step_begin = self._buffers[0] or _values(model)
        in_first_round = part < len(self._numbers)
        _put(model, self._at_step_begin if in_first_round else self._buffers[worker])
        torch.set_rng_state(self._numbers[worker])

    def end(self, model: nn.Module, _: Any, __: Any) -> None:
        if model.training:
            worker = self._n_taken % self._n_parts % len(self._numbers)
            self._numbers[worker] = torch.get_rng_state()
            self._buffers[worker] = _values(model)
            self._n_taken += 1


def _values(model: nn.Module) -> list[Tensor]:
    return [buffer.detach().clone() for buffer in model.buffers()]


def _put(model: nn.Module, values: Sequence[Tensor]) -> None:
    for buffer, value in zip(model.buffers(), values, strict=False):
        buffer.copy_(value)
