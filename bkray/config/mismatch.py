"""Lengths that a trained model is evaluated at beyond its own, and how it reads them."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pydantic import Field, model_validator

from bkray.config.section import Section, beside_lengths, whole_numbers

STRATEGIES = (
    "extrapolate",
    "truncate",
    "sliding_window",
    "sliding_window_mean",
    "sliding_window_max",
)
"""How a row longer than ``model.n_seq`` is read; ``bkray.train.strategies`` says what they do."""


class MismatchConfig(Section):
    """Evaluation at other lengths than the train length; the knobs act where ``lengths`` are.

    A trial measures a cell for each length and strategy when it is trained. At ``model.n_seq``
    itself there is one cell, ``retrain``: what a model trained at that length comes to there.
    """

    lengths: str | None = Field(None, pattern=r"^\d+(,\d+)*$")
    """``512,1024``, growing, in tokens; each a multiple of ``model.n_seq``."""
    strategies: str | None = None
    """Some of ``extrapolate,truncate,sliding_window,sliding_window_mean,sliding_window_max``."""
    overlap: float | None = Field(None, ge=0, lt=1)
    """Share of a sliding window that the next one reads again."""
    windows: int | None = Field(None, ge=4)
    """Validation rows scored at each length, the same ones for every trial."""
    items: int | None = Field(None, ge=4)
    """Items of the retrieval probe; half of them are twins that differ in their second half."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        chosen = beside_lengths("mismatch", given, "512,..")
        return {"windows": 32, "items": 64, **chosen} if chosen else chosen

    @property
    def evaluated(self) -> tuple[int, ...]:
        """The lengths as numbers; empty without any."""
        return whole_numbers(self.lengths)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The strategies; empty where no length is longer than that of training."""
        return tuple(self.strategies.split(",")) if self.strategies else ()


def resolved(given: Mapping[str, Any], n_seq: int) -> dict[str, Any]:
    """Return the section with the strategies that act in a model trained at ``n_seq`` tokens.

    Raises:
        ValueError: a knob is given that does nothing there.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    lengths = MismatchConfig.model_validate(chosen).evaluated
    if not any(n > n_seq for n in lengths):
        for name in ("strategies", "overlap"):
            if name in chosen:
                raise ValueError(
                    f"mismatch.{name} does nothing with mismatch.lengths={chosen.get('lengths')} "
                    f"and model.n_seq={n_seq}: no length is longer; leave it out"
                )
        return chosen
    chosen = {"strategies": ",".join(STRATEGIES), **chosen}
    if "sliding" in str(chosen["strategies"]):
        return {"overlap": 0.5, **chosen}
    if "overlap" in chosen:
        raise ValueError(
            f"mismatch.overlap does nothing with mismatch.strategies={chosen['strategies']}: "
            "add sliding_window, or leave it out"
        )
    return chosen


def check_mismatch(mismatch: MismatchConfig, model: Any) -> None:
    """Raise ``ValueError`` where a model cannot be measured as asked.

    Args:
        model: its ``ModelConfig``.
    """
    lengths, n_seq = mismatch.evaluated, model.n_seq
    if not lengths:
        return
    grows = all(a < b for a, b in pairwise(lengths))
    if not grows or any(n < n_seq or n % n_seq for n in lengths):
        raise ValueError(
            f"mismatch.lengths must grow and be multiples of model.n_seq={n_seq}, got "
            f"{mismatch.lengths}"
        )
    names = mismatch.chosen
    if unknown := [name for name in names if name not in STRATEGIES]:
        raise ValueError(
            f"mismatch.strategies must be some of {', '.join(STRATEGIES)}, got {unknown[0]!r}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"mismatch.strategies names one twice: {mismatch.strategies}")
    if mismatch.overlap is not None and round(n_seq * (1 - mismatch.overlap)) < 1:
        raise ValueError(
            f"mismatch.overlap={mismatch.overlap} moves a window of model.n_seq={n_seq} by less "
            "than a token: lower it"
        )
    if (model.mixer_scale or 1) > 1 or model.multiscale:
        name = "multiscale" if model.multiscale else "mixer_scale"
        raise ValueError(
            f"mismatch.lengths do not go with model.{name}={getattr(model, name)}: reach is told "
            "in tokens, and there mixers run over groups of them; leave one of the two out"
        )
    if model.build is not None or model.depth != "dense" or model.length != "fixed":
        raise ValueError(
            "mismatch.lengths need a built-in model with model.depth=dense and "
            "model.length=fixed: the last hidden states of all tokens are compared"
        )
