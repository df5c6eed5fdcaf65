"""Files that one process at a time holds; the kernel frees them when it dies, however it dies."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.1


class HeldElsewhereError(Exception):
    """Another process holds the file."""


@contextmanager
def held(
    path: Path,
    text: str = "",
    *,
    patience_seconds: float = 0.0,
    wanted: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Hold ``path``, with ``text`` in it, and remove it afterwards.

    Raises:
        HeldElsewhereError: another process still holds it after so long, or when it is not
            ``wanted`` any more.
    """
    deadline = time.monotonic() + patience_seconds
    while (descriptor := _take(path)) is None:
        if time.monotonic() >= deadline or not wanted():
            raise HeldElsewhereError(path)
        time.sleep(_POLL_SECONDS)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(path: Path) -> int | None:
    """Return the locked file's descriptor, ``None`` where it is held or was just removed."""
    descriptor, is_ours = os.open(path, os.O_RDWR | os.O_CREAT, 0o644), False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = path.stat().st_ino == os.fstat(descriptor).st_ino
    except (BlockingIOError, FileNotFoundError):
        return None
    finally:  # on an error that is no answer too
        if not is_ours:
            os.close(descriptor)
    return descriptor if is_ours else None
