"""Where a gang goes as a whole: the smallest part of the network that holds it, and its ranks in cable order.

Nodes hang under racks, racks under blocks, by whatever names the site gives its levels. A gang is put into the domain
of the deepest level that has room, of these into the fullest; inside, the roomiest parts are taken whole and the rest
goes where it fits tightest. Ranks are numbered depth first, so that a ring over them leaves each domain once: tensor
parallel neighbours share a host, pipeline neighbours are adjacent, data-parallel rings stay inside a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mainspring.cluster.schedule.kernels import Ints
from mainspring.spec import Machine, SpecError

CLUSTER, HOST = "cluster", "host"


@dataclass(frozen=True, slots=True)
class Topology:
    """Levels from `cluster` to `host`; `domain[level][n]` numbers the part of that level that node `n` is in.

    `order` lists the nodes depth first, and domains are numbered in that order.
    """

    levels: tuple[str, ...]
    domain: tuple[Ints, ...]
    order: Ints

    def depth(self, level: str) -> int:
        """The position of `level`; `SpecError` when the cluster has none of that name."""
        if level not in self.levels:
            raise SpecError(f"this cluster has no level {level!r}", hint=f"its levels: {', '.join(self.levels)}")
        return self.levels.index(level)


@dataclass(frozen=True, slots=True)
class Shape:
    """How a gang wants to lie: the level it must stay in, and slices of `segment` ranks that must not be divided."""

    ranks: int
    within: int = 0
    segment: int = 1
    segment_depth: int = 0


def build_topology(machines: Sequence[Machine], names: Sequence[str]) -> Topology:
    """The levels `names`, outermost first, between the cluster and its hosts. Every node must state all of them."""
    short = [machine.name for machine in machines if len(machine.domain) != len(names)]
    if short:
        raise SpecError(
            f"{len(short)} of {len(machines)} nodes do not state the {len(names)} levels {', '.join(names)}",
            hint=f"for example {short[0]}",
        )
    paths = [(*machine.domain, machine.name) for machine in machines]
    order = np.array(sorted(range(len(paths)), key=lambda n: (paths[n][:-1], n)), np.int64)
    domain = [np.zeros(len(machines), np.int64)]
    for depth in range(1, len(names) + 1):
        seen: dict[tuple[str, ...], int] = {}
        numbers = np.zeros(len(machines), np.int64)
        for n in order:
            numbers[n] = seen.setdefault(paths[n][:depth], len(seen))
        domain.append(numbers)
    hosts = np.zeros(len(machines), np.int64)
    hosts[order] = np.arange(len(machines))
    return Topology(levels=(CLUSTER, *names, HOST), domain=(*domain, hosts), order=order)


def spread_out(slots: Ints, ranks: int) -> Ints:
    """`slots` with the fewest ranks per node that still hold `ranks` in all."""
    for most in range(1, int(slots.max(initial=0)) + 1):
        capped = np.minimum(slots, most)
        if capped.sum() >= ranks:
            return capped
    return slots


def arrange(topology: Topology, slots: Ints, shape: Shape) -> Ints | None:
    """How many ranks go to each node, given how many would fit, or None when the gang does not fit as it must."""
    if shape.segment > 1:
        return _arrange_segments(topology, slots, shape)
    return _descend(topology, slots, ranks=shape.ranks, deepest=len(topology.levels) - 1, within=shape.within)


def rank_nodes(topology: Topology, counts: Ints) -> Ints:
    """The node of each rank, depth first."""
    return np.repeat(topology.order, counts[topology.order])


def crossings(topology: Topology, nodes: Ints, depth: int) -> int:
    """Edges of the ring over ranks on `nodes` whose ends are in different domains of a level."""
    at = topology.domain[depth][nodes]
    return int((at != np.roll(at, -1)).sum()) if len(nodes) > 1 else 0


def _arrange_segments(topology: Topology, slots: Ints, shape: Shape) -> Ints | None:
    """Slices first: each domain of the slice's level counts for as many slices as it holds; then ranks inside it."""
    depth = shape.segment_depth
    if shape.ranks % shape.segment:
        return None
    room = np.bincount(topology.domain[depth], weights=slots).astype(np.int64) // shape.segment
    first = np.zeros(len(room), np.int64)
    first[topology.domain[depth][topology.order[::-1]]] = topology.order[::-1]
    units = np.zeros_like(slots)
    units[first] = room
    chosen = _descend(
        topology, units, ranks=shape.ranks // shape.segment, deepest=depth, within=min(shape.within, depth)
    )
    if chosen is None:
        return None
    counts = np.zeros_like(slots)
    for n in np.flatnonzero(chosen):
        inside = topology.domain[depth] == topology.domain[depth][n]
        _fill(topology, slots * inside, int(chosen[n]) * shape.segment, depth, counts)
    return counts


