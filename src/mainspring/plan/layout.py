"""Which devices a plan may use, and how many micro-batches each gets.

An offer is an ordered tuple of ranks: fastest kind of device first, node by node, so that consecutive ranks are
neighbours. What is offered for a kind never depends on how many more of it there are: a larger cluster offers all
that a smaller one does, and can therefore not be given a slower plan.
"""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mainspring.spec import Cluster, Device

HOST = "cpu"  # the one vendor whose device several ranks may share


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's place: a node, a device there, and the share of the device that is its own."""

    node: int
    device: Device
    share: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """Ranks in order, and the same ranks as runs of equals (in all but the node), which is what estimates need."""

    ranks: tuple[Rank, ...]
    groups: tuple[tuple[Rank, int], ...]


def offer_of(ranks: Sequence[Rank]) -> Offer:
    """Those ranks as an offer."""
    runs = itertools.groupby(ranks, key=lambda rank: (rank.device, rank.share, rank.memory_bytes))
    members = [list(run) for _, run in runs]
    return Offer(ranks=tuple(ranks), groups=tuple((run[0], len(run)) for run in members))


def capacity(cluster: Cluster) -> int:
    """The most ranks the cluster can hold: one per accelerator, one per core of a host CPU."""
    return sum(cluster.nodes[node].cpu_cores if device.vendor == HOST else 1 for node, device in _healthy(cluster))


def offers(cluster: Cluster, *, global_batch: int, ranks: int | None = None) -> Iterator[Offer]:
    """Every set of ranks worth planning for; with `ranks`, those of that size only.

    Replicas on one kind of device share the batch evenly, so their number divides `global_batch`. Of two kinds
    up to eight each and powers of two are mixed, of three powers of two, and of everything the whole.
    """
    kinds = _kinds(cluster)
    whole = [rank for kind in kinds for rank in _whole_kind(kind)]
    whole_offered = len(whole) > global_batch or ranks not in (None, len(whole))
    for size in range(1, min(3, len(kinds)) + 1):
        for chosen in itertools.combinations(kinds, size):
            for mixture in _mixtures(chosen, global_batch, ranks):
                whole_offered = whole_offered or mixture == whole
                yield offer_of(mixture)
    if len(kinds) > 1 and not whole_offered:
        yield offer_of(whole)


def even_count(replicas: int, total: int) -> int | None:
    """What each of `replicas` runs of `total` micro-batches shared evenly; None when they cannot be."""
    each, rest = divmod(total, replicas)
    return None if rest or not each else each


def fastest_counts(speeds: Sequence[tuple[float, int]], total: int) -> tuple[tuple[int, int], ...] | None:
    """Micro-batches that end soonest on groups of replicas, `(seconds of one, replicas)`; None when some get none.

    The answer has `(count, extra)` for each group: every replica runs `count`, its first `extra` one more. Giving
    each next micro-batch to the replica that would finish it first is optimal for equal jobs on machines of different
    speed; it starts from one each and the whole part of the proportional share, which no optimum goes below.
    """
    left = total - sum(size for _, size in speeds)
    if left < 0:
        return None
    rate = sum(size / seconds for seconds, size in speeds)
    counts = [max(1, int(total / rate / seconds)) for seconds, _ in speeds]
    if sum(count * size for count, (_, size) in zip(counts, speeds, strict=True)) > total:
        counts = [1] * len(speeds)
    left = total - sum(count * size for count, (_, size) in zip(counts, speeds, strict=True))
    extra = [0] * len(speeds)
    queue = [((counts[group] + 1) * seconds, group) for group, (seconds, _) in enumerate(speeds)]
    heapq.heapify(queue)
    while left:
        _, group = queue[0]
        seconds, size = speeds[group]
        if left < size:
            extra[group] = left
            break
        counts[group] += 1
        left -= size
        heapq.heapreplace(queue, ((counts[group] + 1) * seconds, group))
    return tuple(zip(counts, extra, strict=True))


def divisors(number: int) -> tuple[int, ...]:
    """All divisors, ascending."""
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return tuple(sorted({*low, *(number // d for d in low)}))


_Kind = tuple[Device, tuple[tuple[int, int, int], ...]]


def _healthy(cluster: Cluster) -> Iterator[tuple[int, Device]]:
    """Devices fit for work, with their node. Health is listed in the order of the devices."""
    for index, node in enumerate(cluster.nodes):
        for position, device in enumerate(node.devices):
            if position >= len(node.health) or node.health[position].state != "unhealthy":
                yield index, device


def _kinds(cluster: Cluster) -> list[_Kind]:
    """Devices by kind, fastest first: `(device, ((node, cores, memory), ...))` with one entry per device."""
    found: dict[Device, list[tuple[int, int, int]]] = {}
    for node, device in _healthy(cluster):
        host = cluster.nodes[node]
        memory = min(device.memory_bytes, host.memory_bytes) if device.vendor == HOST else device.memory_bytes
        found.setdefault(device, []).append((node, host.cpu_cores, memory))
    fastest = sorted(found, key=lambda device: (-device.bf16_flops_per_s, device.name))
    return [(device, tuple(found[device])) for device in fastest]


def _mixtures(kinds: Sequence[_Kind], global_batch: int, ranks: int | None) -> Iterator[list[Rank]]:
    """Combinations of a number of ranks of each of `kinds`."""
    choices = [list(_prefixes(kind, global_batch, mixed=len(kinds))) for kind in kinds]
    for parts in itertools.product(*choices):
        world = sum(len(part) for part in parts)
        if world <= global_batch and ranks in (None, world):
            yield list(itertools.chain.from_iterable(parts))


def _prefixes(kind: _Kind, global_batch: int, *, mixed: int) -> Iterator[list[Rank]]:
    """The first n ranks of one kind, for each n worth trying next to `mixed - 1` other kinds."""
    device, places = kind
    most_shares = max(cores for _, cores, _ in places) if device.vendor == HOST else 1
    for split in range(1, most_shares + 1):
        slots = [
            Rank(node=node, device=device, share=1 / split, memory_bytes=memory // split)
            for node, cores, memory in places
            if split == 1 or split <= cores
            for _ in range(split)
        ]
        for count in range(split, len(slots) + 1, split):
            if _worth_trying(count, global_batch, mixed):
                yield slots[:count]


def _worth_trying(count: int, global_batch: int, mixed: int) -> bool:
    if mixed == 1:
        return global_batch % count == 0
    odd = count >> ((count & -count).bit_length() - 1)
    return odd == 1 or (mixed == 2 and count <= 8)


def _whole_kind(kind: _Kind) -> Iterator[Rank]:
    device, places = kind
    for node, _, memory in places:
        yield Rank(node=node, device=device, share=1.0, memory_bytes=memory)
