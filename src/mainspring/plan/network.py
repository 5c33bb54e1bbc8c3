"""How long collectives take: the alpha-beta model of a ring (Thakur et al. 2005), with the group's place in it.

A group of n ranks with k of them on each node leaves a node through k network ports at once: its bandwidth is k
times a port's. Ignoring that overpredicts published multi-node ZeRO-3 runs by up to 2.4 times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mainspring.plan.layout import Rank
from mainspring.spec import Cluster, Link

# Shares of a link's rate that collectives reach: 343 of 450 GB/s on NVLink 4; between nodes the fit on published
# multi-node runs, which holds congestion and ring imbalance too.
INNER_SHARE = 0.76
OUTER_SHARE = 0.5
COLLECTIVE_S = 80e-6


@dataclass(frozen=True, slots=True)
class Ring:
    """A communication group: `ranks` members, the fewest on one node, and the slowest link of each tier per rank.

    `outer` is None when all members share a node, `inner` when no two do.
    """

    ranks: int
    per_node: int
    nodes: int
    inner: Link | None
    outer: Link | None


def gather_s(ring: Ring, whole_bytes: float, *, messages: int = 1) -> float:
    """Seconds until every rank holds all `whole_bytes`, sent in `messages` collectives. Reduce-scatter is the same."""
    if ring.ranks == 1:
        return 0.0
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


def reduce_s(ring: Ring, whole_bytes: float, *, messages: int = 1) -> float:
    """Seconds of a ring all-reduce: a reduce-scatter and an all-gather."""
    return 2 * gather_s(ring, whole_bytes, messages=messages)


def slowest_ring(cluster: Cluster, groups: Sequence[Sequence[Rank]]) -> Ring:
    """The ring that all `groups`, which work at once and wait for each other, are as slow as."""
    size = len(groups[0])
    per_node, nodes, shared = size, 1, False
    inner_rate = outer_rate = float("inf")
    inner_latency = 0.0
    for group in groups:
        members: dict[int, int] = {}
        for rank in group:
            members[rank.node] = members.get(rank.node, 0) + 1
        fewest = min(members.values())
        per_node, nodes = min(per_node, fewest), max(nodes, len(members))
        for rank in group:
            outer_rate = min(outer_rate, cluster.link.bytes_per_s * rank.share)
            if members[rank.node] > 1:
                shared = True
                link = cluster.nodes[rank.node].link
                inner_rate = min(inner_rate, link.bytes_per_s * rank.share)
                inner_latency = max(inner_latency, link.latency_s)
    inner = Link(name="inner", bytes_per_s=inner_rate, latency_s=inner_latency) if shared else None
    outer = Link(name="outer", bytes_per_s=outer_rate, latency_s=cluster.link.latency_s) if nodes > 1 else None
    return Ring(ranks=size, per_node=per_node, nodes=nodes, inner=inner, outer=outer)
