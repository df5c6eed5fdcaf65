"""Loss over a token stream of any length, in the memory of one chunk.

Letters: T tokens, B batch, of one row here, N sites of a chunk.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bkray.data.vocabulary import Tokens
from bkray.errors import ConfigError
from bkray.nn.lm import Carried, Prediction, check_streams
from bkray.train import measure
from bkray.train.step import token_loss_nats

Progress = Callable[[int, float], None]
"""Told behind every chunk: tokens scored so far, and their mean loss in nats."""

OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Positions ``first`` to ``last`` of the stream, counted from 1, and their mean loss."""

    first: int
    last: int
    loss_nats: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLoss:
    """What a model says of a stream."""

    loss_nats: float
    """Mean per token, added up in float64."""
    ppl: float
    n_tokens: int
    chunk: int
    passes: float
    """Times that the text was read; above 1 it was repeated from its start."""
    window: int | None
    """Sites that attention looks back over; ``None`` where the state is of the whole past."""
    seconds: float
    peak_memory_mib: float
    buckets: tuple[Bucket, ...]
    """By powers of two: 1, 2-3, 4-7 and so on."""

    @property
    def n_chunks(self) -> int:
        """Passes through the model."""
        return -(-self.n_tokens // self.chunk)

    @property
    def tokens_per_second(self) -> float:
        """Of the whole stream, reading it included."""
        return self.n_tokens / self.seconds


@torch.no_grad()
def stream_loss(
    model: nn.Module,
    tokens: Tokens,
    n_tokens: int,
    *,
    chunk: int = 4096,
    autocast: torch.autocast = OFF,
    progress: Progress | None = None,
) -> StreamLoss:
    """Score ``n_tokens`` tokens, each by all that came before it, ``chunk`` of them at a time.

    The chunk changes memory and speed alone. A text shorter than the stream is repeated from its
    start. Attention is another computation here than in training: it looks back over a window.
    The model is left in the mode it was in.

    Args:
        tokens: (T,) at least two of them; may be mapped from a file.
        progress: asked for, it waits for the device behind every chunk.

    Raises:
        ConfigError: a model that takes whole rows alone; a number out of range.
    """
    _check(model, tokens, n_tokens, chunk)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    measure.forget_peak_memory(device)
    start = time.perf_counter()
    of_bucket = _sums(_losses(model, tokens, n_tokens, chunk, autocast), n_tokens, progress)
    seconds = time.perf_counter() - start
    model.train(was_training)
    loss_nats = math.fsum(of_bucket) / n_tokens
    return StreamLoss(
        loss_nats=loss_nats,
        ppl=math.inf if loss_nats >= 700 else math.exp(loss_nats),
        n_tokens=n_tokens,
        chunk=chunk,
        passes=n_tokens / (len(tokens) - 1),
        window=_window(model),
        seconds=seconds,
        peak_memory_mib=measure.peak_memory_mib(device),
        buckets=tuple(_buckets(of_bucket, n_tokens)),
    )


def _losses(
    model: nn.Module, tokens: Tokens, n_tokens: int, chunk: int, autocast: torch.autocast
) -> Iterator[Tensor]:
    """Yield the losses of each chunk in nats, (N,) in float64."""
    device = next(model.parameters()).device
    carried: Carried | None = Carried()
    for first in range(0, n_tokens, chunk):
        inputs_BN, targets_BN = _chunk(tokens, first, min(chunk, n_tokens - first), device)
        with autocast:
            said: Prediction = model(inputs_BN, carried)
            loss_BN = token_loss_nats(said, targets_BN).double()
        carried = said.carried
        yield loss_BN[0]


def _sums(losses: Iterator[Tensor], n_tokens: int, progress: Progress | None) -> list[float]:
    """Return the sum of the losses in each bucket."""
    sums: Tensor | None = None
    done = 0
    for loss_N in losses:
        sums = loss_N.new_zeros(n_tokens.bit_length()) if sums is None else sums
        for k, part in _by_bucket(done, len(loss_N)):
            sums[k] += loss_N[part].sum()
        done += len(loss_N)
        if progress is not None:
            progress(done, float(sums.sum()) / done)
    assert sums is not None, "a stream has a token"
    told: list[float] = sums.tolist()
    return told


def _check(model: nn.Module, tokens: Tokens, n_tokens: int, chunk: int) -> None:
    check_streams(model)
    if n_tokens < 1 or chunk < 1:
        raise ConfigError(f"tokens and chunk must be at least 1, got {n_tokens} and {chunk}")
    if len(tokens) < 2:
        raise ConfigError(f"a stream needs a text of at least 2 tokens, got {len(tokens)}")


def _chunk(
    tokens: Tokens, first: int, n_sites: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets from site ``first`` on, (1, N) each; the text goes round.

    One pass over a text of T tokens has T - 1 sites: behind its last target it starts again.
    """
    site_N = np.arange(first, first + n_sites) % (len(tokens) - 1)
    sides = (tokens[site_N], tokens[site_N + 1])
    inputs_N, targets_N = (torch.from_numpy(side.astype(np.int64)).to(device) for side in sides)
    return inputs_N[None], targets_N[None]


def _by_bucket(first: int, n_sites: int) -> Iterator[tuple[int, slice]]:
    """Yield the buckets that a chunk has sites in, and which; positions count from 1."""
    begin, end = first + 1, first + n_sites + 1
    while begin < end:
        k = begin.bit_length() - 1
        behind = min(end, 2 ** (k + 1))
        yield k, slice(begin - first - 1, behind - first - 1)
        begin = behind


def _buckets(sums: list[float], n_tokens: int) -> Iterator[Bucket]:
    for k, total in enumerate(sums):
        first, last = 2**k, min(2 ** (k + 1) - 1, n_tokens)
        yield Bucket(first=first, last=last, loss_nats=total / (last - first + 1))


def _window(model: nn.Module) -> int | None:
    windows = [getattr(block.mixer, "window", None) for block in getattr(model, "blocks", ())]
    return min((window for window in windows if window is not None), default=None)
