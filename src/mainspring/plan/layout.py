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


Offer = tuple[Rank, ...]


def capacity(cluster: Cluster) -> int:
    """The most ranks the cluster can hold: one per accelerator, one per core of a host CPU."""
    return sum(cluster.nodes[node].cpu_cores if device.vendor == HOST else 1 for node, device in _healthy(cluster))


def offers(cluster: Cluster, *, global_batch: int, ranks: int | None = None) -> Iterator[Offer]:
    """Every set of ranks worth planning for; with `ranks`, those of that size only.

    Replicas on one kind of device share the batch evenly, so their number divides `global_batch`. Of two kinds any
    handy numbers are mixed, of three powers of two, and of everything the whole.
    """
    kinds = _kinds(cluster)
    seen: set[Offer] = set()
    for size in range(1, min(3, len(kinds)) + 1):
        for chosen in itertools.combinations(kinds, size):
            for offer in _mixtures(chosen, global_batch, ranks):
                if offer not in seen:
                    seen.add(offer)
                    yield offer
    if len(kinds) > 1:
        whole = tuple(rank for device, nodes in kinds for rank in _whole_kind(device, nodes))
        if whole not in seen and ranks in (None, len(whole)) and len(whole) <= global_batch:
            yield whole


def even_counts(replicas: int, total: int) -> tuple[int, ...] | None:
    """`total` micro-batches shared evenly; None when they cannot be."""
    each, rest = divmod(total, replicas)
    return None if rest or not each else (each,) * replicas


def fastest_counts(seconds: Sequence[float], total: int) -> tuple[int, ...] | None:
    """Micro-batches per replica that end soonest when replica `r` takes `seconds[r]` over one; at least one each.

    Giving each next micro-batch to the replica that would finish it first is optimal for equal jobs on machines of
    different speed. It starts from the whole part of the proportional share, which no optimum goes below.
    """
    if total < len(seconds):
        return None
    speed = sum(1 / s for s in seconds)
    counts = [max(1, int(total / speed / s)) for s in seconds]
    while sum(counts) > total:
        counts[max((c * s, i) for i, (c, s) in enumerate(zip(counts, seconds, strict=True)) if c > 1)[1]] -= 1
    queue = [((count + 1) * s, index) for index, (count, s) in enumerate(zip(counts, seconds, strict=True))]
    heapq.heapify(queue)
    for _ in range(total - sum(counts)):
        _, index = queue[0]
        counts[index] += 1
        heapq.heapreplace(queue, ((counts[index] + 1) * seconds[index], index))
    return tuple(counts)


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


def _mixtures(kinds: Sequence[_Kind], global_batch: int, ranks: int | None) -> Iterator[Offer]:
    """Combinations of a number of ranks of each of `kinds`."""
    choices = [list(_prefixes(kind, global_batch, mixed=len(kinds))) for kind in kinds]
    for parts in itertools.product(*choices):
        world = sum(len(part) for part in parts)
        if world <= global_batch and ranks in (None, world):
            yield tuple(itertools.chain.from_iterable(parts))


def _prefixes(kind: _Kind, global_batch: int, *, mixed: int) -> Iterator[Offer]:
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
                yield tuple(slots[:count])


def _worth_trying(count: int, global_batch: int, mixed: int) -> bool:
    if mixed == 1:
        return global_batch % count == 0
    odd = count >> ((count & -count).bit_length() - 1)
    return odd == 1 or (mixed == 2 and (count <= 8 or odd == 3))


def _whole_kind(device: Device, places: tuple[tuple[int, int, int], ...]) -> Iterator[Rank]:
    for node, _, memory in places:
        yield Rank(node=node, device=device, share=1.0, memory_bytes=memory)
