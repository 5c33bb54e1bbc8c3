"""One reservation: the first gang that waits for room is promised a time, and nobody may make it later.

EASY backfilling (Lifka 1995): running gangs are taken off in the order in which they are expected to end until the
gang fits. Others may still start if they will have ended by then, or where they leave the promised room free.
"""

from dataclasses import dataclass

import numpy as np

from mainspring.cluster.schedule.fleet import Fleet, copy_nodes
from mainspring.cluster.schedule.gang import find_place, occupy, usable_nodes
from mainspring.cluster.schedule.kernels import Nodes
from mainspring.cluster.schedule.state import Entry, State


@dataclass(frozen=True, slots=True)
class Promise:
    """Room for `gang` at `at_ms`; `left` is what is free then besides."""

    gang: str
    at_ms: int
    left: Nodes


def promise_room(state: State, entry: Entry, model: str) -> Promise | None:
    """When the gang will have room if nobody ends late, or None when that cannot be foreseen."""
    fleet = state.fleet
    later = Fleet(fleet.names, fleet.models, fleet.total, copy_nodes(fleet.free))
    usable = usable_nodes(fleet, entry.gang, model)
    ending = [each for each in state.running() if each.gang.runtime_ms]
    for each in sorted(ending, key=lambda each: (each.started_ms + each.gang.runtime_ms, each.number)):
        assert each.place is not None
        occupy(later, each.gang, each.place, sign=1)
        place = find_place(later, state.topology, entry.gang, model, usable)
        if place is not None:
            occupy(later, entry.gang, place)
            at_ms = max(state.now_ms, each.started_ms + each.gang.runtime_ms)
            return Promise(gang=entry.gang.id, at_ms=at_ms, left=later.free)
    return None


def fleet_beside(state: State, entry: Entry, promise: Promise | None) -> Fleet:
    """What is free to this gang: everything, or less what is promised to another that would have to wait for it."""
    fleet, runtime_ms = state.fleet, entry.gang.runtime_ms
    if promise is None or promise.gang == entry.gang.id:
        return fleet
    if runtime_ms and state.now_ms + runtime_ms <= promise.at_ms:
        return fleet
    free, left = fleet.free, promise.left
    both = Nodes(
        cpu=np.minimum(free.cpu, left.cpu),
        memory=np.minimum(free.memory, left.memory),
        devices=np.minimum(free.devices, left.devices),
        size=free.size,
        model=free.model,
    )
    return Fleet(fleet.names, fleet.models, fleet.total, both)


def keep_promise(promise: Promise | None, entry: Entry, *, now_ms: int) -> None:
    """Count a gang that has just started against what is left at the promised time, if it will still run then."""
    if promise is None or entry.place is None:
        return
    runtime_ms = entry.gang.runtime_ms
    if not runtime_ms or now_ms + runtime_ms > promise.at_ms:
        occupy(Fleet((), (), promise.left, promise.left), entry.gang, entry.place)
