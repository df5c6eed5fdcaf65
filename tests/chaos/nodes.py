"""A Ray cluster of several nodes on this machine, in a process of its own.

Prints its address. A line of its input is a command: ``lose PID`` kills the node whose raylet has
that process id, ``drain PID`` tells Ray that the node is about to be taken away, ``add`` starts
another one; each is answered by one line.
"""

import sys
import time
from typing import Any

from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

N_NODES = 2
_STORE_BYTES = 100 * 2**20
_NOTICE_SECONDS = 60


def main() -> None:
    """Start a head that trains nothing and nodes of one core; end with the input."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {_pid(node): node for node in [_add(cluster) for _ in range(N_NODES)]}
    print(cluster.address, flush=True)
    for line in sys.stdin:
        command, *pid = line.split()
        if command == "add":
            node = _add(cluster)
            nodes[_pid(node)] = node
            print(_pid(node), flush=True)
        elif command == "lose":
            cluster.remove_node(nodes.pop(int(pid[0])), allow_graceful=False)
            print("lost", flush=True)
        else:
            print("drained" if _drain(cluster, nodes[int(pid[0])]) else "refused", flush=True)
    cluster.shutdown()


def _add(cluster: Cluster) -> Any:
    return cluster.add_node(
        num_cpus=1, resources={"slot": 1}, object_store_memory=_STORE_BYTES, wait=True
    )


def _pid(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _drain(cluster: Cluster, node: Any) -> bool:
    """Say what the autoscaler says when a cloud gives notice of a preemption."""
    accepted, _ = GcsClient(address=cluster.address).drain_node(
        node.node_id,
        autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
        "spot machine is taken back",
        int((time.time() + _NOTICE_SECONDS) * 1000),
    )
    return bool(accepted)


if __name__ == "__main__":
    main()
