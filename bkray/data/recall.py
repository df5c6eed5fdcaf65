"""Long-range recall with a known answer: a key and its value, and the key again far behind.

A block for distance D is ``n`` facts ``=kv`` with ``n`` different keys, noise up to D bytes, and
the facts once more as questions ``?kv`` in the same order: the value behind ``?k`` is the answer,
D bytes behind its first mention. A segment is made of blocks of one distance, its kind.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bkray.data.corpus import Corpus
from bkray.data.vocabulary import Tokens

SEED = 20261121
SHORTEST = 4
"""Least distance, in bytes; the others are its doubles."""
KEYS, VALUES, NOISE = b"ABCDEFGHIJKLMNOP", b"0123456789uvwxyz", b"abcdefgh"
FACT, QUESTION = b"=", b"?"
MOST_FACTS = 8
"""In a block: as many as may have to be kept in mind at once."""
BYTES = {"train": 2**22, "valid": 2**19, "test": 2**19}
"""Of each split about, and at least one segment of every distance."""

Bytes = npt.NDArray[np.uint8]

ANSWER_NATS = math.log(len(VALUES))
"""Entropy of an answer whose first mention is out of sight."""


def recall(longest: int) -> Corpus:
    """Return the corpus with distances from ``SHORTEST`` to ``longest``, a power of two.

    Segments are one byte longer than two times the longest distance.
    """
    distances = distances_to(longest)
    segment = 2 * longest + 1
    texts = {}
    for place, (split, n_bytes) in enumerate(BYTES.items()):
        generator = np.random.default_rng([SEED, longest, place])
        n_turns = max(1, n_bytes // (segment * len(distances)))
        of_each = [_segments(distance, n_turns, segment, generator) for distance in distances]
        texts[split] = np.stack(of_each, axis=1).tobytes()
    return Corpus(
        name="recall",
        source=f"segments of {segment} bytes: values asked for again {SHORTEST} to {longest} "
        f"bytes behind their first mention, one distance a segment, seed {SEED}",
        texts=texts,
        segment=segment,
        kinds=tuple(f"distance_{distance}" for distance in distances),
    )


def distances_to(longest: int) -> list[int]:
    """Return the powers of two from ``SHORTEST`` to ``longest``."""
    return [2**i for i in range(SHORTEST.bit_length() - 1, longest.bit_length())]


def answer_nats(distance: int, context: int) -> float:
    """Return the entropy of an answer for a reader of the last ``context`` bytes before it.

    0 where its first mention is among them: the reader knows the rule. One that goes by the key
    rather than by the distance needs a byte more.
    """
    return 0.0 if context >= distance else ANSWER_NATS


def answers(tokens: Tokens) -> npt.NDArray[np.int64]:
    """Return the places of all answers in a stretch of the corpus, in bytes from its beginning."""
    return np.flatnonzero(tokens[:-2] == ord(QUESTION)) + 2


def answer_windows(
    tokens: Tokens, n_seq: int, n_windows: int, *, segment: int, kinds: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return windows of each kind whose last target is an answer, which differs from one to the
    next: inputs and targets, both int64 (W, N), drawn at random and always the same.

    N is ``n_seq``, or less where the answers do not lie as deep in their segments; W is
    ``n_windows``, or as many as there are answers with such a past.
    """
    n_turns = len(tokens) // (segment * len(kinds))
    of_all = tokens[: n_turns * len(kinds) * segment].reshape(n_turns, len(kinds), segment)
    found = {}
    for turn, kind in enumerate(kinds):
        of_kind = of_all[:, turn]
        places = answers(of_kind[0])  # the same in every segment of a kind
        n_deepest = max(MOST_FACTS, -(-n_windows // n_turns))
        n_sites = min(n_seq, int(places[-n_deepest:][0]))
        deep = places[places >= n_sites]
        order = np.random.default_rng([SEED, turn]).permutation(n_turns * len(deep))
        segment_W, place_W = np.divmod(order[:n_windows], len(deep))
        sites = (deep[place_W] - n_sites)[:, None] + np.arange(n_sites + 1)
        rows = torch.from_numpy(of_kind[segment_W[:, None], sites].astype(np.int64))
        found[kind] = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    return found


def _segments(
    distance: int, n_segments: int, n_bytes: int, generator: np.random.Generator
) -> Bytes:
    """Return segments of one distance, (S, n_bytes), each from the beginning of a block."""
    n_facts = min(MOST_FACTS, distance // 4)
    n_blocks = -(-n_bytes // (distance + 3 * n_facts))  # of a segment; the last one is cut
    shape = (n_segments * n_blocks, n_facts)
    order = generator.random((shape[0], len(KEYS))).argsort(axis=1)[:, :n_facts]
    keys = _letters(KEYS)[order]
    values = _letters(VALUES)[generator.integers(len(VALUES), size=shape)]
    n_noise = distance - 3 * n_facts
    noise = _letters(NOISE)[generator.integers(len(NOISE), size=(shape[0], n_noise))]
    facts, questions = (
        np.stack([np.full(shape, ord(mark), np.uint8), keys, values], axis=2).reshape(shape[0], -1)
        for mark in (FACT, QUESTION)
    )
    blocks = np.concatenate([facts, noise, questions], axis=1)
    return blocks.reshape(n_segments, -1)[:, :n_bytes]


def _letters(alphabet: bytes) -> Bytes:
    return np.frombuffer(alphabet, dtype=np.uint8)
