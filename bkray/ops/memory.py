"""How the C library's allocator treats what torch frees, and how much the machine has free."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Options of glibc's ``mallopt``."""
THRESHOLD_BYTES, MOST_MAPPED = 128 * 2**10, 65536
"""Their defaults: what is larger is a mapping of its own, and how many of them there may be."""
MOST_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Keep freed memory for the next tensor, for the rest of this process; glibc alone.

    By default glibc hands every freed block above 32 MiB back to the kernel, and the next tensor
    of that size pays for each of its pages again. The process stays as large as it ever was.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, MOST_BYTES)


def give_freed_memory_back() -> None:
    """Return to the kernel what was kept, as between two trials of one process."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@contextmanager
def freed_memory_given_back() -> Iterator[None]:
    """Hand freed memory back at once, so that the process is as large as what lives in it.

    Where freed memory is kept, holes between what lives make a process up to 1.4 times as large;
    a peak that an estimate is held against is measured in here. Afterwards it is kept again.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_MMAP_MAX, MOST_MAPPED)
        libc.mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, THRESHOLD_BYTES)
        libc.malloc_trim(0)
    try:
        yield
    finally:
        keep_freed_memory()


def available_bytes() -> int:
    """Return what this process may still take: free memory, within the limit of its container.

    Linux: what the kernel calls available, and at most what the control group's ``memory.max``
    leaves; elsewhere all physical memory.
    """
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    line = next(x for x in meminfo.read_text().splitlines() if x.startswith("MemAvailable"))
    free = int(line.split()[1]) * 2**10
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no limit to be read
        return free
    return free if limit == "max" else min(free, max(int(limit) - used, 0))


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
