"""What a sweep may spend: time on the clock from its start, and GPU-hours over all its starts."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bkray.atomic import write_json

TIME_IS_UP = "time budget"
GPU_HOURS_ARE_UP = "GPU-hour budget"
GRACE_SECONDS = 45.0
"""Between a budget and the end of trials by force: with that, all is over within a minute."""
_NAME = "gpu_hours.json"
_WRITE_SECONDS = 10.0
"""How much of each trial's time a killed driver may forget."""
_HOUR = 3600.0


class Budget:
    """A clock and a meter. ``deadline`` is seconds since the epoch.

    A trial's GPUs count from its start to its end, whatever it does with them, also in earlier
    runs of the sweep: the hours are kept in ``gpu_hours.json`` of the sweep's folder.

    Args:
        max_gpu_hours: of all trials of the sweep together.
        grace_seconds: what trials have to end by themselves once a budget is reached.
    """

    def __init__(
        self,
        folder: Path,
        *,
        deadline: float | None = None,
        max_gpu_hours: float | None = None,
        grace_seconds: float = GRACE_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.deadline = deadline
        self._path = folder / _NAME
        self._max_gpu_hours = max_gpu_hours
        self._grace_seconds = grace_seconds
        self._now = now
        self._before = gpu_hours(folder) or 0.0
        self._under_way: dict[int, tuple[float, float]] = {}
        self._written = now()
        self._reached_at: float | None = None

    @property
    def gpu_hours(self) -> float:
        """What was spent so far, trials under way included."""
        now = self._now()
        seconds = sum((now - since) * gpus for since, gpus in self._under_way.values())
        return self._before + seconds / _HOUR

    def begin(self, number: int, gpus: float) -> None:
        """The trial has its place now, and so many GPUs."""
        self._under_way.setdefault(number, (self._now(), gpus))

    def end(self, number: int) -> None:
        """The trial has left its place; one that never had it costs nothing."""
        since, gpus = self._under_way.pop(number, (0.0, 0.0))
        if gpus:
            self._before += (self._now() - since) * gpus / _HOUR
            self._write()

    def reached(self) -> str:
        """Return which budget is spent, empty while there is some left."""
        if self.gpu_hours and self._now() - self._written >= _WRITE_SECONDS:
            self._write()
        found = ""
        if self.deadline is not None and self._now() >= self.deadline:
            found = TIME_IS_UP
        elif self._max_gpu_hours is not None and self.gpu_hours >= self._max_gpu_hours:
            found = GPU_HOURS_ARE_UP
        if found and self._reached_at is None:
            self._reached_at = self._now()
        return found

    def patience_left(self) -> float:
        """Return the seconds that trials still have to end by themselves; infinite before."""
        if self._reached_at is None:
            return float("inf")
        return self._reached_at + self._grace_seconds - self._now()

    def _write(self) -> None:
        write_json(self._path, {"gpu_hours": self.gpu_hours})
        self._written = self._now()


def gpu_hours(folder: Path) -> float | None:
    """Return the GPU-hours that the sweep in ``folder`` has taken, ``None`` if it took no GPU."""
    path = folder / _NAME
    if not path.exists():
        return None
    said: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return float(said["gpu_hours"])
