"""Three situations in which schedulers that decide quota, topology and fragmentation in turn leave a job waiting.

Each comes with the gang that wants to start. `smallest_sets` says by exhaustion which sets of running gangs would have
to leave their places for it.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from mainspring.cluster.schedule.decide import decide
from mainspring.cluster.schedule.gang import find_place, usable_nodes
from mainspring.cluster.schedule.state import State, build_state, release
from mainspring.spec import Gang, Machine, Queue, Quota, Request, Rules, Submitted

MODEL = "H100"
EIGHT = 8


def scattered_cliques() -> tuple[State, Gang]:
    """kueue #10815: what fairness frees lies in several cliques of NVLink, and topology then refuses the gang."""
    hosts = [(f"r{rack}h{host}", 1, EIGHT) for rack in range(4) for host in range(2)]
    state = _busy(_machines(racks=4, hosts=2), {"a": 32, "b": 32}, hosts)
    return state, _gang("b", "b", ranks=2, devices=EIGHT, level="rack")


def rack_to_clear() -> tuple[State, Gang]:
    """kueue #12478: enough is free in all, nowhere in the one rack that is required; others could move."""
    hosts = [(f"r{rack}h0", 1, EIGHT) for rack in range(3)]
    state = _busy(_machines(racks=3, hosts=2), {"a": 24, "b": 24}, hosts)
    return state, _gang("b", "b", ranks=2, devices=EIGHT, level="rack")


def crumbs() -> tuple[State, Gang]:
    """kueue #5243: two devices free on each of four nodes; a job of high priority needs eight on one."""
    taken = [(f"r0h{host}", 3, 2) for host in range(4)]
    state = _busy(_machines(racks=1, hosts=4), {"a": 32}, taken)
    return state, _gang("b", "a", ranks=1, devices=EIGHT, priority=10)


SITUATIONS = {"kueue #10815": scattered_cliques, "kueue #12478": rack_to_clear, "kueue #5243": crumbs}


def smallest_sets(state: State, gang: Gang, *, most: int = 4) -> list[tuple[str, ...]]:
    """The smallest sets of running gangs without which `gang` would have room; none when `most` are too few."""
    running = sorted(entry.gang.id for entry in state.running() if entry.gang.preemptible)
    for size in range(most + 1):
        if found := [gone for gone in combinations(running, size) if _has_room(state, gang, gone)]:
            return found
    return []


def _has_room(state: State, gang: Gang, gone: tuple[str, ...]) -> bool:
    trial = state.copy()
    for name in gone:
        release(trial, trial.entries[name])
    usable = usable_nodes(trial.fleet, gang, MODEL)
    return find_place(trial.fleet, trial.topology, gang, MODEL, usable) is not None


def _machines(*, racks: int, hosts: int) -> list[Machine]:
    return [
        Machine(
            name=f"r{rack}h{host}",
            cpu_milli=64_000,
            memory_mib=1 << 19,
            devices=EIGHT,
            model=MODEL,
            domain=(f"b{rack // 4}", f"r{rack}"),
        )
        for rack in range(racks)
        for host in range(hosts)
    ]


def _gang(name: str, queue: str, *, ranks: int, devices: int, level: str = "", priority: int = 0) -> Gang:
    return Gang(
        id=name,
        queue=queue,
        ranks=ranks,
        request=Request(cpu_milli=100, devices=devices),
        level=level,
        binding="required" if level else "preferred",
        priority=priority,
    )


def _busy(machines: list[Machine], minima: dict[str, int], taken: list[tuple[str, int, int]]) -> State:
    """A cluster on which queue `a` runs so many gangs of so many devices on these nodes, bound to none of them."""
    queues = [Queue(name=name, quotas=(Quota(resource="devices", min=least),)) for name, least in minima.items()]
    state = build_state(machines, queues, levels=("block", "rack"), rules=Rules(shield_ms=0))
    gangs = [replace(_gang(name, "a", ranks=1, devices=size), nodes=(node,)) for name, node, size in _names(taken)]
    state = decide(state, [Submitted(gang=gang) for gang in gangs], now_ms=0).state
    for name, entry in state.entries.items():
        assert entry.place is not None
        state.entries[name] = replace(entry, gang=replace(entry.gang, nodes=()))
    return state


def _names(taken: list[tuple[str, int, int]]) -> Iterator[tuple[str, str, int]]:
    for node, count, size in taken:
        for number in range(count):
            yield f"{node}-{number}", node, size
