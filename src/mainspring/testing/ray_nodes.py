"""Ray nodes of this machine, to be shot: `python -m mainspring.testing.ray_nodes TEMP CPUS...` until its input ends.

One node for each number of cpus, the first is the head; `2+4` says of itself that it has 4 GPUs too. A line `kill N`
shoots the raylet of node N, `add CPUS` brings another one up; each is answered by a line.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Ray takes seconds to notice that a node has gone silent; with these it takes two.
QUICK = {"health_check_period_ms": 500, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}


@dataclass
class RayNodes:
    """Nodes in a process of their own: the address of their cluster, and how to shoot or add one."""

    address: str
    process: "subprocess.Popen[str]"

    def tell(self, order: str) -> None:
        """Have a node shot or added, and wait for it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        json.loads(self.process.stdout.readline())


@contextmanager
def running_nodes(*cpus: int | str) -> Generator[RayNodes]:
    """A Ray cluster of one node for each of `cpus`, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="ms-", dir="/tmp", ignore_cleanup_errors=True) as temp:
        order = [sys.executable, "-m", "mainspring.testing.ray_nodes", temp, *map(str, cpus)]
        with subprocess.Popen(order, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = json.loads(next(line for line in process.stdout if line.startswith("{")))
            try:
                yield RayNodes(told["address"], process)
            finally:
                process.communicate(timeout=60)


def main() -> None:
    """Print the cluster's address as JSON, then do as told."""
    from ray.cluster_utils import Cluster

    temp, *cpus = sys.argv[1:]
    common = {"object_store_memory": 80 << 20, "include_dashboard": False}
    system = {**QUICK, "memory_monitor_refresh_ms": 0, "worker_niceness": 0}
    head = {**common, **_amounts(cpus[0]), "temp_dir": temp, "_system_config": system}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.head_node, *(cluster.add_node(**common, **_amounts(said)) for said in cpus[1:])]
    _say({"address": str(cluster.address)})
    for line in sys.stdin:
        verb, number = line.split()
        if verb == "kill":
            (raylet,) = nodes[int(number)].all_processes["raylet"]
            os.kill(raylet.process.pid, signal.SIGKILL)
        else:
            nodes.append(cluster.add_node(**common, **_amounts(number)))
        _say({"done": line.strip()})
    cluster.shutdown()


def _amounts(said: str) -> dict[str, Any]:
    cpus, _, gpus = said.partition("+")
    return {"num_cpus": int(cpus), "num_gpus": int(gpus or 0)}


def _say(told: dict[str, str]) -> None:
    sys.stdout.write(f"{json.dumps(told)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
