"""What knobs of a trained model would give, computed from tables of losses instead of passes.

Letters: E examples, N candidate lengths, K chosen ones, C sets of them, S tokens, L layers,
T levels, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bkray.errors import ConfigError

EXHAUSTIVE_CANDIDATES = 16
"""Up to so many lengths all sets are tried."""

EXAMPLES_AT_ONCE = 4
"""Their smallest costs in all sets of 16 lengths take 2 MiB, which stays in a cache."""


class Bins(NamedTuple):
    """A set of lengths, and which of them each example takes."""

    lengths: tuple[int, ...]
    """Sites, growing."""
    chosen_E: Tensor
    """Column of the table."""
    is_exhaustive: bool
    """Whether all sets were tried; else greedy with swaps, which may miss the best one."""


def best_bins(table_EN: Tensor, lengths: Sequence[int], k: int, price: float) -> Bins:
    """Return the ``k`` lengths with the least mean cost where every example takes its own best.

    The cost of an example at a length is ``loss + price * n / max(lengths)``. Which length is best
    is known from the loss itself, so this is what a perfect predictor would reach.

    Args:
        table_EN: loss of every example at every length, nats per token.
        lengths: sites, growing.
        k: from 1 to N.
        price: nats per token that the longest length costs more than none.

    Raises:
        ConfigError: ``k`` is out of range.
    """
    return best_bins_of_each(table_EN, lengths, [k], price)[0]


def best_bins_of_each(
    table_EN: Tensor, lengths: Sequence[int], ks: Sequence[int], price: float
) -> list[Bins]:
    """Return ``best_bins`` for several ``k``, which cost hardly more than one.

    Raises:
        ConfigError: a ``k`` is out of range.
    """
    for k in ks:
        if not 1 <= k <= len(lengths):
            raise ConfigError(f"the bins to choose must be 1 to {len(lengths)}, got {k}")
    share_N = torch.tensor(lengths, dtype=table_EN.dtype, device=table_EN.device) / max(lengths)
    cost_EN = table_EN + price * share_N
    is_exhaustive = len(lengths) <= EXHAUSTIVE_CANDIDATES
    if is_exhaustive:
        found = exhaustive(cost_EN, ks)
    else:
        found = [greedy_with_swaps(cost_EN, k) for k in ks]
    bins = []
    for columns in found:
        columns_K = torch.tensor(columns, device=table_EN.device)
        chosen_E = columns_K[cost_EN[:, columns_K].argmin(1)]
        bins.append(Bins(tuple(lengths[c] for c in columns), chosen_E, is_exhaustive))
    return bins


def exhaustive(cost_EN: Tensor, ks: Sequence[int]) -> list[tuple[int, ...]]:
    """Return for each ``k`` the columns whose smallest entries have the least mean, of all sets.

    The sets are numbered: bit ``n`` says whether column ``n`` is in. With each column the sets
    known so far come again with it, so all ``2^N`` of them cost one minimum each.
    """
    total_C = cost_EN.new_zeros(2 ** cost_EN.shape[1])
    for part_EN in torch.split(cost_EN, EXAMPLES_AT_ONCE):
        least_EC = cost_EN.new_full((len(part_EN), 1), math.inf)
        for column_E in part_EN.unbind(1):
            least_EC = torch.cat([least_EC, torch.minimum(least_EC, column_E[:, None])], dim=1)
        total_C += least_EC.sum(0)
    members_C = torch.zeros(1, dtype=torch.long, device=cost_EN.device)
    for _ in range(cost_EN.shape[1]):
        members_C = torch.cat([members_C, members_C + 1])
    best = [int(total_C.masked_fill(members_C != k, math.inf).argmin()) for k in ks]
    return [tuple(n for n in range(cost_EN.shape[1]) if one >> n & 1) for one in best]


def greedy_with_swaps(cost_EN: Tensor, k: int) -> tuple[int, ...]:
    """Return ``k`` columns that no exchange of one for another improves.

    From every first column on, the one that helps most is added until there are ``k``; then one is
    exchanged at a time, as long as that helps. The best of these N searches counts.
    """
    found = [_climb(cost_EN, _grow(cost_EN, [first], k)) for first in range(cost_EN.shape[1])]
    best = min(found, key=lambda columns: _mean(cost_EN, columns))
    return tuple(sorted(best))


def _grow(cost_EN: Tensor, columns: list[int], k: int) -> list[int]:
    while len(columns) < k:
        columns = [*columns, _most_helpful(cost_EN, columns)]
    return columns


def _climb(cost_EN: Tensor, columns: list[int]) -> list[int]:
    while True:
        rests = [[c for c in columns if c != out] for out in columns]
        swapped = [[*rest, _most_helpful(cost_EN, rest)] for rest in rests]
        best = min(swapped, key=lambda other: _mean(cost_EN, other))
        if _mean(cost_EN, best) >= _mean(cost_EN, columns):
            return columns
        columns = best


def _most_helpful(cost_EN: Tensor, columns: Sequence[int]) -> int:
    """Return the column that lowers the mean most beside ``columns``, none of them."""
    least_E = cost_EN.new_full((len(cost_EN),), math.inf)
    if columns:
        least_E = cost_EN[:, list(columns)].amin(1)
    mean_N = torch.minimum(cost_EN, least_E[:, None]).mean(0)
    mean_N[list(columns)] = math.inf
    return int(mean_N.argmin())


def _mean(cost_EN: Tensor, columns: Sequence[int]) -> float:
    return float(cost_EN[:, list(columns)].amin(1).mean())


def stop_curve(score_SL: Tensor, loss_SL: Tensor, levels_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean layers run and mean loss in nats at every level, (T,) each.

    A token stops at the first layer whose score reaches the level, and always at the last one.
    Its loss depends on the level through that layer alone, so one sort serves all levels:
    O(S L log T).

    Args:
        score_SL: finite, (S, L - 1).
        loss_SL: nats of each token if it stopped at each layer, (S, L).
    """
    growing_T, order_T = levels_T.sort()
    # A token goes past layer l at every level above the largest score up to there.
    first_SL = torch.searchsorted(growing_T, score_SL.cummax(1).values.contiguous(), right=True)
    n_levels, n_tokens = len(levels_T), len(loss_SL)
    going_on_F, dearer_F = first_SL.flatten(), loss_SL.diff(dim=1).flatten()
    passed_T = going_on_F.bincount(minlength=n_levels + 1)[:n_levels].cumsum(0)
    added_T = going_on_F.bincount(dearer_F, minlength=n_levels + 1)[:n_levels].cumsum(0)
    layers_T, loss_T = torch.empty_like(added_T), torch.empty_like(added_T)
    layers_T[order_T] = 1 + passed_T.to(added_T.dtype) / n_tokens
    loss_T[order_T] = loss_SL[:, 0].mean() + added_T / n_tokens
    return layers_T, loss_T
