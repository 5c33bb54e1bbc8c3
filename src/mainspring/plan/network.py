"""How long collectives take: the alpha-beta model of a ring (Thakur et al. 2005), with the group's place in it.

A group with k ranks on each node leaves a node through k network ports at once: its bandwidth is k times a port's.
Ignoring that overpredicts published multi-node ZeRO-3 runs by up to 2.4 times. Groups lie on a node-aligned mesh, so
that their place follows from degrees and strides, whatever the number of ranks.

Where each operation was measured on a link, as `plan calibrate` does, its own latency and rate count, and no constant
of ours: gloo's are written one by one, and the fastest is several times as fast as the slowest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mainspring.spec import AXES, Link, Mesh, Operation, OperationCost

# Shares of a link's rate that collectives reach: 343 of 450 GB/s on NVLink 4; between nodes the fit on published
# multi-node runs, which holds congestion and ring imbalance too.
INNER_SHARE = 0.8
OUTER_SHARE = 0.85
COLLECTIVE_S = 1e-4


@dataclass(frozen=True, slots=True)
class Ring:
    """A communication group: `ranks` members, `per_node` of them on each of `nodes`, and the links per rank.

    `outer` is None when all members share a node, `inner` when no two do.
    """

    ranks: int
    per_node: int
    nodes: int
    inner: Link | None
    outer: Link | None


@dataclass(frozen=True, slots=True, eq=False)
class Fabric:
    """The links that ranks of a layout meet: the slowest inside any node, and between nodes; rates of one rank.

    Layouts with equal links share one object, so that what is worked out for it is found again.
    """

    per_node: int
    inner: Link
    outer: Link


def ring_of(fabric: Fabric, mesh: Mesh, axes: Sequence[str]) -> Ring:
    """The group that spans `axes` of `mesh`, whose ranks lie node by node in the order of `AXES`."""
    ranks = per_node = 1
    stride = 1
    for axis in reversed(AXES):
        degree = getattr(mesh, axis)
        if axis in axes:
            ranks *= degree
            per_node *= min(degree, max(1, fabric.per_node // stride))
        stride *= degree
    per_node = min(per_node, ranks)
    nodes = -(-ranks // per_node)
    return Ring(
        ranks=ranks,
        per_node=per_node,
        nodes=nodes,
        inner=fabric.inner if per_node > 1 else None,
        outer=fabric.outer if nodes > 1 else None,
    )


def gather_s(ring: Ring, whole_bytes: float, *, messages: float = 1) -> float:
    """Seconds until every rank holds all `whole_bytes`, sent in `messages` collectives."""
    return _around_s("all_gather", ring, whole_bytes, messages)


def scatter_s(ring: Ring, whole_bytes: float, *, messages: float = 1) -> float:
    """Seconds until every rank holds its part of the sum of what all have, `whole_bytes` each."""
    return _around_s("reduce_scatter", ring, whole_bytes, messages)


def reduce_s(ring: Ring, whole_bytes: float, *, messages: float = 1) -> float:
    """Seconds of a ring all-reduce: a reduce-scatter and an all-gather."""
    measured = _measured_s("all_reduce", ring, 2 * whole_bytes, messages)
    return 2 * gather_s(ring, whole_bytes, messages=messages) if measured is None else measured


def _around_s(operation: Operation, ring: Ring, whole_bytes: float, messages: float) -> float:
    """Once around the ring."""
    if ring.ranks == 1:
        return 0.0
    measured = _measured_s(operation, ring, whole_bytes, messages)
    if measured is not None:
        return measured
    seconds = messages * COLLECTIVE_S
    if ring.inner is not None:
        moved = whole_bytes * (ring.ranks - 1) / ring.ranks
        hops = messages * (ring.ranks - ring.nodes)
        inner_s = moved / (ring.inner.bytes_per_s * INNER_SHARE)
        seconds += hops * ring.inner.latency_s
    else:
        inner_s = 0.0
    if ring.outer is None:
        return seconds + inner_s
    moved = whole_bytes * (ring.ranks - ring.per_node) / ring.ranks
    outer_s = moved / (ring.per_node * ring.outer.bytes_per_s * OUTER_SHARE)
    return seconds + messages * (ring.nodes - 1) * ring.outer.latency_s + max(inner_s, outer_s)


def exchange_s(ring: Ring, sent_bytes: float, *, messages: float = 1) -> float:
    """Seconds of an all-to-all in which each rank has `sent_bytes`, an equal part of them for every rank."""
    if ring.ranks == 1:
        return 0.0
    measured = _measured_s("all_to_all", ring, sent_bytes, messages)
    if measured is not None:
        return measured
    seconds = messages * COLLECTIVE_S
    if ring.inner is not None:
        inside = sent_bytes * (ring.per_node - 1) / ring.ranks
        seconds += inside / (ring.inner.bytes_per_s * INNER_SHARE)
    if ring.outer is not None:
        outside = sent_bytes * (ring.ranks - ring.per_node) / ring.ranks
        seconds += outside / (ring.outer.bytes_per_s * OUTER_SHARE) + messages * ring.outer.latency_s
    return seconds


def send_s(link: Link, sent_bytes: float) -> float:
    """Seconds of handing `sent_bytes` to one other rank."""
    cost = _cost("send", link) or link
    return cost.latency_s + sent_bytes / cost.bytes_per_s


def _measured_s(operation: Operation, ring: Ring, whole_bytes: float, messages: float) -> float | None:
    """By what was measured of `operation` among ranks of one machine; None where nothing was."""
    if ring.inner is None or ring.outer is not None:
        return None
    cost = _cost(operation, ring.inner)
    if cost is None:
        return None
    around = (ring.ranks - 1) * messages * cost.latency_s
    return around + whole_bytes * (ring.ranks - 1) / ring.ranks / cost.bytes_per_s


def _cost(operation: Operation, link: Link) -> OperationCost | None:
    """What was measured of `operation` on `link`."""
    return next((cost for cost in link.costs if cost.operation == operation), None)
