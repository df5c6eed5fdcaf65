"""Optimizer, and how long, in which portions and how closely watched."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from bkray.config.model import MixerName
from bkray.config.section import Section


class OptimizerConfig(Section):
    """AdamW, warm-up and cosine."""

    lr: float = Field(5e-3, gt=0)
    final_lr_fraction: float = Field(0.1, ge=0, le=1)
    warmup_steps: int = Field(40, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip_norm: float = Field(0.5, gt=0)


class TrainConfig(Section):
    """How long, in which portions, and how often to look."""

    steps: int = Field(400, ge=1)
    batch_size: int = Field(16, ge=1)
    """Sequences per optimizer step, over all accumulation rounds."""
    accumulation: int = Field(1, ge=1)
    chunk: int | None = Field(None, ge=1)
    """Sites of a row that are held at once, in training and evaluation: the same numbers in the
    memory of one chunk, for another forward pass. ``None`` for whole rows."""
    eval_every: int = Field(100, ge=1)
    eval_windows: int = Field(64, ge=1)
    """Validation windows of ``model.n_seq`` tokens, the same ones for every trial."""
    eval_stretch: int | None = Field(None, ge=2)
    """Tokens of the stretches that validation windows are cut from, so that trials of several
    ``model.n_seq`` score the same ones; the last window of a stretch may be a shorter one.
    ``None`` for windows that are spread one by one."""
    checkpoint_every: int = Field(100, ge=1)
    precision: Literal["float32", "float64", "bf16"] = "float32"
    """``bf16`` is autocast and needs a GPU; the scan stays in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    speed_reference_layers: int | None = Field(None, ge=1)
    """Depth of the dense model that speedups are relative to; default: the trial's own depth."""
    speed_reference_experts: int | None = Field(None, ge=1)
    """Experts of that model; default: the trial's own."""
    speed_rows: int | None = Field(None, ge=1)
    """Rows of the batch on which speed is measured; ``None`` for ``batch_size``. A pass through
    the layers has a price of its own, which few rows hide badly."""
    speed_reference_mixer: MixerName | None = None
    """Mixer of that model, which then has as many parameters as the trial's; default: its own."""
    speed_lengths: str | None = Field(None, pattern=r"^\d+(,\d+)*$")
    """``2048,8192``: lengths, in tokens, at which training, evaluation and streaming of untrained
    models are timed at the end of the trial, beside that model."""
    on_spike: Literal["record", "skip_step", "rewind"] = "record"
    """After a loss more than twice the one before: go on, undo that step, or go back to the last
    good state and on from there with other data."""
    max_interventions: int | None = Field(None, ge=1)
    """Spikes that ``on_spike`` answers; further ones are only recorded."""
    monitor: Literal["off", "birman_schwinger"] = "off"
    """Whether every evaluation also takes Schatten norms and condition number of the potential."""
    precision_upgrade: float | None = Field(None, gt=1)
    """Condition number from which on a layer's scan runs in float64; ``None`` for never."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        if isinstance(given.get("speed_lengths"), int):  # a single one, as a command line reads it
            given = {**given, "speed_lengths": str(given["speed_lengths"])}
        acts = given.get("on_spike", "record") != "record"
        if given.get("max_interventions") is not None and not acts:
            raise ValueError(
                "train.max_interventions does nothing with train.on_spike=record: "
                "set train.on_spike to skip_step or rewind"
            )
        _check_monitor(given)
        if acts and given.get("max_interventions") is None:
            return {**given, "max_interventions": 10}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"train.batch_size={self.batch_size} must be a multiple of "
                f"train.accumulation={self.accumulation}"
            )
        if self.speed_rows is not None and self.speed_rows > self.eval_windows:
            raise ValueError(
                f"train.speed_rows must be at most train.eval_windows={self.eval_windows}, "
                f"got {self.speed_rows}: lower it or raise eval_windows"
            )
        return self


def _check_monitor(given: Mapping[str, Any]) -> None:
    upgrade = given.get("precision_upgrade")
    if upgrade is None:
        return
    if given.get("monitor", "off") == "off":
        raise ValueError(
            f"train.precision_upgrade={upgrade} does nothing with train.monitor=off: "
            "set train.monitor=birman_schwinger"
        )
    if given.get("precision") == "float64":
        raise ValueError(
            f"train.precision_upgrade={upgrade} does nothing with train.precision=float64: "
            "the scan runs in it anyway"
        )
