"""Windows of tokens as batches: shuffled ones to train on, fixed ones to validate on.

B batch, N positions (``n_seq``), W windows. A window is N + 1 neighbouring tokens: N inputs, and
as targets the same shifted by one.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from bkray.data.corpus import check_length
from bkray.data.vocabulary import Tokens


class Batches:
    """Endless training batches; the k-th depends on the arguments and k alone.

    An epoch cuts the tokens into windows from a random offset below N and shuffles them, so every
    token behind the offset is an input once, apart from a rest shorter than a window. Offset and
    order follow from ``(seed, epoch)``. A batch may span epochs. Where tokens come in segments of
    ``segment``, each is cut like this for itself, and no window lies in two.
    """

    def __init__(
        self,
        tokens: Tokens,
        n_seq: int,
        batch_size: int,
        seed: int,
        *,
        segment: int | None = None,
    ) -> None:
        check_length(tokens, n_seq, "train", segment)
        self._tokens = tokens
        self._segment = segment or len(tokens)
        self._n_seq = n_seq
        self._batch_size = batch_size
        self._seed = seed
        self.last_taken: tuple[dict[str, int], tuple[int, ...]] = {}, ()
        """Of the latest batch: ``state`` before it, and the first token of each of its rows."""
        self._enter(epoch=0, position=0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, both int64 (B, N)."""
        before = self.state()
        starts_B = np.empty(self._batch_size, dtype=np.int64)
        filled = 0
        while filled < self._batch_size:
            if self._position == len(self._starts_W):
                self._enter(epoch=self._epoch + 1, position=0)
            taken = self._starts_W[self._position :][: self._batch_size - filled]
            starts_B[filled : filled + len(taken)] = taken
            filled += len(taken)
            self._position += len(taken)
        self.last_taken = before, tuple(starts_B.tolist())
        return _windows(self._tokens, starts_B, self._n_seq)

    def state(self) -> dict[str, int]:
        """Return the place in the data, for ``restore`` of an equal ``Batches``."""
        return {"epoch": self._epoch, "position": self._position}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on where ``state`` was taken."""
        self._enter(epoch=state["epoch"], position=state["position"])

    def _enter(self, *, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        generator = np.random.default_rng([self._seed, epoch])
        last_start = self._segment - 1 - self._n_seq
        offset = generator.integers(min(self._n_seq, last_start + 1))
        inside = np.arange(offset, last_start + 1, self._n_seq, dtype=np.int64)
        segments = np.arange(len(self._tokens) // self._segment) * self._segment
        self._starts_W = generator.permutation(np.add.outer(segments, inside).ravel())
        assert position <= len(self._starts_W), "a state of other data was restored"


def validation_windows(
    tokens: Tokens,
    n_seq: int,
    n_windows: int,
    *,
    segment: int | None = None,
    kinds: Sequence[str] = (),
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, both int64 (W, N): fixed windows, evenly spread over ``tokens``.

    No two share a target. W is ``n_windows``, or as many as fit where that is fewer; the shape
    says so. Where segments of ``kinds`` take turns, so do the windows: window ``w`` is of
    ``kinds[w % len(kinds)]``.

    Raises:
        DataError: not one window fits.
    """
    check_length(tokens, n_seq, "evaluated", segment)
    if segment is not None:
        starts_W = _starts_in_turn(len(tokens), n_seq, n_windows, segment, max(len(kinds), 1))
        return _windows(tokens, starts_W, n_seq)
    last_start = len(tokens) - 1 - n_seq
    n_fitting = (len(tokens) - 1) // n_seq
    W = min(n_windows, n_fitting)
    starts_W = np.arange(W, dtype=np.int64) * last_start // max(W - 1, 1)
    return _windows(tokens, starts_W, n_seq)


def _starts_in_turn(
    n_tokens: int, n_seq: int, n_windows: int, segment: int, n_kinds: int
) -> Tokens:
    n_turns, per_segment = n_tokens // (segment * n_kinds), (segment - 1) // n_seq
    n_fitting = n_turns * per_segment  # of each kind
    assert n_fitting > 0, "there is a segment of every kind"
    W = min(n_windows, n_fitting * n_kinds)
    n_rounds = -(-W // n_kinds)
    chosen_R = np.arange(n_rounds, dtype=np.int64) * (n_fitting - 1) // max(n_rounds - 1, 1)
    turn_R, place_R = np.divmod(chosen_R, per_segment)
    segment_RK = np.add.outer(turn_R * n_kinds, np.arange(n_kinds))
    starts_RK: Tokens = segment_RK * segment + place_R[:, None] * n_seq
    return starts_RK.ravel()[:W]


def _windows(tokens: Tokens, starts_B: Tokens, n_seq: int) -> tuple[Tensor, Tensor]:
    places = starts_B[:, None] + np.arange(n_seq + 1)
    windows = torch.from_numpy(tokens[places].astype(np.int64))
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
