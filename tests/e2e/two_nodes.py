"""Two Ray nodes on this machine that share nothing: `python two_nodes.py HOME_A HOME_B TEMP` until its input ends."""

import json
import socket
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Print the two addresses of the cluster as JSON, then wait."""
    home_a, home_b, temp = sys.argv[1:]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    head = {**node, "ray_client_server_port": port, "temp_dir": temp, "env_vars": {"MAINSPRING_HOME": home_a}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**node, env_vars={"MAINSPRING_HOME": home_b})
    print(json.dumps({"client": f"ray://127.0.0.1:{port}", "gcs": cluster.address}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
