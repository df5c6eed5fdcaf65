"""Long documents of Python's own library, kept whole: text whose beginning matters far behind it.

A document is a package, all of its modules in the order of their paths, or a module that is long
enough alone. It is cut into segments of the longest training context and one more byte, so a
window of any context lies within one document.
"""

import platform
from collections.abc import Mapping

from bkray.data.corpus import Corpus
from bkray.errors import DataError

SEGMENT = 131_073
"""Bytes: 131,072 inputs and their targets."""

_PLACES = {"train": (0, 1, 2, 3), "valid": (4,), "test": (5,)}
"""Of every six documents by falling length, who goes where: no document is in two splits."""


def whole_documents(modules: Mapping[str, bytes]) -> Corpus:
    """Return the corpus of ``modules``, text by path; what is shorter than a segment is left out.

    That also holds for the rest behind the last whole segment of a document.

    Raises:
        DataError: fewer than six documents are as long as a segment.
    """
    by_name: dict[str, bytes] = {}
    for path in sorted(modules):
        name = path.partition("/")[0]
        by_name[name] = by_name.get(name, b"") + modules[path]
    long = sorted(
        (text for text in by_name.values() if len(text) >= SEGMENT), key=len, reverse=True
    )
    n_turns = max(max(places) for places in _PLACES.values()) + 1
    if len(long) < n_turns:
        raise DataError(
            f"data.corpus=documents needs {n_turns} documents of {SEGMENT} bytes, but this "
            f"Python's library has {len(long)}: use another data.corpus"
        )
    texts = {
        split: b"".join(
            text[: len(text) // SEGMENT * SEGMENT]
            for place, text in enumerate(long)
            if place % n_turns in places
        )
        for split, places in _PLACES.items()
    }
    return Corpus(
        name="documents",
        source=f"{len(long)} packages and modules of the library of Python "
        f"{platform.python_version()}, {len(long[-1])} to {len(long[0])} bytes long, each in "
        f"segments of {SEGMENT} bytes",
        texts=texts,
        segment=SEGMENT,
    )
