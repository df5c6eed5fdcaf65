"""Word that this process is about to lose its node, so that its trial ends with a checkpoint.

Clouds give spot machines a notice of seconds to minutes. It reaches a trial as SIGTERM to its
process, or as Ray's mark that the node is being drained.
"""

import signal
import threading
from collections.abc import Callable

from bkray.train.run import Ending

PREEMPTED = "its node is taken away"
"""Why such a trial ended: it is handed out again, and that costs none of its tries."""
_POLL_SECONDS = 2.0


class Notice:
    """Whether this process was told to leave; one per process, for it never comes back."""

    def __init__(self) -> None:
        self._given = threading.Event()
        self._watched = False

    @property
    def given(self) -> bool:
        return self._given.is_set()

    def give(self) -> None:
        self._given.set()

    def listen(self, is_drained: Callable[[], bool]) -> None:
        """Take SIGTERM as a notice, and look now and then whether the node is being drained.

        SIGTERM otherwise ends a Ray worker at once. Called again it does nothing.

        Raises:
            ValueError: not in the main thread, which alone can take signals.
        """
        if self._watched:
            return
        signal.signal(signal.SIGTERM, lambda number, frame: self.give())
        threading.Thread(target=self._watch, args=(is_drained,), daemon=True).start()
        self._watched = True

    def _watch(self, is_drained: Callable[[], bool]) -> None:
        while not self._given.wait(_POLL_SECONDS):
            if is_drained():
                self.give()


NOTICE = Notice()


def preempted() -> Ending | None:
    """Return why the trial in this process is to end, if it was told to leave."""
    return Ending("interrupted", PREEMPTED) if NOTICE.given else None
