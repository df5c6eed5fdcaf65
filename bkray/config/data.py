"""Which text, and how it becomes tokens; or which embeddings."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from bkray.config.section import Section

RECALL_DISTANCE = 1024
"""``data.recall_distance`` unless told otherwise."""

SPECTRA = "spectra"
"""``data.embeddings`` that are made and not read."""

MADE: dict[str, Any] = {
    "spectrum": 2.0,
    "n_frames": 1214,
    "n_channels": 768,
    "n_classes": 8,
    "n_per_class": 128,
}
"""Knobs of the made embeddings, and their defaults."""


class DataConfig(Section):
    """Which text, and how it becomes tokens; a generator trains on ``embeddings`` instead."""

    corpus: str = "stdlib"
    """``stdlib`` (Python's own library), ``documents`` (its longest packages, kept whole),
    ``mixture`` (patterns, the library and noise), ``recall`` (values asked for again far behind
    their first mention), or the path of a text file, a folder, a WikiText one."""
    tokenizer: Literal["bytes", "words"] = "bytes"
    vocab_size: int | None = Field(None, ge=2)
    """Words kept by ``tokenizer=words``; the rest become ``<unk>``."""
    max_bytes: int | None = Field(None, ge=1024)
    """Read at most so much of the training text, for small runs."""
    recall_distance: int | None = Field(None, ge=8, le=2**20)
    """Longest distance of ``corpus=recall`` in bytes, a power of two; half of it, a quarter and so
    on are asked for too."""

    embeddings: str | None = None
    """What a generator trains on: ``spectra`` (made sequences, whose classes differ at several
    time scales), or the path of a ``.npy`` or Parquet file."""
    spectrum: float | None = Field(None, ge=0, le=4)
    """Power of the made sequences falls with frequency ``f`` as ``1 / f**spectrum``."""
    n_frames: int | None = Field(None, ge=32)
    """Length of the made sequences."""
    n_channels: int | None = Field(None, ge=1)
    n_classes: Literal[2, 4, 8] | None = None
    """Of the made sequences; each doubling is a time scale more at which they differ."""
    n_per_class: int | None = Field(None, ge=8)
    """Made sequences of each class; some of them are held out."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        source = given.get("embeddings")
        made = [name for name in MADE if given.get(name) is not None]
        if made and source != SPECTRA:
            raise ValueError(
                f"data.{made[0]} does nothing with data.embeddings={source}: "
                f"set data.embeddings={SPECTRA}"
            )
        if source == SPECTRA:
            return {**given, **{k: v for k, v in MADE.items() if k not in made}}
        words = given.get("tokenizer") == "words"
        if given.get("vocab_size") is not None and not words:
            raise ValueError("data.vocab_size does nothing with data.tokenizer=bytes: it is 256")
        corpus = given.get("corpus", "stdlib")
        if given.get("recall_distance") is not None and corpus != "recall":
            raise ValueError(
                f"data.recall_distance does nothing with data.corpus={corpus}: "
                "set data.corpus=recall"
            )
        if corpus == "recall" and given.get("recall_distance") is None:
            given = {**given, "recall_distance": RECALL_DISTANCE}
        if words and given.get("vocab_size") is None:
            return {**given, "vocab_size": 8192}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        distance = self.recall_distance or 8
        if distance & (distance - 1):
            raise ValueError(
                f"data.recall_distance must be a power of two from 8 to {2**20}, got {distance}"
            )
        return self
