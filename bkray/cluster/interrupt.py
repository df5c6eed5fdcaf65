"""Ctrl-C and a request to terminate: the first one asks, the second one acts."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The terminal's, and that of a job that is stopped (``ray job stop``, a batch system)."""

_STOPPING = b"stopping; press again to quit at once\n"


@contextmanager
def on_interrupt(ask_to_stop: Callable[[str], None]) -> Iterator[None]:
    """Call ``ask_to_stop`` with ``ctrl-c`` or ``terminated`` at the first signal, and say so; the
    second does what it always does.

    Only the main thread can take signals; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def first(number: int, frame: FrameType | None) -> None:
        restore()
        os.write(2, _STOPPING)  # print() cannot be interrupted by itself
        ask_to_stop("ctrl-c" if number == signal.SIGINT else "terminated")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _SIGNALS:
        signal.signal(number, first)
    try:
        yield
    finally:
        restore()
