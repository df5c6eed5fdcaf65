"""Which text, and how it becomes tokens."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from bkray.config.section import Section

RECALL_DISTANCE = 1024
"""``data.recall_distance`` unless told otherwise."""


class DataConfig(Section):
    """Which text, and how it becomes tokens."""

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

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
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
