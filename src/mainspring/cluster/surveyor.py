"""What the machines of a cluster are: the hardware probe on every node, and the measured network between them.

A local survey does not start Ray. On a cluster one small actor per node probes it; the link is measured over TCP
between the first two nodes, because what the network card promises is not what a process gets.
"""

import socket
import threading
import time
from dataclasses import replace
from typing import Any

from mainspring.cluster.engine import Engine, Member, connect
from mainspring.hardware.probe import probe_node
from mainspring.hardware.topology import local_cluster
from mainspring.spec import Cluster, Link, Node, Unavailable

PROBE_S = 120.0
BURST_BYTES = 64 << 20
PINGS = 50
CONNECT_S = 10.0


def survey(address: str = "local") -> Cluster:
    """Every node of the cluster at `address`, and the link between the first two.

    Raises `Unavailable` when the cluster cannot be reached or a node cannot be probed.
    """
    if address == "local":
        return local_cluster()
    engine = connect(address)
    try:
        return _survey(engine)
    finally:
        engine.close()


class Surveyor:
    """Probes the node it runs on and measures its connection to another; lives in a Ray actor."""

    def probe(self) -> Node:
        """This node's hardware."""
        return probe_node()

    def listen(self) -> int:
        """Accept one connection in the background, echo its pings and swallow its burst; returns the port."""
        server = socket.create_server(("", 0))
        server.settimeout(CONNECT_S)
        threading.Thread(target=_echo, args=(server,), daemon=True).start()
        return server.getsockname()[1]

    def measure(self, host: str, port: int) -> Link:
        """Bandwidth and one-way latency of a TCP connection from here to a listening surveyor."""
        with socket.create_connection((host, port), timeout=CONNECT_S) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            trips: list[float] = []
            for _ in range(PINGS):
                started_s = time.perf_counter()
                peer.sendall(b"p")
                peer.recv(1)
                trips.append(time.perf_counter() - started_s)
            started_s = time.perf_counter()
            peer.sendall(bytes(BURST_BYTES))
            peer.recv(1)
            seconds = time.perf_counter() - started_s
        # Contention only ever adds time, so the fastest trip is the link's own.
        return Link(name="tcp, measured", bytes_per_s=BURST_BYTES / seconds, latency_s=min(trips) / 2)


def _survey(engine: Engine) -> Cluster:
    import ray
    from ray.exceptions import RayError

    members = engine.members()
    surveyors = [_surveyor(member) for member in members]
    try:
        found: list[Node] = ray.get([each.probe.remote() for each in surveyors], timeout=PROBE_S)
        nodes = tuple(
            replace(node, name=member.capacity.node, address=member.address)
            for node, member in zip(found, members, strict=True)
        )
        link = nodes[0].link
        if len(members) > 1:
            port: Any = ray.get(surveyors[1].listen.remote(), timeout=PROBE_S)
            (link,) = ray.get([surveyors[0].measure.remote(members[1].address, port)], timeout=PROBE_S)
        return Cluster(name=engine.address, nodes=nodes, link=link)
    except RayError as error:
        raise Unavailable(f"cannot survey the nodes of {engine.address!r}: {error}") from error
    finally:
        for each in surveyors:
            ray.kill(each)


def _surveyor(member: Member) -> Any:
    import ray

    selector = {"ray.io/node-id": member.id}
    return ray.remote(Surveyor).options(num_cpus=0, label_selector=selector).remote()


def _echo(server: socket.socket) -> None:
    with server, server.accept()[0] as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(PINGS):
            peer.sendall(peer.recv(1))
        left = BURST_BYTES
        while left > 0:
            left -= len(peer.recv(min(left, 1 << 20)))
        peer.sendall(b"d")
