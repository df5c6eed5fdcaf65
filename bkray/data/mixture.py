"""A fixed mixture of what is easy, real and hopeless to predict, told apart by kind.

A third each of periodic patterns, text of Python's own library and uniform bytes, in segments of
one kind that take turns.
"""

import platform

import numpy as np

from bkray.data.corpus import Corpus
from bkray.errors import DataError

SEED = 20261121
SEGMENT = 1025
"""Bytes: 1,024 inputs and their targets."""
KINDS = ("patterns", "text", "uniform")
PER_KIND = {"train": 400, "valid": 64, "test": 64}
"""Segments of each kind."""

_PERIODS = (2, 8)
_ALPHABET = 8  # bytes to draw a pattern from, with repeats: one byte alone says not what follows


def mixture(library: Corpus) -> Corpus:
    """Return the mixture; its text in each split is spread evenly over that of ``library``.

    Raises:
        DataError: a split of the library is too short for segments that do not overlap.
    """
    texts = {
        split: _mixed(library.text(split), split, n_turns, np.random.default_rng([SEED, place]))
        for place, (split, n_turns) in enumerate(PER_KIND.items())
    }
    return Corpus(
        name="mixture",
        source=f"segments of {SEGMENT} bytes: {', '.join(KINDS)} in turn; text from the library "
        f"of Python {platform.python_version()}, seed {SEED}",
        texts=texts,
        segment=SEGMENT,
        kinds=KINDS,
    )


def _mixed(text: bytes, split: str, n_turns: int, generator: np.random.Generator) -> bytes:
    if len(text) < n_turns * SEGMENT:
        raise DataError(
            f"data.corpus=mixture needs {n_turns * SEGMENT} bytes of text for its {split} split, "
            f"but this Python's library gives {len(text)}: use another data.corpus"
        )
    segments: list[bytes] = []
    for turn in range(n_turns):
        start = turn * (len(text) - SEGMENT) // (n_turns - 1)
        segments += [
            _pattern(generator),
            text[start : start + SEGMENT],
            generator.bytes(SEGMENT),
        ]
    return b"".join(segments)


def _pattern(generator: np.random.Generator) -> bytes:
    """Return a segment of one new pattern, which has no shorter period than its own."""
    period = int(generator.integers(_PERIODS[0], _PERIODS[1], endpoint=True))
    alphabet = generator.choice(256, _ALPHABET, replace=False).astype(np.uint8)
    pattern = alphabet[:0]
    while any(np.array_equal(pattern, np.roll(pattern, by)) for by in range(1, period)):
        pattern = generator.choice(alphabet, period)
    return np.resize(pattern, SEGMENT).tobytes()
