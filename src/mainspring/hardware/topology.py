"""Clusters: this machine as a cluster of one, and machines one does not have from a cluster file."""

from dataclasses import replace

from mainspring.hardware import catalog
from mainspring.hardware.probe import probe_node
from mainspring.spec import Calibration, Cluster, ClusterFile, Device, Link, LinkEntry, Node, NodeEntry, SpecError

GIB = 1024**3


def local_cluster() -> Cluster:
    """This machine as a cluster of one node."""
    node = probe_node()
    return Cluster(name="local", nodes=(node,), link=node.link)


def build_cluster(file: ClusterFile) -> Cluster:
    """The cluster a file describes: catalogue devices by name, others by their measured figures.

    Raises `SpecError` for a device that is neither listed nor measured, naming the nearest, and for counts and links
    that cannot be.
    """
    if not file.nodes:
        raise SpecError(f"cluster {file.name!r} has no nodes", hint='add a "[[nodes]]" table')
    nodes: list[Node] = []
    for position, entry in enumerate(file.nodes):
        where = f"nodes.{position} of cluster {file.name!r}"
        _check_counts(entry, where)
        device, link = _device(entry), _link(entry, where)
        for _ in range(entry.count):
            nodes.append(_node(entry, device, link=link, number=len(nodes)))
    return Cluster(name=file.name, nodes=tuple(nodes), link=_read_link(file.link, "network", file.name))


def calibrates(calibration: Calibration, cluster: Cluster) -> bool:
    """Whether `calibration` is of a machine of `cluster` and of the devices it has today."""
    return any(_is_of(calibration, node) for node in cluster.nodes)


def calibrated(cluster: Cluster, calibration: Calibration) -> Cluster:
    """`cluster` with the figures that one of its machines was found to have."""
    nodes = tuple(_with_figures(node, calibration) if _is_of(calibration, node) else node for node in cluster.nodes)
    alone = len(nodes) == 1 and calibration.link is not None
    return replace(cluster, nodes=nodes, link=nodes[0].link if alone else cluster.link)


def _is_of(calibration: Calibration, node: Node) -> bool:
    return node.name == calibration.machine and any(device.name == calibration.probed for device in node.devices)


def _with_figures(node: Node, calibration: Calibration) -> Node:
    devices = tuple(calibration.device if d.name == calibration.probed else d for d in node.devices)
    return replace(node, devices=devices, link=calibration.link or node.link)


def _check_counts(entry: NodeEntry, where: str) -> None:
    counted = {
        "devices": entry.devices,
        "count": entry.count,
        "cpu_cores": entry.cpu_cores,
        "memory_gib": entry.memory_gib,
    }
    for name, value in counted.items():
        if value <= 0:
            raise SpecError(f"{name} must be positive, got {value} in {where}")


def _device(entry: NodeEntry) -> Device:
    device = catalog.find(entry.device) if entry.measured is None else entry.measured
    if entry.price_usd_per_hour is None:
        return device
    return replace(device, price_usd_per_hour=entry.price_usd_per_hour)


def _link(entry: NodeEntry, where: str) -> Link:
    if entry.link is not None:
        return _read_link(entry.link, f"{entry.device} link", where)
    if entry.measured is None:
        return catalog.find_entry(entry.device).link
    if entry.devices == 1:
        return Link(name="none", bytes_per_s=entry.measured.memory_bytes_per_s, latency_s=0.0)
    raise SpecError(
        f"measured device {entry.device!r} has {entry.devices} per node and no link in {where}",
        hint="add link = { gigabytes_per_s = ..., microseconds = ... } to the node",
    )


def _read_link(entry: LinkEntry, name: str, where: str) -> Link:
    if entry.gigabytes_per_s <= 0 or entry.microseconds < 0:
        got = f"gigabytes_per_s = {entry.gigabytes_per_s:g}, microseconds = {entry.microseconds:g}"
        raise SpecError(f"link of {where} must have a positive speed and a latency of at least 0, got {got}")
    return Link(name=name, bytes_per_s=entry.gigabytes_per_s * 1e9, latency_s=entry.microseconds * 1e-6)


def _node(entry: NodeEntry, device: Device, *, link: Link, number: int) -> Node:
    return Node(
        name=f"{device.name.lower().replace(' ', '-')}-{number}",
        devices=(device,) * entry.devices,
        link=link,
        cpu_cores=entry.cpu_cores,
        memory_bytes=round(entry.memory_gib * GIB),
        address="",
    )
