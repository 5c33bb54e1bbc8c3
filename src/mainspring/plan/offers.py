"""Which devices a plan may use: kinds of them, node by node, and where a mesh comes to lie on them.

A kind is a device with its link. Ranks are counted on the first nodes that have enough of it, the same number on each,
so that every group of a mesh has the same place on its nodes. What is offered for a kind never depends on how much
more of it there is: a larger cluster offers all that a smaller one does, and can never be given a slower plan.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from mainspring.plan.blocks import Rank
from mainspring.plan.layout import HOST, Column, Layout
from mainspring.plan.network import Fabric
from mainspring.spec import Cluster, Device, Link, Node, OperationCost

MOST_KINDS = 3  # whose orders along a pipeline are all tried
FEW = 16  # pipeline ranks or replicas, up to which all ways to share them among kinds are tried


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """Devices of one sort: `nodes` as `(index, healthy devices)`, most first; cores instead for a host CPU."""

    device: Device
    link: Link
    nodes: tuple[tuple[int, int], ...]
    memory_bytes: int
    _capacities: tuple[int, ...]
    _ranks: dict[int, Rank] = field(default_factory=dict[int, Rank])

    @property
    def most_per_node(self) -> int:
        """Ranks that the fullest node can hold."""
        return self.nodes[0][1]

    @property
    def room(self) -> int:
        """Ranks there is room for in all."""
        return self._capacities[0]

    def capacity(self, per_node: int) -> int:
        """Ranks there is room for, `per_node` on each node that has so many."""
        return self._capacities[per_node]

    def rank(self, per_node: int) -> Rank:
        """One rank when a node holds `per_node` of them: they share a host CPU, and own an accelerator each."""
        shared = per_node if self.device.vendor == HOST else 1
        if shared not in self._ranks:
            memory = self.memory_bytes // shared
            self._ranks[shared] = Rank(device=self.device, share=1 / shared, memory_bytes=memory)
        return self._ranks[shared]


@dataclass(frozen=True, slots=True, eq=False)
class Seat:
    """`per_node` ranks of a kind on each of its nodes."""

    kind: Kind
    per_node: int

    def nodes(self, first: int, count: int) -> Iterator[int]:
        """Nodes of `count` ranks from the `first` of this seat on."""
        fit = [index for index, room in self.kind.nodes if room >= self.per_node]
        return (fit[(first + number) // self.per_node] for number in range(count))


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """Seats and how a mesh lies on them: as columns of replicas, or as runs of pipeline ranks.

    `replicas[i]` are on seat i at every stage, or else `stages[i]` pipeline ranks are, with all replicas.
    """

    seats: tuple[Seat, ...]
    replicas: tuple[int, ...] = ()
    stages: tuple[int, ...] = ()

    def layout(self, cluster: Cluster, pp: int) -> Layout:
        """Ranks and links of a mesh with `pp` pipeline ranks."""
        ranks = [seat.kind.rank(seat.per_node) for seat in self.seats]
        if self.stages:
            row = tuple(itertools.chain.from_iterable((r,) * n for r, n in zip(ranks, self.stages, strict=True)))
            kinds = tuple(zip(ranks, self.stages, strict=True))
            columns = (Column(replicas=self.replicas[0], ranks=row, kinds=kinds),)
        else:
            columns = tuple(
                Column(replicas=n, ranks=(r,) * pp, kinds=((r, pp),)) for r, n in zip(ranks, self.replicas, strict=True)
            )
        seated = tuple((seat.kind, seat.per_node) for seat in self.seats)
        return Layout(columns=columns, fabric=_seated(seated, cluster.link))

    def nodes(self, *, pp: int, inner: int) -> list[int]:
        """The node of each rank, row-major over the mesh's axes; `inner` ranks make one replica's part of a stage."""
        found: list[int] = []
        if self.stages:
            each = self.replicas[0] * inner
            for seat, count in zip(self.seats, self.stages, strict=True):
                found += seat.nodes(0, count * each)
            return found
        for stage in range(pp):
            for seat, count in zip(self.seats, self.replicas, strict=True):
                found += seat.nodes(stage * count * inner, count * inner)
        return found


def _costs(links: Sequence[Link], share: float) -> tuple[OperationCost, ...]:
    """What was measured of the ranks' link, each counted on its share of it; nothing of a mixture."""
    if len(set(links)) > 1:
        return ()
    return tuple(replace(cost, bytes_per_s=cost.bytes_per_s * share) for cost in links[0].costs)


