"""Training batches of growing length, one ``Batches`` after another."""

from collections.abc import Mapping, Sequence
from typing import Self

from torch import Tensor

from bkray.data.batches import Batches


class Climb:
    """Batches of the first part until its share is taken, then those of the next one.

    Args:
        parts: batches, and how many of them are taken; the last part is endless.
    """

    def __init__(self, parts: Sequence[tuple[Batches, int]]) -> None:
        self._parts = parts
        self._part = self._taken = 0
        self.last_taken: tuple[dict[str, int], tuple[int, ...]] = {}, ()
        """As for ``Batches``."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, both int64 (B, N)."""
        if self._taken == self._parts[self._part][1] and self._part < len(self._parts) - 1:
            self._part, self._taken = self._part + 1, 0
        before = self.state()
        batches = self._parts[self._part][0]
        pair = next(batches)
        self._taken += 1
        self.last_taken = before, batches.last_taken[1]
        return pair

    def state(self) -> dict[str, int]:
        """Return the place in the data, for ``restore`` of an equal ``Climb``."""
        place = {"part": self._part, "taken": self._taken}
        return {**place, **self._parts[self._part][0].state()}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on where ``state`` was taken."""
        self._part, self._taken = state["part"], state["taken"]
        self._parts[self._part][0].restore(state)
