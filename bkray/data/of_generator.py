"""What a generator's trial reads of its sequences: standardised rows, in batches to train on.

Letters: N rows, B of them in a batch, L frames, T frames of training, D channels.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from bkray.config import SPECTRA, DataConfig
from bkray.data.embedding_files import read_sequences
from bkray.data.made_sequences import made_sequences
from bkray.data.sequences import Sequences, Whole, splits

READ_ROWS = 32
"""Rows that are read at once where all of them are looked at."""

HELD_BYTES = 512 * 2**20
"""All rows together, at most, where they are held."""

SPLIT_SEED = 0
"""All trials hold the same rows out."""


def sequences(config: DataConfig) -> Sequences:
    """Return the sequences that ``data.embeddings`` names.

    Raises:
        DataError: there is no such file, or it does not hold rows with labels.
    """
    assert config.embeddings is not None
    if config.embeddings != SPECTRA:
        return read_sequences(config.embeddings)
    assert config.spectrum is not None and config.n_frames is not None
    assert config.n_channels is not None and config.n_per_class is not None
    assert config.n_classes is not None
    return made_sequences(
        spectrum=config.spectrum,
        n_frames=config.n_frames,
        n_channels=config.n_channels,
        n_classes=config.n_classes,
        n_per_class=config.n_per_class,
    )


def standard_splits(source: Sequences) -> dict[str, Whole]:
    """Return the row numbers of each split, the same ones for every trial."""
    return splits(source.label_N, SPLIT_SEED)


def standardised(config: DataConfig, source: Sequences) -> "Standardised":
    """Return the sequences standardised; made ones are kept for the next trial of the process."""
    return _made(config) if config.embeddings == SPECTRA else Standardised(source)


@lru_cache(maxsize=1)
def _made(config: DataConfig) -> "Standardised":
    return Standardised(sequences(config))


def held_bytes(source: Sequences, n_pooled: int | None) -> int:
    """Return the bytes of rows that a trial holds on the host: all of them where they are held,
    training rows of ``n_pooled`` frames (``None``: whole ones), and validation rows."""
    frame, index = 4 * source.n_channels, standard_splits(source)
    every = source.n_rows * source.n_frames * frame
    train = len(index["train"]) * (n_pooled or source.n_frames) * frame
    valid = len(index["valid"]) * source.n_frames * frame
    return train + valid + (every if every <= HELD_BYTES else 0)


class Split(NamedTuple):
    """Rows of one split, whole or pooled, with their classes."""

    x_NLD: Tensor
    label_N: Tensor


class Standardised:
    """Sequences whose channels have mean 0 and variance 1 over the training rows.

    A channel that never varies is left at 0. Rows are held where all of them together are small,
    and else read again whenever they are needed.
    """

    def __init__(self, source: Sequences) -> None:
        self.source = source
        self.index = standard_splits(source)
        count, total_D, square_D = 0, np.zeros(source.n_channels), np.zeros(source.n_channels)
        for part in in_parts(self.index["train"]):
            rows = source.read(part).astype(np.float64)
            count += rows.shape[0] * rows.shape[1]
            total_D += rows.sum((0, 1))
            square_D += (rows**2).sum((0, 1))
        self.mean_D = total_D / count
        deviation_D = np.sqrt(np.maximum(square_D / count - self.mean_D**2, 0.0))
        self.deviation_D = np.where(deviation_D > 1e-6 * np.abs(self.mean_D), deviation_D, 1.0)
        self._held_NLD: Tensor | None = None
        if 4 * source.n_rows * source.n_frames * source.n_channels <= HELD_BYTES:
            held_NLD = torch.empty(source.n_rows, source.n_frames, source.n_channels)
            for part in in_parts(np.arange(source.n_rows)):
                held_NLD[part[0] : part[-1] + 1] = self._read(part)
            self._held_NLD = held_NLD

    def rows(self, index_B: Whole) -> Tensor:
        """Return whole rows, (B, L, D) in float32."""
        if self._held_NLD is not None:
            return self._held_NLD[torch.from_numpy(index_B)]
        return self._read(index_B)

    def _read(self, index_B: Whole) -> Tensor:
        raw_BLD = self.source.read(index_B)
        return torch.from_numpy(((raw_BLD - self.mean_D) / self.deviation_D).astype(np.float32))

    def split(self, name: str, n_pooled: int | None = None) -> Split:
        """Return a whole split, its rows averaged down to ``n_pooled`` frames if told to."""
        index_N, done = self.index[name], 0
        n_frames = n_pooled or self.source.n_frames
        x_NLD = torch.empty(len(index_N), n_frames, self.source.n_channels)
        for rows in map(self.rows, in_parts(index_N)):
            if n_pooled is not None:
                rows = adaptive_avg_pool1d(rows.mT, n_pooled).mT
            x_NLD[done : done + len(rows)] = rows
            done += len(rows)
        return Split(x_NLD, torch.from_numpy(self.source.label_N[index_N]))


class RowBatches:
    """Endless training batches; the k-th depends on the rows, the seed and k alone.

    An epoch takes every row once, in an order that follows from ``(seed, epoch)``. A batch may
    span epochs, and one larger than an epoch takes rows again.
    """

    def __init__(self, rows: Split, batch_size: int, seed: int) -> None:
        self._rows, self._batch_size, self._seed = rows, batch_size, seed
        self.last_taken: tuple[dict[str, int], tuple[int, ...]] = {}, ()
        self._enter(epoch=0, position=0)

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return rows (B, L, D) and their classes (B,)."""
        before = self.state()
        taken: list[int] = []
        while len(taken) < self._batch_size:
            if self._position == len(self._order_N):
                self._enter(epoch=self._epoch + 1, position=0)
            wanted = self._batch_size - len(taken)
            part = self._order_N[self._position :][:wanted]
            taken += part.tolist()
            self._position += len(part)
        self.last_taken = before, tuple(taken)
        return self._rows.x_NLD[taken], self._rows.label_N[taken]

    def state(self) -> dict[str, int]:
        """Return the place in the data, for ``restore`` of equal batches."""
        return {"epoch": self._epoch, "position": self._position}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on where ``state`` was taken."""
        self._enter(epoch=state["epoch"], position=state["position"])

    def _enter(self, *, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._order_N = np.random.default_rng([self._seed, epoch]).permutation(
            len(self._rows.label_N)
        )


def in_parts(index_N: Whole) -> list[Whole]:
    """Return row numbers in parts of ``READ_ROWS``."""
    return np.split(index_N, range(READ_ROWS, len(index_N), READ_ROWS))
