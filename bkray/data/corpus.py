"""What a corpus is: bytes by split, as running text or as segments of several kinds."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from bkray.data.vocabulary import Tokens
from bkray.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Text by split. ``source`` says in one sentence what it is and how it was split.

    A corpus may be made of segments, ``segment`` bytes each, and these of several ``kinds``, which
    take turns: segment ``i`` is of ``kinds[i % len(kinds)]``. Running text has neither.
    """

    name: str
    source: str
    texts: Mapping[str, bytes]
    segment: int | None = None
    kinds: tuple[str, ...] = ()

    def text(self, split: str) -> bytes:
        """Return the bytes of ``train``, ``valid`` or ``test``: UTF-8 text, unless of segments.

        Raises:
            DataError: the corpus has no such split.
        """
        if split not in self.texts:
            raise DataError(
                f"corpus {self.name} has no {split} split ({self.source}): "
                f"use one of {', '.join(self.texts)}"
            )
        return self.texts[split]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the text of every split, in hex; names and places do not enter."""
        digest = hashlib.sha256()
        for split in self.texts:
            digest.update(f"{split} {len(self.texts[split])}\n".encode())
            digest.update(self.texts[split])
        return digest.hexdigest()


def check_length(tokens: Tokens, n_seq: int, split: str, segment: int | None = None) -> None:
    """Raise ``DataError`` unless one window of ``n_seq`` inputs and targets fits."""
    if segment is not None and n_seq >= segment:
        raise DataError(
            f"model.n_seq={n_seq} does not fit in this corpus, whose segments have {segment} "
            f"tokens: use at most {segment - 1}, or another data.corpus"
        )
    if len(tokens) < n_seq + 1:
        raise DataError(
            f"too little text: the {split} split has {len(tokens)} tokens, but one window of "
            f"model.n_seq={n_seq} needs {n_seq + 1}; give more text or lower model.n_seq"
        )
