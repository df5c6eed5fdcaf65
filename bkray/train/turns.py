"""The steps of several workers, taken by one process: the rows of one worker after the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bkray.train.checkpoint import RngState
from bkray.train.run import Run


@contextmanager
def taking_turns(run: Run, rng: Sequence[RngState]) -> Iterator[None]:
    """Let one process compute every worker's share of a part, with that worker's own state.

    ``rng`` are the random numbers of the workers, by rank; the trial's ``split`` has been
    multiplied by their number.
    """
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
