"""What a sweep says when its files find no room."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bkray.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SQLITE_SAYS = "database or disk is full"


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Turn any error that comes of a full disk into one that says how to go on with the sweep.

    Raises:
        StorageError: there is no room left.
    """
    try:
        yield
    except Exception as error:
        if not _no_room(error):
            raise
        raise StorageError(
            f"disk full: {_first_line(error)}; what was written stays readable: free some space, "
            f"then bkray resume {folder}"
        ) from error


def _no_room(error: BaseException) -> bool:
    """Return whether a full disk is at the bottom of an error."""
    seen: BaseException | None = error
    while seen is not None:
        full = isinstance(seen, OSError) and seen.errno in _FULL
        if full or isinstance(seen, StorageError) or _SQLITE_SAYS in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
