"""Sequences of vectors with a class each: rows (n, L, D), read when asked for, and their splits.

Letters: N rows, L frames, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bkray.errors import DataError

Rows = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]

SHARES = {"train": 0.70, "valid": 0.15, "test": 0.15}
"""Of the rows of every class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Rows with labels. ``source`` says in one sentence what they are; ``fingerprint`` is SHA-256
    in hex, over values and labels, or over all that made rows follow from."""

    name: str
    source: str
    n_frames: int
    n_channels: int
    label_N: Whole
    """From 0 to ``n_classes - 1``, each of them there."""
    fingerprint: str
    read: Callable[[Whole], Rows]
    """Row numbers (B,) to the rows themselves, (B, L, D), all finite."""

    @property
    def n_rows(self) -> int:
        return len(self.label_N)

    @property
    def n_classes(self) -> int:
        return int(self.label_N.max()) + 1


def splits(label_N: Whole, seed: int, shares: Mapping[str, float] = SHARES) -> dict[str, Whole]:
    """Return row numbers of every split: disjoint, together all rows, shuffled within.

    Every class has the same share of its rows in each split, but for rounding, and at least one.

    Raises:
        DataError: a class has fewer rows than there are splits.
    """
    generator = np.random.default_rng([seed, len(label_N)])
    parts: dict[str, list[Whole]] = {name: [] for name in shares}
    for label in range(int(label_N.max()) + 1):
        of_class = generator.permutation(np.flatnonzero(label_N == label))
        if len(of_class) < len(shares):
            raise DataError(
                f"too few rows: class {label} has {len(of_class)}, but each of "
                f"{', '.join(shares)} needs one; give more rows"
            )
        ends = _ends(len(of_class), list(shares.values()))
        for name, part in zip(shares, np.split(of_class, ends), strict=True):
            parts[name].append(part)
    return {name: generator.permutation(np.concatenate(part)) for name, part in parts.items()}


def _ends(n_rows: int, shares: list[float]) -> list[int]:
    """Return where each part but the last ends, at least one row apart."""
    ends: list[int] = []
    for i in range(1, len(shares)):
        wanted = round(n_rows * sum(shares[:i]) / sum(shares))
        least = ends[-1] + 1 if ends else 1
        ends.append(min(max(wanted, least), n_rows - (len(shares) - i)))
    return ends
