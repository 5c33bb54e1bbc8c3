"""Making room for a gang: which others to stop or move, chosen under quota and topology together.

Every domain of the network that could hold the gang is cleared on a copy of the state, cheapest hosts first, and the
set of victims is then cut down: whoever the gang does not need comes back, dearest first. The best domain is the one
with the fewest gangs stopped for good, then the least work lost; a victim that fits elsewhere at once is moved and not
stopped. Nothing is decided here that does not end with the gang on its place.

Victims are gangs of lower priority in the same queue and, when the gang's queue stays within its share, gangs of
queues that are above theirs of what it asks for. Shares do not change when a gang goes back to waiting, so two queues
never take turns.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np

from mainspring.cluster.schedule.fleet import Fleet, copy_nodes
from mainspring.cluster.schedule.gang import Place, count_slots, find_place, occupy, shape_of, usable_nodes
from mainspring.cluster.schedule.kernels import WHOLE, Flags, Ints
from mainspring.cluster.schedule.limits import over_limit
from mainspring.cluster.schedule.quota import Vector
from mainspring.cluster.schedule.state import Entry, State, add, book, release
from mainspring.cluster.schedule.topology import Shape, arrange

DOMAINS_TRIED = 4  # of each level


@dataclass(frozen=True, slots=True)
class Room:
    """Room for a gang: its place, who is stopped for it, and who is moved where."""

    place: Place
    stopped: tuple[str, ...]
    moved: tuple[tuple[str, Place], ...]
    cost: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """A gang that wants room on one model, what it would hold, and what there is in all.

    `firm` says which of its wishes go before those of gangs that would take another model (`firm_wishes`). `stoppable`
    and `movable` are ids of running gangs. Of a queue in `allowance` no more may be stopped than leaves it
    at its share.
    """

    entry: Entry
    model: str
    vector: Vector
    total: Vector
    firm: tuple[bool, ...]
    stoppable: frozenset[str]
    movable: frozenset[str]
    allowance: dict[int, Vector]

    def may_stop(self, other: Entry, claimed: Sequence[int], share: Vector) -> bool:
        """Whether a gang of another queue, which has `claimed` of its `share`, may be stopped for this one."""
        return may_stop(other, claimed, share, asked=self.entry.asked, firm=self.firm)


def within_share(state: State, entry: Entry, shares: Sequence[Vector]) -> bool:
    """Whether the gang's queue would still be within its share with it."""
    return all(
        not asked or claimed + asked <= share
        for claimed, asked, share in zip(state.claimed[entry.leaf], entry.asked, shares[entry.leaf], strict=True)
    )


def build_claim(
    state: State, entry: Entry, *, model: str, vector: Vector, total: Vector, shares: Sequence[Vector]
) -> Claim:
    """Whom this gang may stop or move."""
    entitled, firm = within_share(state, entry, shares), firm_wishes(state, entry)
    stoppable, movable, allowance = set[str](), set[str](), dict[int, Vector]()
    for other in state.running():
        if not past_shield(state, other):
            continue
        if other.leaf == entry.leaf:
            if other.gang.priority < entry.gang.priority:
                stoppable.add(other.gang.id)
        elif entitled and may_stop(other, state.claimed[other.leaf], shares[other.leaf], asked=entry.asked, firm=firm):
            stoppable.add(other.gang.id)
            allowance[other.leaf] = shares[other.leaf]
        if entitled or other.gang.id in stoppable:
            movable.add(other.gang.id)
    return Claim(entry, model, vector, total, firm, frozenset(stoppable), frozenset(movable), allowance)


def past_shield(state: State, other: Entry) -> bool:
    """Whether a running gang may be stopped or moved at all by now."""
    gang = other.gang
    return gang.preemptible and gang.stoppable and state.now_ms - other.started_ms >= state.rules.shield_ms


