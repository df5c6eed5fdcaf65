"""Files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder."""

import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; the folder must exist."""
    with replace(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write valid JSON: NaN and infinities, which JSON does not know, become ``null``."""
    write_text(path, json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n")


@contextmanager
def replace(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file written there becomes ``path`` at the end.

    An exception inside leaves what was there before. A killed process leaves the old file or the
    new one, and at worst a ``*.tmp`` file more.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def jsonable(value: Any) -> Any:
    """Return the same containers with ``None`` for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: jsonable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(part) for part in value]
    return value
