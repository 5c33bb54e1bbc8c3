"""Carrying a choice out in the books: gangs stop, move and start, and each of it is a decision with its reason."""

from dataclasses import replace

from mainspring.cluster.schedule.gang import Place
from mainspring.cluster.schedule.reclaim import Room, lost_ms
from mainspring.cluster.schedule.state import Entry, State, dequeue, enqueue, hold, names_of, release
from mainspring.spec import Decision


def carry_out(state: State, entry: Entry, room: Room, decisions: list[Decision]) -> None:
    """Stop and move the victims, and start the gang."""
    why = f"makes room for {entry.gang.id}"
    places = dict(room.moved)
    for name in (*room.stopped, *places):
        victim = state.entries[name]
        verb = "moves" if name in places else "stops"
        waiting = replace(release(state, victim), reason=f"{verb}: {why}")
        lost = lost_ms(state, victim)
        decisions.append(Decision(kind="evict", gang=name, reason=waiting.reason, lost_ms=lost, room_for=entry.gang.id))
        if name in places:
            state.entries[name] = waiting
        else:
            enqueue(state, waiting)
    for name, place in places.items():
        start_at(state, state.entries[name], place, why, decisions)
    dequeue(state, entry)
    reason = f"in the place of {', '.join((*room.stopped, *places)[:3])}" if room.stopped or places else "there is room"
    start_at(state, entry, room.place, reason, decisions)


def start_at(state: State, entry: Entry, place: Place, reason: str, decisions: list[Decision]) -> None:
    """Let a gang that waits nowhere any more hold its place, and say so."""
    hold(state, entry, place)
    devices = tuple(int(bits) for bits in place.devices)
    decisions.append(
        Decision(
            kind="start",
            gang=entry.gang.id,
            reason=reason,
            nodes=names_of(state, place),
            devices=devices,
            plan=entry.gang.plan,
        )
    )
