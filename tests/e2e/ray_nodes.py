"""Ray nodes of this machine for tests: `python ray_nodes.py TEMP CPUS...` until its input ends.

One node for each number of cpus, the first is the head. A line `kill N` shoots the raylet of node N, `add CPUS` brings
another one up; each is answered by a line.
"""

import json
import os
import signal
import sys

from ray.cluster_utils import Cluster

# Ray looks after a node that falls silent for seconds; a test waits for it each time.
QUICK = {"health_check_period_ms": 500, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}


def main() -> None:
    """Print the cluster's address and the nodes' ids as JSON, then do as told."""
    temp, *cpus = sys.argv[1:]
    common = {"object_store_memory": 80 << 20, "include_dashboard": False}
    system = {**QUICK, "memory_monitor_refresh_ms": 0, "worker_niceness": 0}
    head = {**common, "num_cpus": int(cpus[0]), "temp_dir": temp, "_system_config": system}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.head_node]
    nodes += [cluster.add_node(**common, num_cpus=int(count)) for count in cpus[1:]]
    print(json.dumps({"address": cluster.address, "nodes": [node.unique_id for node in nodes]}), flush=True)
    for line in sys.stdin:
        verb, number = line.split()
        if verb == "kill":
            (raylet,) = nodes[int(number)].all_processes["raylet"]
            os.kill(raylet.process.pid, signal.SIGKILL)
        else:
            nodes.append(cluster.add_node(**common, num_cpus=int(number)))
        print(json.dumps({"nodes": [node.unique_id for node in nodes]}), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
