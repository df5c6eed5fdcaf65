"""The private hooks into Ray that bkray needs; their tests fail loudly when Ray moves them."""

from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError


def end_one_trial_when_memory_runs_out() -> None:
    """Let Ray's memory monitor cost a trial, not the sweep.

    It kills a worker with ``OutOfMemoryError``, which is no ``RayActorError``: Tune takes that for
    a mistake of its own and ``Tuner.fit`` dies. Seen with Ray 2.60. Calling it twice is harmless.
    """
    if getattr(RayActorManager._actor_task_failed, "by_bkray", False):
        return
    original = RayActorManager._actor_task_failed

    def failed(self: Any, tracked_actor_task: Any, exception: Exception) -> Any:
        if isinstance(exception, OutOfMemoryError):
            exception = KilledForMemoryError(error_msg=str(exception))  # type: ignore[call-arg]
        return original(self, tracked_actor_task=tracked_actor_task, exception=exception)

    failed.by_bkray = True  # type: ignore[attr-defined]
    RayActorManager._actor_task_failed = failed


class KilledForMemoryError(RayActorError, MemoryError):  # type: ignore[misc]  # ray is untyped
    """A worker was killed because the machine ran out of memory."""