@lru_cache(maxsize=128)  # it keeps the kinds of clusters alive, and with them their nodes
def _seated(seated: tuple[tuple[Kind, int], ...], between: Link) -> Fabric:
    """The links of ranks on so many of each kind a node: the slowest of them, shared by the ranks of a host."""
    share = min(kind.rank(per_node).share for kind, per_node in seated)
    links = [kind.link for kind, _ in seated]
    inner = Link(
        name="inner",
        bytes_per_s=min(link.bytes_per_s for link in links) * share,
        latency_s=max(link.latency_s for link in links),
        costs=_costs(links, share),
    )
    outer = Link(name="outer", bytes_per_s=between.bytes_per_s * share, latency_s=between.latency_s)
    return _fabric(min(per_node for _, per_node in seated), inner, outer)


@lru_cache(maxsize=1024)
def _fabric(per_node: int, inner: Link, outer: Link) -> Fabric:
    return Fabric(per_node=per_node, inner=inner, outer=outer)


def enlarged(cluster: Cluster, ranks: int) -> Cluster:
    """`cluster`, repeated as often as `ranks` need."""
    room = sum(kind.room for kind in kinds(cluster))
    times = -(-ranks // max(1, room))
    if times <= 1:
        return cluster
    nodes = tuple(replace(node, name=f"{node.name}-{turn}") for turn in range(times) for node in cluster.nodes)
    return replace(cluster, name=f"{times} x {cluster.name}", nodes=nodes)


def by_kind(cluster: Cluster) -> tuple[Cluster, ...]:
    """`cluster` once for each kind of accelerator, with those devices alone; as it is where there is but one."""
    names = {device.name for node in cluster.nodes for device in node.devices if device.vendor != HOST}
    if len(names) < 2:
        return (cluster,)
    return tuple(
        replace(cluster, nodes=tuple(node for each in cluster.nodes if (node := _only(each, name)).devices))
        for name in sorted(names)
    )


def _only(node: Node, name: str) -> Node:
    here = [number for number, device in enumerate(node.devices) if device.name == name]
    health = tuple(node.health[number] for number in here if number < len(node.health))
    return replace(node, devices=tuple(node.devices[number] for number in here), health=health)


def healthy(cluster: Cluster) -> Iterator[tuple[int, Device]]:
    """Devices fit for work, with their node. Health is listed in the order of the devices."""
    for index, node in enumerate(cluster.nodes):
        for position, device in enumerate(node.devices):
            if position >= len(node.health) or node.health[position].state != "unhealthy":
                yield index, device


def kinds(cluster: Cluster) -> tuple[Kind, ...]:
    """The kinds of a cluster, fastest first."""
    counts: dict[tuple[Device, Link], dict[int, int]] = {}
    for index, device in healthy(cluster):
        node = cluster.nodes[index]
        places = counts.setdefault((device, node.link), {})
        places[index] = node.cpu_cores if device.vendor == HOST else places.get(index, 0) + 1
    found: list[Kind] = []
    for (device, link), places in counts.items():
        memory = device.memory_bytes
        if device.vendor == HOST:
            memory = min(memory, *(cluster.nodes[index].memory_bytes for index in places))
        nodes = tuple(sorted(places.items(), key=lambda place: (-place[1], place[0])))
        room = sum(count for _, count in nodes)
        each = (per_node * sum(count >= per_node for _, count in nodes) for per_node in range(1, nodes[0][1] + 1))
        found.append(Kind(device=device, link=link, nodes=nodes, memory_bytes=memory, _capacities=(room, *each)))
    return tuple(sorted(found, key=lambda kind: (-kind.device.bf16_flops_per_s, kind.device.name)))


def seats(kind: Kind, ranks: int, *, outer: Link, step: int) -> list[Seat]:
    """Ways to seat `ranks` ranks of a kind in multiples of `step` a node.

    Neighbours whose link is at least as fast as the network are best seated densely. Ranks that share a host are not.
    """
    dense = kind.device.vendor != HOST and kind.link.bytes_per_s >= outer.bytes_per_s
    found: list[Seat] = []
    for per_node in range(min(ranks, kind.most_per_node), 0, -1):
        if per_node % step == 0 and ranks % per_node == 0 and kind.capacity(per_node) >= ranks:
            found.append(Seat(kind, per_node))
            if dense:
                break
    return found


def single(cluster: Cluster, kind: Kind, *, pp: int, replicas: int, inner: int, step: int) -> Iterator[Offer]:
    """A mesh on one kind."""
    for seat in seats(kind, pp * replicas * inner, outer=cluster.link, step=step):
        yield Offer(seats=(seat,), replicas=(replicas,))


def by_replica(cluster: Cluster, mix: Sequence[Kind], *, pp: int, inner: int, step: int, most: int) -> Iterator[Offer]:
    """Replicas on several kinds, each kind holding some of at most `most` in all, one of them all it can."""
    full = [min(most - 1, kind.room // (pp * inner)) for kind in mix]
    every = FEW if most <= FEW else 8
    choices = [
        sorted({1 << power for power in range(top.bit_length())} | set(range(1, min(top, every) + 1)) | {top})
        for top in full
    ]
    for counts in itertools.product(*choices):
        at_its_most = any(count == top for count, top in zip(counts, full, strict=True))
        if min(counts) < 1 or sum(counts) > most or not (at_its_most or sum(counts) == most or most <= FEW):
            continue
        taken = [
            seats(kind, pp * n * inner, outer=cluster.link, step=step) for kind, n in zip(mix, counts, strict=True)
        ]
        if all(taken):
            yield Offer(seats=tuple(each[0] for each in taken), replicas=counts)


def by_stage(
    cluster: Cluster, mix: Sequence[Kind], *, pp: int, replicas: int, inner: int, step: int
) -> Iterator[Offer]:
    """A pipeline whose ranks are on several kinds, in every order of the kinds and every share of the ranks."""
    for order in itertools.permutations(mix):
        for counts in _stage_shares(order, pp):
            taken = [
                seats(kind, n * replicas * inner, outer=cluster.link, step=step)
                for kind, n in zip(order, counts, strict=True)
            ]
            if all(taken):
                yield Offer(seats=tuple(each[0] for each in taken), replicas=(replicas,), stages=counts)


def mixtures(found: Sequence[Kind]) -> Iterator[tuple[Kind, ...]]:
    """Sets of two and more kinds."""
    for size in range(2, min(len(found), MOST_KINDS) + 1):
        yield from itertools.combinations(found, size)


def _stage_shares(order: Sequence[Kind], pp: int) -> Iterator[tuple[int, ...]]:
    """How many pipeline ranks each kind gets: any of few ways, else in proportion to speed and to number."""
    if pp <= FEW:
        for cut in itertools.combinations(range(1, pp), len(order) - 1):
            yield tuple(b - a for a, b in itertools.pairwise((0, *cut, pp)))
        return
    weights = [
        [kind.room * kind.device.bf16_flops_per_s for kind in order],
        [float(kind.room) for kind in order],
    ]
    found: set[tuple[int, ...]] = set()
    for each in weights:
        ends = [max(1, round(pp * part / sum(each))) for part in each[:-1]]
        counts = (*ends, pp - sum(ends))
        if counts[-1] > 0 and counts not in found:
            found.add(counts)
            yield counts
