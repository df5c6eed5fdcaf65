"""The whole of a trial's config, and what its sections ask of each other."""

from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any, Self

from pydantic import Field, model_validator

from bkray.config.data import SPECTRA, DataConfig
from bkray.config.generator import GeneratorConfig
from bkray.config.ladder import LadderConfig
from bkray.config.mismatch import MismatchConfig, check_mismatch, resolved
from bkray.config.model import ModelConfig
from bkray.config.section import Section
from bkray.config.training import OptimizerConfig, TrainConfig
from bkray.knobs import why_not_in_chunks

OF_TEXT: dict[str, Any] = {
    "model": True,
    "ladder": True,
    "mismatch": True,
    "data": {"corpus", "tokenizer", "vocab_size", "max_bytes", "recall_distance"},
    "train": {
        *("chunk", "eval_windows", "eval_stretch", "monitor", "precision_upgrade"),
        *("speed_reference_layers", "speed_reference_experts", "speed_rows"),
        *("speed_reference_mixer", "speed_lengths"),
    },
}
"""Sections and knobs of language models, which do nothing where a generator is trained."""

SHORTEST_TIMED = 64
"""Tokens; shorter passes are a matter of overheads."""


class TrialConfig(Section):
    """Everything that decides the numbers of one trial."""

    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig())
    train: TrainConfig = Field(default_factory=lambda: TrainConfig())
    ladder: LadderConfig = Field(default_factory=lambda: LadderConfig())
    mismatch: MismatchConfig = Field(default_factory=lambda: MismatchConfig())
    generator: GeneratorConfig = Field(default_factory=lambda: GeneratorConfig())
    """A sequence generator to be trained in place of ``model``."""
    seed: int = Field(0, ge=0, lt=2**63)
    threads: int = Field(1, ge=1)
    """CPU threads of one trial: torch, numba and OpenMP alike."""
    arm: str = ""
    """Label of a rival within a sweep, such as ``dense-2``; empty for searched trials."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        """The longest length of a ladder is the model's, unless that is given; which strategies
        act depends on it. A generator has other data and no model."""
        if isinstance(given, Mapping) and _given(given.get("generator")):
            return _with_embeddings(given)
        model = given.get("model", {}) if isinstance(given, Mapping) else None
        if not isinstance(model, Mapping):
            return given
        with suppress(KeyError, IndexError, ValueError):
            # there is none, or the section's own check says what is wrong with it
            longest = LadderConfig.model_validate(given["ladder"]).rungs[-1]
            given = {**given, "model": {"n_seq": longest, **model}}
        return _with_strategies(given)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.data.embeddings is not None and not self.generator.acts:
            raise ValueError(
                f"data.embeddings={self.data.embeddings} does nothing without a generator: give "
                "generator.training_sequence_length=32, or leave it out"
            )
        _check_lengths(self.ladder.rungs, self.model.n_seq, self.train)
        check_mismatch(self.mismatch, self.model)
        if self.train.monitor != "off" and self.model.mixer != "bk":
            raise ValueError(
                f"train.monitor={self.train.monitor} does nothing in a model with "
                f"mixer={self.model.mixer}: it has no potential; set train.monitor=off"
            )
        if self.ladder.monitor == "both" and self.train.monitor == "off":
            raise ValueError(
                "ladder.monitor=both needs a monitor to be without: set "
                "train.monitor=birman_schwinger, which model.mixer=bk has"
            )
        _check_speeds(self.model, self.train)
        if self.train.chunk is not None:
            refusal = why_not_in_chunks(self.model, self.train.chunk)
            if refusal is not None:
                raise ValueError(f"train.chunk={self.train.chunk} {refusal}")
        return self

    @property
    def n_seq(self) -> int:
        """Positions of a row of a batch: tokens of text, or frames that a generator trains at."""
        return self.generator.training_sequence_length or self.model.n_seq

    def acting(self) -> dict[str, Any]:
        """Return the sections with the knobs that act."""
        idle = OF_TEXT if self.generator.acts else None
        return self.model_dump(exclude_none=True, exclude=idle)


def _given(section: Any) -> bool:
    return isinstance(section, Mapping) and any(v is not None for v in section.values())


def _with_embeddings(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is given of a generator's trial, with the data it has unless told otherwise.

    Raises:
        ValueError: a knob of language models is among it.
    """
    for section, idle in OF_TEXT.items():
        asked = given.get(section)
        if not isinstance(asked, Mapping):
            continue
        for name, value in asked.items():
            if value is not None and (idle is True or name in idle):
                raise ValueError(
                    f"{section}.{name}={value} does nothing in a generator's trial, which has no "
                    "language model and no text: leave it out, or all of generator.*"
                )
    data = given.get("data", {})
    if isinstance(data, Mapping) and data.get("embeddings") is None:
        return {**given, "data": {**data, "embeddings": SPECTRA}}
    return given


def _check_speeds(model: ModelConfig, train: TrainConfig) -> None:
    if model.build is not None and train.speed_reference_mixer is not None:
        raise ValueError(
            f"train.speed_reference_mixer={train.speed_reference_mixer} does nothing with "
            f"model.build={model.build}: your own model is timed alone; leave it out"
        )
    if train.speed_lengths is None:
        return
    if model.build is not None or (model.depth, model.length, model.sparsity) != (
        *("dense", "fixed", "off"),
    ):
        raise ValueError(
            f"train.speed_lengths={train.speed_lengths} times untrained models: it needs a "
            "built-in one with model.depth=dense, model.length=fixed and model.sparsity=off"
        )
    if min(int(n) for n in train.speed_lengths.split(",")) < SHORTEST_TIMED:
        raise ValueError(
            f"train.speed_lengths must be at least {SHORTEST_TIMED} tokens each, got "
            f"{train.speed_lengths}"
        )


def _with_strategies(given: Mapping[str, Any]) -> Mapping[str, Any]:
    asked = given.get("mismatch")
    if not isinstance(asked, Mapping) or not any(v is not None for v in asked.values()):
        return given
    try:
        MismatchConfig.model_validate(asked)
        n_seq = ModelConfig.model_validate(given.get("model", {})).n_seq
    except ValueError:
        return given  # the sections' own checks say what is wrong with them
    return {**given, "mismatch": resolved(asked, n_seq)}


def _check_lengths(rungs: tuple[int, ...], n_seq: int, train: TrainConfig) -> None:
    if rungs:
        grows = all(a < b for a, b in pairwise(rungs))
        if not grows or rungs[0] < 2 or rungs[-1] != n_seq:
            raise ValueError(
                f"ladder.lengths must grow from at least 2 up to model.n_seq={n_seq}, got "
                f"{','.join(map(str, rungs))}"
            )
        if train.steps < len(rungs):
            raise ValueError(
                f"train.steps must be at least {len(rungs)} for as many ladder.lengths, got "
                f"{train.steps}"
            )
    stretch = train.eval_stretch
    if stretch is None:
        return
    per_stretch = -(-stretch // n_seq)
    if stretch < n_seq or train.eval_windows % per_stretch:
        raise ValueError(
            f"train.eval_stretch={stretch} must be at least model.n_seq={n_seq}, and "
            f"train.eval_windows={train.eval_windows} whole stretches of {per_stretch} windows: "
            "change one of them"
        )
