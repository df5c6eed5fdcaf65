"""What a trial remembers to explain a divergence, or to undo a spike, and how it is written."""

from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bkray.atomic import write_json
from bkray.train import checkpoint
from bkray.train.checkpoint import State
from bkray.train.findings import RECORD, SNAPSHOT, Record, Remembered
from bkray.train.nested import mapped

OLDEST_STEPS = 64
"""An older snapshot is renewed even while the loss spikes, so that a replay stays short."""

_REMEMBERED_STEPS = 2 * OLDEST_STEPS


@dataclass(slots=True)
class Memory:
    """The last good state, copied at the start of a window, and the last steps."""

    snapshot: State | None = None
    steps: deque[Remembered] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_STEPS))

    @property
    def snapshot_step(self) -> int:
        """Steps done when the snapshot was taken, -1 without one."""
        return -1 if self.snapshot is None else int(self.snapshot["progress"]["step"])

    @property
    def history(self) -> tuple[Remembered, ...]:
        """The last steps in order; of one that was taken again after a rewind, the latest."""
        latest = {one.step: one for one in self.steps}
        return tuple(latest[step] for step in sorted(latest))

    def keep(self, state: State) -> None:
        """Copy ``state``: it becomes the last good one."""
        self.snapshot = None  # its memory serves the new one
        self.snapshot = _copied(state)

    def copy(self) -> State:
        """Return a copy of the last good state, for an optimizer takes over what it loads."""
        assert self.snapshot is not None, "a state is kept before every window"
        return _copied(self.snapshot)


def write_record(folder: Path, record: Record, snapshot: State) -> None:
    """Write the snapshot, with the random numbers of the whole team, and the record beside it."""
    checkpoint.write(folder / SNAPSHOT, snapshot)
    write_json(folder / RECORD, asdict(record))


def _copied(state: State) -> State:
    copied: State = mapped(state, lambda tensor: tensor.detach().clone())
    return copied
