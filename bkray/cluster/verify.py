"""``bkray cluster verify``: a short job of Ray Train on some nodes, and what they say."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import Any

from bkray.cluster.session import session
from bkray.errors import ClusterError

SECONDS = 5.0
"""How long the workers add numbers together."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was seen of a cluster.

    Attributes:
        nodes: alive.
        gpus: that Ray knows of, and that torch sees in the workers of the job.
        workers: what each worker said of its machine.
        rounds: all-reduces of the job.
        seconds: that they took.
    """

    nodes: int
    gpus: float
    gpus_seen: int
    workers: list[dict[str, str]]
    rounds: int
    seconds: float

    def plain(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self)


def verify(*, address: str, nodes: int, gpus: int = 0, wait_seconds: float = 600) -> Verified:
    """Run one worker on each of so many nodes, for five seconds, and compare the nodes.

    Args:
        address: of the running cluster, or ``auto``.
        nodes: there must be; an autoscaler is asked for what is missing.
        gpus: each of them must give to its worker.
        wait_seconds: for nodes to come.

    Raises:
        ClusterError: too few nodes came, or Python, torch or Ray differ between them.
        ConfigError: nothing answers at the address.
    """
    with session(address=address, threads=1) as ray:
        _gather(ray, nodes, gpus, wait_seconds)
        said = _run(nodes, gpus)
        alive = sum(bool(node["Alive"]) for node in ray.nodes())
        known = float(ray.cluster_resources().get("GPU", 0))
    workers = said["workers"]
    for name in ("python", "torch", "ray", "bkray"):
        kinds = {worker[name] for worker in workers}
        if len(kinds) > 1:
            raise ClusterError(f"the nodes differ in {name}: {', '.join(sorted(kinds))}")
    seen = sum(int(worker["gpus"]) for worker in workers)
    if seen < gpus * nodes:
        raise ClusterError(f"torch sees {seen} GPUs in {nodes} workers, {gpus * nodes} were asked")
    return Verified(alive, known, seen, workers, int(said["rounds"]), float(said["seconds"]))


def _gather(ray: Any, nodes: int, gpus: int, wait_seconds: float) -> None:
    """Wait for the nodes, in a way that makes an autoscaler bring them."""
    from ray.util.placement_group import placement_group, remove_placement_group

    bundle: dict[str, float] = {"CPU": 1, **({"GPU": gpus} if gpus else {})}
    group = placement_group([bundle] * nodes, strategy="STRICT_SPREAD")
    try:
        if not group.wait(wait_seconds):
            alive = sum(bool(node["Alive"]) for node in ray.nodes())
            raise ClusterError(
                f"{nodes} nodes with {bundle} were asked, {alive} nodes are there after "
                f"{wait_seconds:g} s: see max_workers, the provider's quotas, and "
                "ray exec CLUSTER.yaml 'ray status'"
            )
    finally:
        remove_placement_group(group)


def _run(nodes: int, gpus: int) -> dict[str, Any]:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources: dict[str, float] = {"CPU": 1, **({"GPU": gpus} if gpus else {})}
    with TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            _add_together,
            train_loop_config={"seconds": SECONDS},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=nodes,
                use_gpu=gpus > 0,
                resources_per_worker=resources,
                placement_strategy="STRICT_SPREAD",
            ),
            run_config=RunConfig(name="verify", storage_path=folder),
        )
        return dict(trainer.fit().return_value)  # of the first worker


def _add_together(config: Mapping[str, float]) -> dict[str, Any]:
    """Add ones over all workers until the first of them has waited long enough."""
    import torch
    from torch import distributed

    rank, started = distributed.get_rank(), time.monotonic()
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    rounds, elapsed = 0, 0.0
    while elapsed < config["seconds"]:
        own = time.monotonic() - started if rank == 0 else 0.0
        sums = torch.tensor([own, 1.0], dtype=torch.float64, device=device)
        distributed.all_reduce(sums)
        elapsed, present = sums.tolist()
        if present != distributed.get_world_size():
            raise RuntimeError(f"{present} workers answered")
        rounds += 1
    workers: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(workers, _facts())
    return {"workers": workers, "rounds": rounds, "seconds": elapsed}


def _facts() -> dict[str, str]:
    import platform

    import ray
    import torch

    import bkray

    return {
        "host": platform.node(),
        "node": ray.get_runtime_context().get_node_id(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "ray": str(ray.__version__),
        "bkray": bkray.__version__,
        "gpus": str(torch.cuda.device_count()),
    }
