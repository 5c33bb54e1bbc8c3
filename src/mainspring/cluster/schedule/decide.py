"""The scheduler: a state and what happened give a new state and what to do, each with its reason.

Queues take turns by how little of their share they use; within a queue priority decides, with age, then arrival. A gang
starts whole, where quota, topology and devices agree, or it waits and says why. The first that waits for room gets it
from others if it may (`reclaim`), or is promised a time (`backfill`).

Pure: `decide` changes nothing it is given, reads no clock, and the same arguments give the same answer. Time that runs
backwards is taken to stand still.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mainspring.cluster.schedule.backfill import Promise, fleet_beside, keep_promise, promise_room
from mainspring.cluster.schedule.changes import apply_change, expire_leases
from mainspring.cluster.schedule.elastic import reshape
from mainspring.cluster.schedule.gang import Place, find_place, usable_nodes
from mainspring.cluster.schedule.limits import models_for, over_limit
from mainspring.cluster.schedule.quota import Vector, divide
from mainspring.cluster.schedule.reclaim import build_claim, make_room, past_shield, within_share
from mainspring.cluster.schedule.starts import carry_out, start_at
from mainspring.cluster.schedule.state import Entry, State, class_of, dequeue, priority_now
from mainspring.spec import Decision, Happening, Saved

FULL = 1_000_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `decide` returns."""

    state: State
    decisions: tuple[Decision, ...]


@dataclass(slots=True)
class _Turn:
    """One pass over everybody who waits.

    `blocked` holds classes of gangs of which the first could not start, `shut` the queues of which nobody else may.
    """

    state: State
    total: Vector
    shares: tuple[Vector, ...]
    decisions: list[Decision]
    blocked: set[tuple[int, tuple[object, ...]]] = field(default_factory=set)
    shut: set[int] = field(default_factory=set)
    promise: Promise | None = None
    order: list[tuple[int, int]] = field(default_factory=list)


def decide(state: State, happenings: Sequence[Happening], *, now_ms: int) -> Outcome:
    """What to do after `happenings`, which are in order and all happened by `now_ms`."""
    state = state.copy()
    state.now_ms = max(state.now_ms, now_ms)
    expire_leases(state)
    decisions: list[Decision] = []
    for happening in happenings:
        decisions += apply_change(state, happening)
    total = state.total
    if state.elastic:
        saved = frozenset(each.gang for each in happenings if isinstance(each, Saved))
        decisions += reshape(state, saved, total)
    turn = _Turn(state, total, divide(state.tree, total, state.asked), decisions)
    _line_up(turn)
    while turn.order:
        leaf = turn.order[0][1]
        entry = _first(turn, leaf)
        if entry is None:
            heapq.heappop(turn.order)
        elif not _start(turn, entry):
            turn.blocked.add((leaf, class_of(entry.gang)))
        elif turn.order and turn.order[0][1] == leaf:
            heapq.heapreplace(turn.order, (_fullness(turn, leaf), leaf))
    return Outcome(state, tuple(decisions))


def _fullness(turn: _Turn, leaf: int) -> int:
    """How much of its share a queue uses, of what it uses most of, in millionths."""
    parts = zip(turn.state.used[leaf], turn.shares[leaf], strict=True)
    return max((FULL * used // share if share else FULL * FULL for used, share in parts if used), default=0)


def _first(turn: _Turn, leaf: int) -> Entry | None:
    """Whose turn it is in a queue, among those whose like has not been turned away."""
    state, best = turn.state, None
    if leaf in turn.shut:
        return None
    for key, found in state.waiting.get(leaf, {}).items():
        if (leaf, key) in turn.blocked:
            continue
        entry = state.entries[next(iter(found))]
        rank = (-priority_now(state, entry), entry.number)
        if best is None or rank < best[0]:
            best = (rank, entry)
    return best[1] if best else None


def _start(turn: _Turn, entry: Entry) -> bool:
    """Start a gang if quota and room allow, or make them allow it; else say why not."""
    state, gang = turn.state, entry.gang
    refusals: list[str] = []
    short: list[str] = []
    for model in models_for(state, gang):
        vector = state.tree.vector(gang.request, ranks=gang.ranks, model=model)
        if reason := over_limit(state, entry, vector, turn.total):
            refusals.append(reason)
            continue
        fleet = fleet_beside(state, entry, turn.promise)
        place = find_place(fleet, state.topology, gang, model, usable_nodes(fleet, gang, model))
        if place is not None:
            _run(turn, entry, place, "there is room within its quota")
            return True
        short.append(model)
    if _push_in(turn, entry):
        return True
    if short and turn.promise is None:
        turn.promise = next(filter(None, (promise_room(state, entry, model) for model in short)), None)
    if short and turn.promise is None and state.now_ms - entry.arrived_ms >= state.rules.patience_ms:
        turn.shut.add(entry.leaf)
    reason = _why_not(turn, entry, refusals, short)
    if reason != entry.reason:
        state.entries[gang.id] = replace(entry, reason=reason)
        turn.decisions.append(Decision(kind="wait", gang=gang.id, reason=reason))
    return False


def _push_in(turn: _Turn, entry: Entry) -> bool:
    """Start a gang in the place of others, if it has a right to."""
    state, gang = turn.state, entry.gang
    for model in models_for(state, gang):
        vector = state.tree.vector(gang.request, ranks=gang.ranks, model=model)
        claim = build_claim(state, entry, model=model, vector=vector, total=turn.total, shares=turn.shares)
        room = make_room(replace(state, fleet=fleet_beside(state, entry, turn.promise)), claim)
        if room is not None:
            carry_out(state, entry, room, turn.decisions)
            keep_promise(turn.promise, state.entries[gang.id], now_ms=state.now_ms)
            # More may have become free than the gang took: everybody may ask again.
            turn.blocked.clear()
            turn.shut.clear()
            _line_up(turn)
            return True
    return False


def _line_up(turn: _Turn) -> None:
    """Every queue in which somebody waits, emptiest first."""
    turn.order = [(_fullness(turn, leaf), leaf) for leaf in sorted(turn.state.waiting) if turn.state.waiting[leaf]]
    heapq.heapify(turn.order)


def _run(turn: _Turn, entry: Entry, place: Place, reason: str) -> None:
    beyond = not within_share(turn.state, entry, turn.shares)
    dequeue(turn.state, entry)
    start_at(turn.state, entry, place, reason, turn.decisions)
    keep_promise(turn.promise, turn.state.entries[entry.gang.id], now_ms=turn.state.now_ms)
    if (
        beyond
        and turn.blocked
        and any(each.leaf == entry.leaf and past_shield(turn.state, each) for each in turn.state.running())
    ):
        # Its queue is above its share now, and others may have a right to what it held before.
        turn.blocked.clear()
        _line_up(turn)


def _why_not(turn: _Turn, entry: Entry, refusals: Sequence[str], short: Sequence[str]) -> str:
    if not short:
        return refusals[0] if refusals else "no node has a device that it may use"
    gang = entry.gang
    kinds = " or ".join(model for model in short if model)
    what = f"{gang.ranks} rank{'s' * (gang.ranks > 1)} at once{f' on {kinds}' if kinds else ''}"
    inside = f" within one {gang.level}" if gang.level and gang.binding == "required" else ""
    promise = turn.promise
    if promise is None:
        return f"no room for {what}{inside}"
    if promise.gang == gang.id:
        return f"no room for {what}{inside}; expected in {(promise.at_ms - turn.state.now_ms) / 1000:.0f} s"
    return f"no room for {what}{inside} beside what is promised to {promise.gang}"
