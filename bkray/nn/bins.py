"""Lengths at which rows may be cut, and which rows run together."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from bkray.errors import ConfigError

Layout = Literal["linear", "exponential"]

SHORTEST = 4
"""Fewest sites of an exponential layout: from fewer, nothing can be told."""


def length_bins(layout: Layout, n_bins: int, max_seq_len: int) -> tuple[int, ...]:
    """Return ``n_bins`` lengths in sites, growing, the last one ``max_seq_len``.

    ``linear`` is evenly spaced, ``max / bins .. max``. ``exponential`` doubles from bin to bin, or
    grows by less where it would start below ``SHORTEST`` sites.

    Raises:
        ConfigError: more bins than lengths.
    """
    if layout == "linear":
        bins = [max_seq_len * i // n_bins for i in range(1, n_bins + 1)]
    else:
        shortest = max(max_seq_len / 2 ** (n_bins - 1), min(SHORTEST, max_seq_len / n_bins))
        growth = (max_seq_len / shortest) ** (1 / max(n_bins - 1, 1))
        bins = [round(max_seq_len / growth**i) for i in reversed(range(n_bins))]
        for i in range(1, n_bins):
            bins[i] = max(bins[i], bins[i - 1] + 1)
    return checked_bins(bins, max_seq_len)


def checked_bins(bins: Sequence[int], max_seq_len: int) -> tuple[int, ...]:
    """Return the bins, growing from at least one site to ``max_seq_len``.

    Raises:
        ConfigError: they do not.
    """
    grows = all(a < b for a, b in pairwise(bins))
    if not bins or bins[0] < 1 or not grows or bins[-1] != max_seq_len:
        raise ConfigError(
            f"length bins must grow from at least 1 to max_seq_len={max_seq_len}, got "
            f"{list(bins)}: use fewer bins, or name other lengths"
        )
    return tuple(bins)


def passes(lengths: Sequence[int], price: int) -> list[list[int]]:
    """Return the rows of each pass through the layers, so that all passes together cost least.

    A pass costs ``price`` sites, and the longest of its lengths for each of its rows. Exact: the
    cheapest passes take rows that are neighbours by length, whole lengths at a time.
    """
    bins = sorted(set(lengths))
    n_rows = [sum(length <= n for length in lengths) for n in bins]  # up to that length
    best: list[tuple[int, list[int]]] = [(0, [])]  # cost, and the longest length of each pass
    for end, longest in enumerate(bins):
        options = []
        for start in range(end + 1):
            cost, before = best[start]
            rows = n_rows[end] - (n_rows[start - 1] if start else 0)
            options.append((cost + price + rows * longest, [*before, longest]))
        best.append(min(options))
    low, found = 0, []
    for longest in best[-1][1]:
        found.append([row for row, length in enumerate(lengths) if low < length <= longest])
        low = longest
    return found
