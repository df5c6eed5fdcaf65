"""The hooks into Ray: what they mend, and that Ray still needs and takes them."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray._private.state import GlobalState
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import ControllerError, RunConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from bkray.cluster.carriers import outcome_of
from bkray.cluster.ray_internals import (
    Abortable,
    KilledForMemoryError,
    cause_of,
    end_one_trial_when_memory_runs_out,
    listening,
)


class Tracked:
    """Stands in for an actor and for its task; notes the errors it is told."""

    actor_id = 1

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self._tracked_actor = self

    def _on_error(self, actor: object, error: Exception) -> None:
        self.errors.append(error)


class ActorManager(RayActorManager):  # type: ignore[misc]  # ray is untyped
    def __init__(self) -> None:
        self._failed_actor_ids: set[int] = set()

    def _cleanup_actor(self, tracked_actor: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def unpatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    method = RayActorManager._actor_task_failed
    if getattr(method, "by_bkray", False):
        method = method.__closure__[0].cell_contents
    monkeypatch.setattr(RayActorManager, "_actor_task_failed", method)
    yield


def test_ray_still_says_which_nodes_go() -> None:
    assert not inspect.signature(GlobalState.get_draining_nodes).parameters.keys() - {"self"}
    sent = ray.cloudpickle.loads(ray.cloudpickle.dumps(listening()))
    assert isinstance(sent, WorkerCallback)
    assert inspect.signature(RunConfig).parameters["callbacks"]


def test_ray_still_takes_a_memory_kill_for_its_own_mistake() -> None:
    task, killed = Tracked(), OutOfMemoryError("low")
    with pytest.raises(RuntimeError, match="unexpected exception"):
        ActorManager()._actor_task_failed(tracked_actor_task=task, exception=killed)


def test_a_memory_kill_is_told_as_the_death_of_one_actor() -> None:
    for _ in range(2):  # a second sweep in one process patches nothing twice
        end_one_trial_when_memory_runs_out()
    task, killed = Tracked(), OutOfMemoryError("the node runs low")
    ActorManager()._actor_task_failed(tracked_actor_task=task, exception=killed)
    assert len(task.errors) == 2  # as the actor and as its task
    for error in task.errors:
        assert isinstance(error, KilledForMemoryError | RayActorError)
        assert outcome_of(error) == "oom"
        assert "the node runs low" in str(error)


def test_ray_train_still_makes_its_controller_where_we_step_in() -> None:
    theirs = inspect.signature(DataParallelTrainer._initialize_and_run_controller)
    ours = inspect.signature(Abortable._initialize_and_run_controller)
    assert list(theirs.parameters) == list(ours.parameters) == ["self", "controller_init_kwargs"]
    assert "_initialize_and_run_controller(" in inspect.getsource(DataParallelTrainer.fit)
    for method in ("run", "get_result", "abort"):
        assert callable(getattr(TrainController, method)), method


def test_a_trainer_that_is_ended_before_it_began_starts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "get_runtime_context", NoContext)
    trainer = Abortable()
    trainer.abort()
    with pytest.raises(RuntimeError, match="ended before it began"):
        trainer._initialize_and_run_controller()


class NoContext:
    """Stands in for Ray's, where Ray is not up."""

    gcs_address = "127.0.0.1:6379"

    def get_node_id(self) -> str:
        return "here"


def test_the_cause_comes_out_of_ray_trains_wrappers() -> None:
    broke, died = ValueError("shapes"), RayActorError(error_msg="the node is gone")
    wrapped = UserExceptionWithTraceback(broke, "Traceback ...")
    unhealthy = WorkerHealthCheckFailedError("A worker health check failed.", died)
    assert cause_of(WorkerGroupError("two of them", {1: wrapped, 3: unhealthy})) is broke
    assert cause_of(WorkerGroupError("one", {0: unhealthy})) is died
    assert cause_of(ControllerError(broke)) is broke
    assert cause_of(broke) is broke