def firm_wishes(state: State, entry: Entry) -> tuple[bool, ...]:
    """What a gang insists on before those who do not, resource by resource: all that it asks for.

    But not a model that a more urgent gang of its own queue has or may be given without insisting on it: that one would
    only take it from this gang again, and so on in a circle.
    """
    firm = [asked > 0 for asked in entry.asked]
    parts = [(r, resource.partition("/")[2]) for r, resource in enumerate(state.tree.resources)]
    models = [(r, model) for r, model in parts if model and firm[r]]
    if not models:
        return tuple(firm)
    waiting = (state.entries[next(iter(found))] for found in state.waiting.get(entry.leaf, {}).values())
    running = (other for other in state.running() if other.leaf == entry.leaf)
    for other in (*running, *waiting):
        if other.gang.priority > entry.gang.priority:
            taken = other.gang.request.models
            for r, model in models:
                takes = other.held[r] > 0 if other.place else not taken or model in taken
                firm[r] &= other.asked[r] > 0 or not takes
    return tuple(firm)


def may_stop(other: Entry, claimed: Sequence[int], share: Vector, *, asked: Vector, firm: Sequence[bool]) -> bool:
    """Whether a gang of another queue may be stopped for one that asks for `asked` and is within its share.

    It may when its own queue is above the share of something asked for that it holds, and when it holds devices of a
    model that it does not insist on and the one that asks does (`firm_wishes`).
    """
    parts = zip(asked, firm, other.held, other.asked, claimed, share, strict=True)
    return any(need and held and ((sure and not own) or have > fair) for need, sure, held, own, have, fair in parts)


def make_room(state: State, claim: Claim) -> Room | None:
    """The cheapest way to room for the gang, or None when there is none. Changes nothing."""
    if not claim.movable and not claim.stoppable:
        return None
    topology, gang = state.topology, claim.entry.gang
    shape, usable = shape_of(gang, topology), usable_nodes(state.fleet, gang, claim.model)
    victims = [state.entries[each] for each in sorted(claim.movable | claim.stoppable)]
    emptied = Fleet(state.fleet.names, state.fleet.models, state.fleet.total, copy_nodes(state.fleet.free))
    for victim in victims:
        assert victim.place is not None
        occupy(emptied, victim.gang, victim.place, sign=1)
    possible = count_slots(emptied.free, gang.request, usable)
    free = count_slots(state.fleet.free, gang.request, usable)
    prices = _price_hosts(state, victims)
    found: list[Room] = []
    for depth in range(len(topology.levels) - 1, shape.within - 1, -1):
        room = np.bincount(topology.domain[depth], weights=possible).astype(np.int64)
        ready = np.bincount(topology.domain[depth], weights=free).astype(np.int64)
        able = np.flatnonzero(room >= gang.ranks)
        for part in able[np.lexsort((able, -ready[able]))][:DOMAINS_TRIED]:
            inside = usable & (topology.domain[depth] == part)
            choices = [inside]
            if shape.segment == 1:
                choices = [_cheapest_hosts(inside, possible, free, price, gang.ranks) for price in prices]
            for number, hosts in enumerate(choices):
                if number and (hosts == choices[0]).all():
                    continue
                if (way := _clear(state, claim, shape, hosts, victims)) is not None:
                    found.append(way)
    return min(found, key=lambda way: way.cost, default=None)


def lost_ms(state: State, entry: Entry) -> int:
    """Work that stopping a gang now throws away, with the time of a restart."""
    return state.now_ms - entry.saved_ms + state.rules.restart_ms


def loss(state: State, entry: Entry) -> int:
    """The same over everything the gang holds: device time, or cpu time where it has no devices."""
    request = entry.gang.request
    return lost_ms(state, entry) * (request.device_milli or max(1, request.cpu_milli)) * entry.gang.ranks


def _price_hosts(state: State, victims: Iterable[Entry]) -> tuple[Ints, Ints]:
    """What clearing each node would throw away, and how many gangs; one on several nodes is split among them."""
    lost = np.zeros(len(state.fleet.names), np.int64)
    gangs = np.zeros_like(lost)
    for victim in victims:
        assert victim.place is not None
        nodes = np.unique(victim.place.nodes)
        lost[nodes] += loss(state, victim) // len(nodes)
        gangs[nodes] += WHOLE // len(nodes)
    return lost, gangs


