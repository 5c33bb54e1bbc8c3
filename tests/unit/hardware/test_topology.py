"""Clusters from files and from this machine."""

import pytest

from mainspring.hardware.topology import build_cluster, local_cluster
from mainspring.spec import ClusterFile, Device, LinkEntry, NodeEntry, Settings, SpecError
from mainspring.testing.machines import build_device

NETWORK = LinkEntry(gigabytes_per_s=12.5, microseconds=20)


def cluster_file(*nodes: NodeEntry) -> ClusterFile:
    return ClusterFile(name="lab", nodes=nodes, link=NETWORK)


def measured(name: str = "Q7") -> Device:
    return build_device(name, vendor="acme")


def test_a_cluster_file_becomes_nodes_with_listed_devices_and_links() -> None:
    cluster = build_cluster(
        cluster_file(
            NodeEntry(device="A100-SXM4-80GB", devices=8, count=2, price_usd_per_hour=2.0),
            NodeEntry(device="L4", devices=1, cpu_cores=16, memory_gib=64),
        )
    )
    assert cluster.device_count == 17
    assert [len(node.devices) for node in cluster.nodes] == [8, 8, 1]
    assert len({node.name for node in cluster.nodes}) == 3
    assert cluster.nodes[0].link.name == "nvlink3"
    assert cluster.nodes[0].devices[0].price_usd_per_hour == 2.0
    assert (cluster.nodes[2].cpu_cores, cluster.nodes[2].memory_bytes) == (16, 64 * 1024**3)
    assert cluster.link.bytes_per_s == 12.5e9
    assert cluster.link.latency_s == pytest.approx(20e-6)


def test_measured_figures_stand_in_for_a_device_nobody_lists() -> None:
    entry = NodeEntry(device="Q7", devices=2, measured=measured(), link=LinkEntry(gigabytes_per_s=30))
    cluster = build_cluster(cluster_file(entry))
    assert cluster.nodes[0].devices == (measured(), measured())
    assert cluster.nodes[0].link.bytes_per_s == 30e9


@pytest.mark.parametrize(
    ("entry", "words", "hint"),
    [
        (NodeEntry(device="A100-SXM4-80G", devices=8), "no device 'A100-SXM4-80G'", "A100-SXM4-80GB"),
        (NodeEntry(device="L4", devices=0), "devices must be positive, got 0 in nodes.0 of cluster 'lab'", ""),
        (NodeEntry(device="L4", devices=1, count=-1), "count must be positive, got -1", ""),
        (NodeEntry(device="Q7", devices=2, measured=measured()), "2 per node and no link", "gigabytes_per_s"),
        (NodeEntry(device="L4", devices=2, link=LinkEntry(gigabytes_per_s=0)), "must have a positive speed", ""),
    ],
)
def test_a_wrong_cluster_file_is_refused_with_its_place(entry: NodeEntry, words: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_cluster(cluster_file(entry))
    assert words in str(caught.value)
    assert hint in caught.value.hint


def test_a_cluster_without_nodes_is_refused() -> None:
    with pytest.raises(SpecError, match="cluster 'lab' has no nodes"):
        build_cluster(cluster_file())


def test_this_machine_is_a_cluster_of_one_and_its_figures_are_measured_once(settings: Settings) -> None:
    cluster = local_cluster()
    node = cluster.nodes[0]
    assert len(cluster.nodes) == 1
    assert node.devices
    assert len(node.health) == len(node.devices)
    device = node.devices[0]
    # The slowest core sold in ten years reaches 1 GFLOP/s, the fastest host 100 TFLOP/s.
    assert 1e9 < device.fp32_flops_per_s < 1e15
    assert 1e9 < device.memory_bytes_per_s < 1e14
    assert "measured" in device.source or "datasheet" in device.source
    assert local_cluster().nodes[0].devices == node.devices  # equal to the last digit: remembered, not measured again
    assert any((settings.home_path / "hardware").iterdir())
