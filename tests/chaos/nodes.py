"""A Ray cluster of several nodes on this machine, in a process of its own.

Prints its address; loses the node whose raylet has the process id on each line of its input.
"""

import sys

from ray.cluster_utils import Cluster

N_NODES = 2
_STORE_BYTES = 100 * 2**20


def main() -> None:
    """Start a head that trains nothing and nodes of one core; end with the input."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {}
    for _ in range(N_NODES):
        node = cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)
        nodes[node.all_processes["raylet"][0].process.pid] = node
    print(cluster.address, flush=True)
    for line in sys.stdin:
        cluster.remove_node(nodes[int(line)], allow_graceful=False)
        print("lost", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
