"""What happened, written into the books: gangs come and go, nodes fail and return, quotas are pooled and given back."""

from dataclasses import replace

import numpy as np

from mainspring.cluster.schedule.elastic import in_shape, smallest
from mainspring.cluster.schedule.fleet import copy_nodes
from mainspring.cluster.schedule.gather import begin_lease, end_lease, expire_lease
from mainspring.cluster.schedule.limits import refusal
from mainspring.cluster.schedule.reclaim import lost_ms
from mainspring.cluster.schedule.state import CLOSED, Entry, State, arrive, enqueue, leave, new_entry, release
from mainspring.spec import (
    WHOLE,
    Decision,
    Ended,
    Gang,
    Gathered,
    Happening,
    NodeChanged,
    NotFound,
    Saved,
    SpecError,
    Submitted,
)


def apply_change(state: State, happening: Happening) -> list[Decision]:
    """Write one thing that happened into the books, which are changed; what follows at once from it."""
    match happening:
        case Submitted():
            return _submit(state, happening.gang)
        case Ended():
            return _end(state, happening.gang)
        case Saved():
            entry = state.entries.get(happening.gang)
            if entry is not None and entry.place is not None:
                state.entries[happening.gang] = replace(entry, saved_ms=state.now_ms)
            return []
        case NodeChanged():
            return _change_node(state, happening)
        case Gathered():
            return begin_lease(state, happening)


def expire_leases(state: State) -> None:
    """Give back what was pooled until now."""
    for lease in state.leases:
        if lease.until_ms <= state.now_ms and not lease.over:
            expire_lease(state, lease)


def _submit(state: State, gang: Gang) -> list[Decision]:
    try:
        entry, reason = _admissible(state, gang)
    except SpecError as error:
        return [Decision(kind="refuse", gang=gang.id, reason=str(error), hint=error.hint)]
    if reason:
        return [Decision(kind="refuse", gang=gang.id, reason=reason)]
    arrive(state, entry)
    return []


def _admissible(state: State, gang: Gang) -> tuple[Entry, str]:
    """The gang's record, of a menu with the offers that could ever run and in the smallest of them; or why not."""
    entry = new_entry(state, gang, state.tree.leaf(gang.queue))
    if gang.id in state.entries:
        return entry, f"a gang called {gang.id} is already known"
    if not gang.menu:
        return entry, refusal(state, entry)
    reasons = {offer: refusal(state, in_shape(state, entry, offer)) for offer in gang.menu}
    possible = tuple(offer for offer, reason in reasons.items() if not reason)
    if not possible:
        return entry, f"none of its {len(gang.menu)} offers can run: {reasons[gang.menu[0]]}"
    kept = replace(entry, gang=replace(gang, menu=possible))
    return in_shape(state, kept, smallest(possible)), ""


def _end(state: State, name: str) -> list[Decision]:
    """Forget a gang. One that is not known has been forgotten before: events may come twice."""
    entry = state.entries.get(name)
    if entry is None:
        return []
    leave(state, entry)
    for lease in state.leases:
        if lease.gang.id == name:
            end_lease(state, lease)
    return []


def _change_node(state: State, changed: NodeChanged) -> list[Decision]:
    """Open or close a node, and take sick devices out of its capacity; gangs on what is lost wait again."""
    if changed.node not in state.fleet.names:
        raise NotFound(f"no node {changed.node!r} among {len(state.fleet.names)}")
    n = state.fleet.names.index(changed.node)
    size = int(state.fleet.total.size[n])
    if any(not 0 <= number < size for number in changed.sick):
        raise SpecError(f"node {changed.node} has {size} devices, and of these {changed.sick} are said to be sick")
    bad = sum(1 << number for number in changed.sick)
    decisions: list[Decision] = []
    for entry in state.running():
        assert entry.place is not None
        here = entry.place.nodes == n
        if here.any() and (not changed.open or (entry.place.devices[here] & bad).any()):
            reason = f"{changed.node} {'is closed' if not changed.open else f'lost device {changed.sick}'}"
            lost = lost_ms(state, entry)
            enqueue(state, replace(release(state, entry), reason=reason))
            decisions.append(Decision(kind="evict", gang=entry.gang.id, reason=reason, lost_ms=lost))
    _set_capacity(state, n, changed)
    return decisions


def _set_capacity(state: State, n: int, changed: NodeChanged) -> None:
    fleet = state.fleet
    total = copy_nodes(fleet.total)
    was = total.devices[n].copy()
    total.devices[n, : int(total.size[n])] = WHOLE
    total.devices[n, list(changed.sick)] = 0
    fleet.free.devices[n] += total.devices[n] - was
    fleet.total = total
    closed = n in state.closed
    if closed == changed.open:
        fleet.free.cpu[n] += CLOSED if closed else -CLOSED
        state.closed = state.closed ^ {n}
    state.sick[n] = changed.sick
    assert np.all(fleet.free.devices[n] >= 0)
