"""What a node shares with the driver is looked at on the node, and a home of its own is kept apart."""

from pathlib import Path

import psutil
import pytest

from mainspring.cluster.agent import NodeAgent, interface_of
from mainspring.cluster.placement import Capacity
from mainspring.cluster.queue import QueueState, admit
from mainspring.cluster.reach import sees
from mainspring.spec import Job


@pytest.fixture
def run_root(tmp_path: Path) -> Path:
    folder = tmp_path / "driver" / "runs"
    folder.mkdir(parents=True)
    (folder / "marker").touch()
    return folder


def test_a_node_sees_what_is_there_and_nothing_else(run_root):
    marker = str(run_root / "marker")
    assert sees([marker], str(run_root))
    assert not sees([marker, str(run_root / "missing")], str(run_root))


def test_a_node_with_another_home_shares_no_run_but_still_sees_other_folders(run_root, tmp_path, monkeypatch):
    marker, bucket = str(run_root / "marker"), str(tmp_path)
    monkeypatch.setenv("MAINSPRING_HOME", str(tmp_path / "node"))
    assert not sees([marker], str(run_root))
    assert sees([bucket], str(run_root))
    assert sees([marker], ""), "on the driver's own machine only the file counts"
    monkeypatch.setenv("MAINSPRING_HOME", str(tmp_path / "driver"))
    assert sees([marker], str(run_root))


def test_a_node_keeps_the_files_of_a_run_in_its_own_home_until_the_run_has_ended(run_root, tmp_path, monkeypatch):
    monkeypatch.setenv("MAINSPRING_HOME", str(tmp_path / "node"))
    agent = NodeAgent()
    folder = Path(agent.prepare(str(run_root / "marker"), "", str(run_root)).folder)
    assert folder.parent == tmp_path / "node" / "gangs"
    agent.close()
    assert not folder.exists()


def test_a_job_is_placed_on_the_nodes_it_may_use_and_waits_for_those_alone():
    nodes = tuple(Capacity(node=name, cpus=2.0) for name in ("a", "b", "c"))
    job = Job(id="j", name="j", entry="m:f", ranks=3, nodes=("b", "c"))
    (placement,) = admit(QueueState(total=nodes, free=nodes), [job]).placed
    assert set(placement.nodes) == {"b", "c"}
    taken = (nodes[0], *(Capacity(node=name, cpus=0.0) for name in ("b", "c")))
    (held,) = admit(QueueState(total=nodes, free=taken), [job]).waiting
    assert held.reason.endswith("0 would fit now")
    (refused,) = admit(
        QueueState(total=nodes, free=nodes), [Job(id="k", name="k", entry="m:f", ranks=3, nodes=("a",))]
    ).refused
    assert "its part of the cluster (1 node) has room for 2" in refused.reason


def test_the_interface_of_an_address_is_found():
    assert interface_of("127.0.0.1") in psutil.net_if_addrs()
    assert interface_of("203.0.113.7") == ""
