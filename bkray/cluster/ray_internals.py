"""The private hooks into Ray that bkray needs; their tests fail loudly when Ray moves them."""

from contextlib import suppress
from typing import Any

import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from bkray.cluster.preemption import NOTICE

ABORT_SECONDS = 15.0


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


def node_is_drained() -> bool:
    """Return whether Ray was told that this process's node goes away; false if it cannot say."""
    try:
        drained = ray._private.state.state.get_draining_nodes()
        return ray.get_runtime_context().get_node_id() in drained
    except (RayError, RuntimeError, OSError):  # it is asked again
        return False


def listen() -> None:
    """Take word that this worker is to leave."""
    NOTICE.listen(node_is_drained)


def listening() -> Any:
    """Return a callback of Ray Train that lets each worker listen to ``NOTICE``.

    A worker trains in a thread, and signals are taken in the main one, where callbacks run.
    """
    from ray.train.v2._internal.execution.callback import WorkerCallback  # takes 3 s

    class Listening(WorkerCallback):  # type: ignore[misc]  # ray is untyped
        def after_init_train_context(self) -> None:
            listen()

    return Listening()


class KilledForMemoryError(RayActorError, MemoryError):  # type: ignore[misc]  # ray is untyped
    """A worker was killed because the machine ran out of memory."""


def cause_of(error: Exception) -> Exception:
    """Return what the first worker of a failed ``fit`` died of, out of Ray Train's wrappers."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    found = next((failures[rank] for rank in sorted(failures)), error)
    for wrapper in ("controller_failure", "health_check_failure", "_base_exc"):
        found = getattr(found, wrapper, found)
    return found


class Abortable:
    """Mixed into a trainer of Ray Train, lets another thread end its ``fit``.

    The trainer keeps its controller to itself, and a run that is not ended by its controller
    leaves a placement group behind for as long as the driver lives. Seen with Ray 2.60.
    """

    _controller: Any = None
    _aborted = False

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> Any:
        from ray.train.v2._internal.constants import get_env_vars_to_propagate
        from ray.train.v2._internal.execution.controller import TrainController  # takes 3 s

        context = ray.get_runtime_context()
        # What removes the placement group after a sudden death asks the state API, which gives up
        # where several sessions run on one machine and no address says which.
        own = {"RAY_ADDRESS": context.gcs_address, **_QUIET_CONTROLLER}
        remote = ray.remote(
            num_cpus=0,
            label_selector={ray._raylet.RAY_NODE_ID_KEY: context.get_node_id()},
            runtime_env={"env_vars": {**own, **get_env_vars_to_propagate()}},
        )
        if self._aborted:
            raise RuntimeError("the run was ended before it began")
        self._controller = remote(TrainController).remote(**controller_init_kwargs)
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())

    def abort(self) -> None:
        """End workers, placement group and controller, as far as they are still there."""
        self._aborted = True
        if self._controller is None:
            return
        try:
            with suppress(RayActorError):  # it is gone, which is what was wanted
                ray.get(self._controller.abort.remote(), timeout=ABORT_SECONDS)
        except RayError:  # it does not answer
            ray.kill(self._controller)


_QUIET_CONTROLLER = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}
"""The controller itself blocks in its event loop, and would warn of it."""