def _descend(topology: Topology, slots: Ints, *, ranks: int, deepest: int, within: int) -> Ints | None:
    """The fullest domain of the deepest level that holds `ranks`, filled; levels above `within` are not allowed."""
    for depth in range(deepest, within - 1, -1):
        room = np.bincount(topology.domain[depth], weights=slots).astype(np.int64)
        holding = np.flatnonzero(room >= ranks)
        if len(holding):
            chosen = _tightest(topology, slots, depth, holding, room)
            counts = np.zeros_like(slots)
            _fill(topology, slots * (topology.domain[depth] == chosen), ranks, depth, counts)
            return counts
    return None


def _tightest(topology: Topology, slots: Ints, depth: int, holding: Ints, room: Ints) -> int:
    """The domain with the least room; of equal ones that in the fullest domain above, so that whole ones stay whole."""
    keys = [holding, room[holding]]
    above = np.zeros(len(room), np.int64)
    for upper in range(depth - 1, 0, -1):
        total = np.bincount(topology.domain[upper], weights=slots).astype(np.int64)
        above[topology.domain[depth]] = total[topology.domain[upper]]
        keys.insert(1, above[holding])
    return int(holding[np.lexsort(keys)[0]])


def _fill(topology: Topology, slots: Ints, ranks: int, depth: int, counts: Ints) -> None:
    """Give `ranks` to nodes of one domain: roomiest parts whole, the rest into the part that it fills best.

    Where one part does not hold them and parts have parts themselves, as few parts as do are filled as if they were
    one: two blocks are crossed once either way, and among the racks of both there are roomier ones.
    """
    if ranks == 0:
        return
    last = len(topology.levels) - 1
    if depth == last:
        counts[np.flatnonzero(slots)[0]] += ranks
        return
    inner = topology.domain[depth + 1]
    room = np.bincount(inner, weights=slots).astype(np.int64)
    parts = np.flatnonzero(room)
    parts = parts[np.lexsort((parts, -room[parts]))]
    if room[parts[0]] < ranks and depth + 1 < last - 1:
        enough = int(np.searchsorted(np.cumsum(room[parts]), ranks)) + 1
        _fill(topology, slots * np.isin(inner, parts[:enough]), ranks, depth + 1, counts)
        return
    for part, share in _take_parts(parts, room, ranks):
        if depth + 1 == last:
            counts[topology.order[part]] += share
        else:
            _fill(topology, slots * (inner == part), share, depth + 1, counts)


def _take_parts(parts: Ints, room: Ints, ranks: int) -> list[tuple[int, int]]:
    """Of `parts`, roomiest first, each whole while it is needed whole; then the tightest that holds the rest."""
    taken: list[tuple[int, int]] = []
    for number, part in enumerate(parts):
        if room[part] >= ranks:
            rest = parts[number:]
            enough = rest[room[rest] >= ranks]
            taken.append((int(enough[np.lexsort((enough, room[enough]))[0]]), ranks))
            break
        taken.append((int(part), int(room[part])))
        ranks -= int(room[part])
    return taken
