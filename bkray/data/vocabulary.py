"""Vocabularies: text to token numbers and back, as bytes or as whitespace words."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[Any]
"""One-dimensional, of the smallest of uint8, uint16 and int32 that holds the vocabulary."""

UNKNOWN = "<unk>"
LINE_END = "<eos>"


class Vocabulary(Protocol):
    """Tokens are the whole numbers below ``size``; ``fingerprint`` is equal for equal meanings."""

    @property
    def size(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: bytes) -> Tokens: ...

    def decode(self, tokens: Tokens) -> bytes: ...


class ByteVocabulary:
    """The 256 bytes: nothing is unknown, and ``decode`` gives the text back exactly."""

    size = 256
    fingerprint = "bytes"

    def encode(self, text: bytes) -> Tokens:
        return np.frombuffer(text, dtype=np.uint8)

    def decode(self, tokens: Tokens) -> bytes:
        return tokens.astype(np.uint8).tobytes()


class WordVocabulary:
    """Words between ASCII whitespace; each line ends as ``<eos>``; the first word is ``<unk>``.

    ``decode`` gives the text back with single spaces, and ``<unk>`` for what is unknown.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self.words = (UNKNOWN, *known)
        self._tokens = {word.encode(): token for token, word in enumerate(self.words)}

    @property
    def size(self) -> int:
        return len(self.words)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def encode(self, text: bytes) -> Tokens:
        token_of = self._tokens
        return np.fromiter((token_of.get(word, 0) for word in words(text)), _dtype(self.size))

    def decode(self, tokens: Tokens) -> bytes:
        known = (self.words[token] for token in tokens)
        said = "".join("\n" if word == LINE_END else f"{word} " for word in known)
        return said.replace(" \n", "\n").removesuffix(" ").encode()


def most_frequent_words(text: bytes, vocab_size: int) -> WordVocabulary:
    """Return ``<unk>`` and the ``vocab_size - 1`` most frequent words; equals go by the alphabet.

    Smaller where the text has fewer words. A ``<unk>`` in the text is the unknown word itself.
    """
    counts = Counter(words(text))
    counts.pop(UNKNOWN.encode(), None)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return WordVocabulary(word.decode() for word, _ in ranked[: vocab_size - 1])


def words(text: bytes) -> Iterator[bytes]:
    """Yield the words between ASCII whitespace, and ``<eos>`` for each end of a line."""
    line_end = LINE_END.encode()
    for line in io.BytesIO(text):
        yield from line.split()
        if line.endswith(b"\n"):
            yield line_end


def _dtype(size: int) -> type[np.integer[Any]]:
    if size <= 2**8:
        return np.uint8
    return np.uint16 if size <= 2**16 else np.int32
