"""How long the items of a file are, and what a greatest length would cut off."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bkray.data.reading import read_text
from bkray.data.vocabulary import words
from bkray.errors import ConfigError, DataError

FINE, TOO_MUCH = 0.05, 0.20
"""Shares of items truncated: below the first nothing is to be done, above the second a lot."""

Count = Callable[[str], int]
"""Text to the number of its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of ``n_items``, in tokens. ``p95`` is the least length that 95% of the items do not exceed;
    ``share_truncated`` is of the items longer than ``max_length``, ``share_cut`` of all tokens
    those that lie behind it."""

    n_items: int
    mean: float
    median: float
    p95: int
    max: int
    max_length: int
    share_truncated: float
    share_cut: float

    @property
    def advice(self) -> str:
        """What to do about it."""
        if self.share_truncated < FINE:
            return "fine: few items are truncated"
        if self.share_truncated <= TOO_MUCH:
            return "use a sliding window, or look at what is cut before you truncate"
        return "retrain longer: too many items lose their ends"


def lengths(texts: Iterable[str], max_length: int, count: Count) -> Lengths:
    """Return how long the texts are; no more is kept than how often each length occurs.

    Raises:
        ConfigError: ``max_length`` below 1.
        DataError: there is no text.
    """
    if max_length < 1:
        raise ConfigError(f"--max-length must be at least 1, got {max_length}")
    seen = Counter(map(count, texts))
    n_items = seen.total()
    if not n_items:
        raise DataError("there is no text to measure: the file has no items")
    n_tokens = sum(length * times for length, times in seen.items())
    n_cut = sum((n - max_length) * times for n, times in seen.items() if n > max_length)
    return Lengths(
        n_items=n_items,
        mean=n_tokens / n_items,
        median=(_at(seen, (n_items + 1) // 2) + _at(seen, n_items // 2 + 1)) / 2,
        p95=_at(seen, math.ceil(0.95 * n_items)),
        max=max(seen),
        max_length=max_length,
        share_truncated=sum(times for n, times in seen.items() if n > max_length) / n_items,
        share_cut=n_cut / n_tokens if n_tokens else 0.0,
    )


def counter(tokenizer: str) -> Count:
    """Return what counts tokens: ``bytes``, ``words`` (as ``data.tokenizer=words`` has them, a
    line end is one too), or a file with a piece a line, into the longest of which text is cut.

    Raises:
        DataError: neither a name nor a text file with pieces.
    """
    if tokenizer == "bytes":
        return lambda text: len(_utf8(text))
    if tokenizer == "words":
        return lambda text: sum(1 for _ in words(_utf8(text)))
    if not Path(tokenizer).is_file():
        raise DataError(
            f"--tokenizer must be bytes, words or a file with a piece a line, got {tokenizer!r}"
        )
    pieces = {piece for piece in read_text(Path(tokenizer)).decode().splitlines() if piece}
    if not pieces:
        raise DataError(f"the tokenizer {tokenizer} has no pieces: it holds one a line")
    longest = max(map(len, pieces))
    return lambda text: _n_pieces(text, pieces, longest)


def _n_pieces(text: str, pieces: set[str], longest: int) -> int:
    """Return into how many pieces the text falls, the longest first; a character that begins none
    is as many as it has bytes."""
    at = n_pieces = 0
    while at < len(text):
        ends = range(min(at + longest, len(text)), at, -1)
        end = next((end for end in ends if text[at:end] in pieces), None)
        n_pieces += 1 if end is not None else len(_utf8(text[at]))
        at = at + 1 if end is None else end
    return n_pieces


def _utf8(text: str) -> bytes:
    """Return the bytes; half a surrogate pair, which JSON may hold, is three."""
    return text.encode(errors="surrogatepass")


def _at(seen: Counter[int], rank: int) -> int:
    """Return the length at a rank from 1, the shortest first."""
    so_far = 0
    for length in sorted(seen):
        so_far += seen[length]
        if so_far >= rank:
            return length
    raise AssertionError("a rank is at most the number of items")