def _cheapest_hosts(inside: Flags, possible: Ints, free: Ints, price: Ints, ranks: int) -> Flags:
    """As few hosts as hold the gang, those first that lose least for what they give."""
    hosts = np.flatnonzero(inside & (possible > 0))
    gained = np.maximum(possible[hosts] - free[hosts], 0)
    per_slot = np.where(gained > 0, price[hosts] // np.maximum(possible[hosts], 1), 0)
    hosts = hosts[np.lexsort((hosts, -possible[hosts], per_slot))]
    enough = int(np.searchsorted(np.cumsum(possible[hosts]), ranks)) + 1
    chosen = np.zeros_like(inside)
    chosen[hosts[:enough]] = True
    return chosen


def _clear(state: State, claim: Claim, shape: Shape, inside: Flags, victims: Sequence[Entry]) -> Room | None:
    """Clear `inside` and keep the victims that are needed: those that hurt least, or rather those one may stop.

    When these are too many of one queue, the choice is made again among as many as it has above its share.
    """
    touching = [each for each in victims if each.place is not None and inside[each.place.nodes].any()]
    touching.sort(key=lambda each: (loss(state, each), each.number))
    pinned = {each.gang.id for each in touching} - claim.stoppable
    beyond = [_beyond_share(state, claim, order) for order in (touching, touching[::-1])]
    for orders in ([set[str](), pinned] if pinned else [set[str]()], beyond):
        ways = [_clear_in_order(state, claim, shape, inside, victims, keep) for keep in orders]
        if best := min(filter(None, ways), key=lambda way: way.cost, default=None):
            return best
    return None


def _beyond_share(state: State, claim: Claim, order: Sequence[Entry]) -> set[str]:
    """Whom one may not stop, if in this order gangs are stopped as long as their queue is above its share."""
    claimed = {leaf: list(state.claimed[leaf]) for leaf in claim.allowance}
    kept: set[str] = set()
    for each in order:
        share = claim.allowance.get(each.leaf)
        if each.gang.id not in claim.stoppable:
            kept.add(each.gang.id)
        elif share is not None:
            if claim.may_stop(each, claimed[each.leaf], share):
                add(claimed[each.leaf], each.asked, sign=-1)
            else:
                kept.add(each.gang.id)
    return kept


def _clear_in_order(
    state: State, claim: Claim, shape: Shape, inside: Flags, victims: Sequence[Entry], keep: Set[str]
) -> Room | None:
    """Clear `inside`, put back whoever is not needed, first those to `keep`, and find places for the others."""
    trial = state.copy()
    touching = [each for each in victims if each.place is not None and inside[each.place.nodes].any()]
    for victim in touching:
        release(trial, victim)
    if not _holds(trial, claim, shape, inside):
        return None
    needed = _trim(trial, claim, shape, inside, touching, keep)
    for victim in needed:
        if victim.gang.id not in claim.stoppable:
            book(trial, victim, sign=1)  # it will only be moved, and holds as much elsewhere
    if over_limit(trial, claim.entry, claim.vector, claim.total):
        needed = _lighten(trial, claim, needed, victims)
        if needed is None:
            return None
    place = find_place(trial.fleet, state.topology, claim.entry.gang, claim.model, inside)
    assert place is not None
    occupy(trial.fleet, claim.entry.gang, place)
    return _settle(state, trial, claim, place, needed)


def _holds(trial: State, claim: Claim, shape: Shape, inside: Flags) -> bool:
    slots = count_slots(trial.fleet.free, claim.entry.gang.request, inside)
    if int(slots.sum()) < shape.ranks:
        return False
    return shape.segment == 1 or arrange(trial.topology, slots, shape) is not None


def _trim(
    trial: State, claim: Claim, shape: Shape, inside: Flags, cleared: Sequence[Entry], keep: Set[str]
) -> list[Entry]:
    """Put back whoever the gang does not need: those to `keep`, then whole hosts, then gangs; the dearest first."""
    needed = {each.gang.id: each for each in cleared}
    by_host: dict[int, list[Entry]] = {}
    for victim in cleared:
        assert victim.place is not None
        for n in np.unique(victim.place.nodes):
            by_host.setdefault(int(n), []).append(victim)
    groups = sorted(by_host.values(), key=lambda group: -sum(loss(trial, each) for each in group))
    singles = [[each] for each in sorted(cleared, key=lambda each: (-loss(trial, each), each.number))]
    first = [group for group in singles if group[0].gang.id in keep]
    for group in (*first, *groups, *singles):
        back = [each for each in group if each.gang.id in needed]
        for victim in back:
            _restore(trial, victim)
        if back and _holds(trial, claim, shape, inside):
            for victim in back:
                del needed[victim.gang.id]
        else:
            for victim in back:
                release(trial, victim)
    return list(needed.values())


def _lighten(trial: State, claim: Claim, needed: list[Entry], victims: Sequence[Entry]) -> list[Entry] | None:
    """Stop more gangs until the quota tree agrees, cheapest first; then bring back those that were not needed."""
    chosen = {each.gang.id for each in needed}
    extra: list[Entry] = []
    for victim in sorted(victims, key=lambda each: (loss(trial, each), each.number)):
        if victim.gang.id in chosen or victim.gang.id not in claim.stoppable:
            continue
        share = claim.allowance.get(victim.leaf)
        if share is not None and not claim.may_stop(victim, trial.claimed[victim.leaf], share):
            continue
        release(trial, victim)
        extra.append(victim)
        if not over_limit(trial, claim.entry, claim.vector, claim.total):
            break
    else:
        return None
    for victim in sorted(extra, key=lambda each: -loss(trial, each)):
        _restore(trial, victim)
        if over_limit(trial, claim.entry, claim.vector, claim.total):
            release(trial, victim)
        else:
            extra.remove(victim)
    return [*needed, *extra]


def _settle(state: State, trial: State, claim: Claim, place: Place, needed: Sequence[Entry]) -> Room | None:
    """Move whom one can, stop the others if one may."""
    stopped: list[Entry] = []
    moved: list[tuple[str, Place]] = []
    must_stop = bool(over_limit(state, claim.entry, claim.vector, claim.total))
    claimed = {leaf: list(state.claimed[leaf]) for leaf in claim.allowance}
    for victim in sorted(needed, key=lambda each: (-each.gang.ranks, each.number)):
        other = None if must_stop and victim.gang.id in claim.stoppable else _elsewhere(trial, victim)
        if other is not None:
            occupy(trial.fleet, victim.gang, other)
            moved.append((victim.gang.id, other))
            continue
        share = claim.allowance.get(victim.leaf)
        if victim.gang.id not in claim.stoppable:
            return None
        if share is not None:
            if not claim.may_stop(victim, claimed[victim.leaf], share):
                return None
            add(claimed[victim.leaf], victim.asked, sign=-1)
        stopped.append(victim)
    cost = (
        len(stopped),
        sum(loss(state, each) for each in stopped),
        len(moved),
        sum(loss(state, state.entries[name]) for name, _ in moved),
    )
    return Room(place=place, stopped=tuple(each.gang.id for each in stopped), moved=tuple(moved), cost=cost)


def _elsewhere(trial: State, victim: Entry) -> Place | None:
    """Another place on the same model, so that what the gang holds stays the same."""
    assert victim.place is not None
    usable = usable_nodes(trial.fleet, victim.gang, victim.place.model)
    return find_place(trial.fleet, trial.topology, victim.gang, victim.place.model, usable)


def _restore(trial: State, victim: Entry) -> None:
    """Undo `release` on a trial."""
    assert victim.place is not None
    occupy(trial.fleet, victim.gang, victim.place)
    book(trial, victim, sign=1)
