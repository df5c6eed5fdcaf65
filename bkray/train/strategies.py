"""Ways to read rows longer than those of training: what is said of each token, and of the row.

A strategy reads a row in windows, each by itself from position 0, and pools what they say.

* ``extrapolate`` (and ``retrain``, its name for a model of that length): one window, the row.
* ``truncate``: the row is cut into blocks of the train length. A token sees the tokens of its
  block alone, so the first behind a border sees none. As an embedding only the first block is
  kept, which is what truncation means there: the last token that counts ends the first block.
* ``sliding_window``: windows of the train length that overlap; a token is answered by the window
  in which it has most context, a row by the last window's last token.
* ``sliding_window_mean``, ``_max``: a token's log-probabilities are the mean or the maximum over
  all windows that contain it, normalised again; a row's embedding is that of its windows' last
  tokens, channel by channel.

Every strategy answers every token: they are scored on the same ones. All of them are causal.
Letters: B rows, N sites, W windows, L sites of a window, V vocabulary, D width, C channels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

Span = tuple[int, int]
"""First site of a window, and the one behind its last."""


class Reading(NamedTuple):
    """What a strategy makes of rows."""

    log_p_BNV: Tensor
    """Of the token after each site; in float32 at least."""
    state_BND: Tensor
    """Last hidden states, as the head reads them, pooled like the log-probabilities."""


def spans(strategy: str, n_sites: int, n_train: int, stride: int) -> list[Span]:
    """Return the windows of a row, all of one length.

    Args:
        n_sites: of the row, a multiple of ``n_train``.
        stride: by how many sites a sliding window moves, 1 to ``n_train``.
    """
    if strategy in ("extrapolate", "retrain"):
        return [(0, n_sites)]
    last, step = n_sites - n_train, n_train if strategy == "truncate" else stride
    return [(start, start + n_train) for start in (*range(0, last, step), last)]


def pooling(strategy: str) -> str:
    """Return ``mean`` or ``max``, or ``none`` where one window answers."""
    named = strategy.removeprefix("sliding_window_")
    return named if named in ("mean", "max") else "none"


@torch.no_grad()
def read(model: nn.Module, tokens_BN: Tensor, windows: Sequence[Span], pool: str) -> Reading:
    """Return what the windows say of every token; the model is in evaluation mode.

    Args:
        windows: by rising start; together they cover the row.
        pool: ``none``, ``mean`` or ``max``.
    """
    n_sites = tokens_BN.shape[1]
    with _seen_by_head(model) as seen:
        logits = model(_cut(tokens_BN, windows)).logits_BNV
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    log_p_BNV, state_BND = (
        _pooled(part.unflatten(0, (len(tokens_BN), -1)), windows, n_sites, pool)
        for part in (log_p, seen[-1])
    )
    return Reading(log_p_BNV if pool == "none" else log_p_BNV.log_softmax(-1), state_BND)


@torch.no_grad()
def last_states(model: nn.Module, tokens_BN: Tensor, windows: Sequence[Span]) -> Tensor:
    """Return the last hidden state of each window's last token, (B, W, D)."""
    with _seen_by_head(model) as seen:
        model(_cut(tokens_BN, windows))
    last_ED = seen[-1][:, -1]
    return last_ED.view(len(tokens_BN), len(windows), -1)


def embedding(state_BWD: Tensor, pool: str) -> Tensor:
    """Return the embedding of each row from the last states of its windows, (B, D)."""
    if pool == "none":
        return state_BWD[:, -1]
    return state_BWD.mean(1) if pool == "mean" else state_BWD.amax(1)


def _cut(tokens_BN: Tensor, windows: Sequence[Span]) -> Tensor:
    """Return all windows as rows, (B W, L)."""
    return torch.stack([tokens_BN[:, first:end] for first, end in windows], 1).flatten(0, 1)


def _pooled(part_BWLC: Tensor, windows: Sequence[Span], n_sites: int, pool: str) -> Tensor:
    B, W, _, C = part_BWLC.shape
    start = -torch.inf if pool == "max" else 0.0
    pooled_BNC = part_BWLC.new_full((B, n_sites, C), start)
    count_N1 = part_BWLC.new_zeros(n_sites, 1)
    for w in reversed(range(W)):  # the earliest window with a token has most context: it is last
        first, end = windows[w]
        own, part = pooled_BNC[:, first:end], part_BWLC[:, w]
        count_N1[first:end] += 1
        own.copy_({"none": part, "mean": own + part, "max": torch.maximum(own, part)}[pool])
    return pooled_BNC / count_N1 if pool == "mean" else pooled_BNC


@contextmanager
def _seen_by_head(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that fills with what the head is given."""
    seen: list[Tensor] = []
    head = model.head
    assert isinstance(head, nn.Module)
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()
