"""What the scheduler knows: machines, queues, and every gang that waits or runs. Changed only by `decide`.

A state is a value: `copy` is cheap (arrays and one dictionary), nothing in it refers to a clock or a connection, and
gangs' records are frozen. A what-if is a decision on a copy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mainspring.cluster.schedule.fleet import Fleet, build_fleet
from mainspring.cluster.schedule.gang import Place, occupy
from mainspring.cluster.schedule.quota import Tree, Vector, build_tree
from mainspring.cluster.schedule.topology import Topology, build_topology
from mainspring.spec import ANY_DEVICE, Gang, Machine, Queue, Rules

CLOSED = 1 << 40  # thousandths of a cpu that a closed node owes


@dataclass(frozen=True, slots=True)
class Entry:
    """A gang and where it is in life. `number` is its order of arrival; `started_ms` is negative while it waits."""

    gang: Gang
    leaf: int
    number: int
    arrived_ms: int
    started_ms: int = -1
    saved_ms: int = 0
    place: Place | None = None
    asked: Vector = ()  # what its queue wishes for it, running or not; see `wished`
    held: Vector = ()  # what it holds while it runs
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """All quotas under `queue`, pooled for `gang` until `until_ms`; then it is `over`, and goes with the gang."""

    queue: str
    gang: Gang
    until_ms: int
    over: bool = False


@dataclass(slots=True)
class State:
    """The scheduler's books, as vectors by branch of the tree.

    `used` is what is held, `fixed` the part of it that is not preemptible, `claimed` what running gangs asked for and
    `asked`, by leaf, what all gangs did: it does not change when one starts or stops. `waiting` maps each leaf to its
    classes of equal gangs, each in order of arrival. `elastic` are the gangs with a menu.
    """

    planted: Tree
    tree: Tree
    topology: Topology
    fleet: Fleet
    rules: Rules
    entries: dict[str, Entry]
    waiting: dict[int, dict[tuple[object, ...], dict[str, None]]]
    used: list[list[int]]
    fixed: list[list[int]]
    claimed: list[list[int]]
    asked: list[list[int]]
    sick: dict[int, tuple[int, ...]] = field(default_factory=dict)
    closed: frozenset[int] = frozenset()
    leases: tuple[Lease, ...] = ()
    elastic: frozenset[str] = frozenset()
    now_ms: int = 0
    arrivals: int = 0

    def copy(self) -> "State":
        """A state of its own; what is frozen is shared."""
        return replace(
            self,
            fleet=self.fleet.copy(),
            entries=dict(self.entries),
            waiting={leaf: {key: dict(ids) for key, ids in found.items()} for leaf, found in self.waiting.items()},
            used=[list(row) for row in self.used],
            fixed=[list(row) for row in self.fixed],
            claimed=[list(row) for row in self.claimed],
            asked=[list(row) for row in self.asked],
            sick=dict(self.sick),
        )

    @property
    def total(self) -> Vector:
        """What the open and healthy part of the cluster has."""
        total, open_nodes = self.fleet.total, np.ones(len(self.fleet.names), np.bool_)
        open_nodes[list(self.closed)] = False
        devices = total.devices.sum(axis=1) * open_nodes
        amounts = {
            "cpu": int((total.cpu * open_nodes).sum()),
            "memory": int((total.memory * open_nodes).sum()),
            ANY_DEVICE: int(devices.sum()),
        }
        for number, model in enumerate(self.fleet.models):
            amounts[f"{ANY_DEVICE}/{model}"] = int(devices[total.model == number].sum())
        return tuple(amounts[resource] for resource in self.tree.resources)

    def running(self) -> list[Entry]:
        """Every running gang, in order of arrival."""
        return sorted((entry for entry in self.entries.values() if entry.place), key=lambda entry: entry.number)


def build_state(
    machines: Sequence[Machine], queues: Sequence[Queue], *, levels: Sequence[str] = (), rules: Rules | None = None
) -> State:
    """An idle cluster of `machines` shared by `queues`; one queue called `default` when there are none."""
    fleet = build_fleet(machines)
    tree = build_tree(queues or (Queue(name="default"),), fleet.models)
    blank = [[0] * len(tree.resources) for _ in tree.branches]
    return State(
        planted=tree,
        tree=tree,
        topology=build_topology(machines, levels),
        fleet=fleet,
        rules=rules or Rules(),
        entries={},
        waiting={},
        used=[list(row) for row in blank],
        fixed=[list(row) for row in blank],
        claimed=[list(row) for row in blank],
        asked=[list(row) for row in blank],
    )


def class_of(gang: Gang) -> tuple[object, ...]:
    """What makes two gangs of a queue alike to the scheduler, save their age."""
    wishes = (gang.level, gang.binding, gang.segment, gang.segment_level, gang.layout, gang.nodes)
    return (gang.request, gang.ranks, gang.priority, gang.preemptible, gang.runtime_ms, *wishes)


def new_entry(state: State, gang: Gang, leaf: int) -> Entry:
    """The record of a gang that has just arrived in a queue."""
    state.arrivals += 1
    return Entry(
        gang=gang,
        leaf=leaf,
        number=state.arrivals,
        arrived_ms=state.now_ms,
        asked=wished(state.tree, gang, state.fleet.models),
    )


def arrive(state: State, entry: Entry) -> None:
    """Let a new gang wait, and its queue wish for what it asks."""
    if entry.gang.menu:
        state.elastic |= {entry.gang.id}
    add(state.asked[entry.leaf], entry.asked)
    enqueue(state, entry)


def leave(state: State, entry: Entry) -> None:
    """Forget a gang."""
    dequeue(state, entry) if entry.place is None else release(state, entry)
    add(state.asked[entry.leaf], entry.asked, sign=-1)
    state.elastic -= {entry.gang.id}
    del state.entries[entry.gang.id]


def enqueue(state: State, entry: Entry) -> None:
    """Let a gang wait, in its order of arrival among its equals."""
    state.entries[entry.gang.id] = entry
    classes = state.waiting.setdefault(entry.leaf, {})
    found = classes.setdefault(class_of(entry.gang), {})
    late = bool(found) and state.entries[next(reversed(found))].number > entry.number
    found[entry.gang.id] = None
    if late:
        ordered = sorted(found, key=lambda each: state.entries[each].number)
        classes[class_of(entry.gang)] = dict.fromkeys(ordered)


def dequeue(state: State, entry: Entry) -> None:
    """Take a gang out of those that wait."""
    classes = state.waiting[entry.leaf]
    found = classes[class_of(entry.gang)]
    del found[entry.gang.id]
    if not found:
        del classes[class_of(entry.gang)]


def hold(state: State, entry: Entry, place: Place) -> Entry:
    """Give a gang its place, in the fleet and in the books; it must not be waiting any more."""
    held = state.tree.vector(entry.gang.request, ranks=entry.gang.ranks, model=place.model)
    started = replace(entry, place=place, held=held, started_ms=state.now_ms, saved_ms=state.now_ms, reason="running")
    state.entries[entry.gang.id] = started
    occupy(state.fleet, entry.gang, place)
    book(state, started, sign=1)
    return started


def release(state: State, entry: Entry) -> Entry:
    """Take a running gang off its place; the record of it as it would wait again."""
    assert entry.place is not None
    occupy(state.fleet, entry.gang, entry.place, sign=1)
    book(state, entry, sign=-1)
    return replace(entry, place=None, held=(), started_ms=-1)


def book(state: State, entry: Entry, *, sign: int) -> None:
    """Count what a running gang holds (or with `sign=-1` no longer does) in its queue and all above."""
    for at in state.tree.path(entry.leaf):
        add(state.used[at], entry.held, sign=sign)
        add(state.claimed[at], entry.asked, sign=sign)
        if not entry.gang.preemptible:
            add(state.fixed[at], entry.held, sign=sign)


def add(row: list[int], vector: Sequence[int], *, sign: int = 1) -> None:
    """Add a vector in place."""
    for r, value in enumerate(vector):
        row[r] += sign * value


def wished(tree: Tree, gang: Gang, models: Sequence[str]) -> Vector:
    """What a waiting gang asks for; of one model only when the gang itself insists on that model."""
    able = [model for model in gang.request.models if model in models]
    return tree.vector(gang.request, ranks=gang.ranks, model=able[0] if len(able) == 1 and gang.request.devices else "")


def names_of(state: State, place: Place) -> tuple[str, ...]:
    """The node of each rank by name."""
    return tuple(state.fleet.names[n] for n in place.nodes)


def open_again(state: State, entries: Mapping[str, Entry]) -> None:
    """Rebuild the books of the tree from the records; used when the tree itself changes."""
    blank = len(state.tree.resources)
    state.used, state.fixed, state.claimed, state.asked = ([[0] * blank for _ in state.tree.branches] for _ in range(4))
    state.waiting = {}
    for entry in sorted(entries.values(), key=lambda each: each.number):
        add(state.asked[entry.leaf], entry.asked)
        if entry.place:
            book(state, entry, sign=1)
        else:
            enqueue(state, entry)


def priority_now(state: State, entry: Entry) -> int:
    """Priority with age: every `ageing_ms` of waiting counts one."""
    waited = state.now_ms - entry.arrived_ms
    return entry.gang.priority + (waited // state.rules.ageing_ms if state.rules.ageing_ms else 0)
