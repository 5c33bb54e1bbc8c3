"""Pooling the quotas under a queue for one gang: the plan first, then the lease, then everything as it was.

The plan says whom it would stop, what they lose, and where the gang would run; nothing is touched. A lease gives the
gang a queue of its own whose `min` is what it needs; the minima of its siblings shrink to what cannot be stopped. The
tree with leases is computed from the planted one each time, so giving back is exact.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mainspring.cluster.schedule.gang import find_place, usable_nodes
from mainspring.cluster.schedule.limits import models_for, over_limit, refusal
from mainspring.cluster.schedule.quota import Branch, Tree, Vector, divide, plant
from mainspring.cluster.schedule.reclaim import Claim, Room, build_claim, loss, lost_ms, make_room
from mainspring.cluster.schedule.starts import carry_out
from mainspring.cluster.schedule.state import Lease, State, arrive, names_of, new_entry, open_again, wished
from mainspring.spec import Decision, Gang, Gathered, GatherPlan, NotFound, Pool, SpecError, Victim

LEASE = "gather:"


def plan_gather(state: State, queue: str, gang: Gang, *, until_ms: int) -> GatherPlan:
    """What gathering would do, with nothing done. Raises `SpecError` when it cannot be done, with the reason."""
    trial = state.copy()
    room = _lease_room(trial, Lease(queue=queue, gang=gang, until_ms=until_ms))
    victims = [victim_of(state, name) for name in room.stopped]
    victims += [victim_of(state, name, names_of(state, place)) for name, place in room.moved]
    return GatherPlan(
        queue=queue,
        gang=gang.id,
        until_ms=until_ms,
        victims=tuple(victims),
        nodes=names_of(state, room.place),
        model=room.place.model,
        lost_device_hours=sum(victim.lost_device_hours for victim in victims),
        starts_in_ms=state.rules.restart_ms if victims else 0,
    )


def victim_of(state: State, name: str, moved_to: Sequence[str] = ()) -> Victim:
    """What a running gang loses when it is stopped, or moved to other nodes."""
    entry = state.entries[name]
    return Victim(
        gang=name,
        queue=entry.gang.queue,
        ranks=entry.gang.ranks,
        lost_ms=lost_ms(state, entry),
        lost_device_hours=loss(state, entry) / 1000 / 3_600_000,
        moved_to=tuple(dict.fromkeys(moved_to)),
    )


def begin_lease(state: State, gathered: Gathered) -> list[Decision]:
    """Carry the plan out: checkpoint and stop the victims, start the gang under a lease."""
    lease = Lease(queue=gathered.queue, gang=gathered.gang, until_ms=gathered.until_ms)
    trial = state.copy()
    try:
        room = _lease_room(trial, lease)
    except SpecError as error:
        return [Decision(kind="refuse", gang=gathered.gang.id, reason=str(error), hint=error.hint)]
    _grow(state, (*state.leases, lease))
    decisions: list[Decision] = []
    entry = new_entry(state, lease.gang, state.tree.position[LEASE + lease.gang.id])
    arrive(state, entry)
    carry_out(state, entry, room, decisions)
    return decisions


def hold_pools(state: State, pools: Sequence[Pool], running: Iterable[Gang], *, now_ms: int) -> None:
    """Put the pools of those `running` into force as leases, before these are counted; those of lost queues are not."""
    gangs = {gang.id: gang for gang in running}
    leases = [
        Lease(queue=pool.queue, gang=gangs[pool.gang], until_ms=now_ms + pool.left_ms)
        for pool in pools
        if pool.gang in gangs and pool.queue in state.tree.position
    ]
    _grow(state, tuple(leases))


def leaf_of(state: State, gang: Gang) -> int:
    """Where a gang is counted: in its queue, or in that of its lease."""
    return state.tree.position.get(LEASE + gang.id) or state.tree.leaf(gang.queue)


def expire_lease(state: State, lease: Lease) -> None:
    """Give the guarantees back. A gang that still runs keeps its place until somebody within a share wants it, for
    what cannot be stopped needs a guarantee, and that is gone."""
    entry = state.entries.get(lease.gang.id)
    if entry is not None:
        state.entries[lease.gang.id] = replace(entry, gang=replace(entry.gang, preemptible=True))
    _grow(state, tuple(replace(each, over=True) if each == lease else each for each in state.leases))


def end_lease(state: State, lease: Lease) -> None:
    """Remove a lease whose gang is gone."""
    _grow(state, tuple(each for each in state.leases if each.gang.id != lease.gang.id))


def _lease_room(trial: State, lease: Lease) -> Room:
    """Where the gang would run under the lease, and who would go; `trial` gets the lease."""
    if lease.queue not in trial.tree.position or not lease.queue:
        raise NotFound(f"no queue {lease.queue!r}", hint=f"queues: {', '.join(list(trial.tree.position)[1:9])}")
    if lease.gang.id in trial.entries:
        raise SpecError(f"a gang called {lease.gang.id} is already known")
    if lease.until_ms <= trial.now_ms:
        raise SpecError(f"the lease would end at {lease.until_ms} ms, and it is {trial.now_ms} ms already")
    _grow(trial, (*trial.leases, lease))
    entry = new_entry(trial, lease.gang, trial.tree.position[LEASE + lease.gang.id])
    total = trial.total
    arrive(trial, entry)
    shares = divide(trial.tree, total, trial.asked)
    if never := refusal(trial, entry):
        raise SpecError(f"{lease.gang.id} can never start: {never}")
    pool = trial.tree.below(trial.tree.position[lease.queue])
    refused = ""
    for model in models_for(trial, lease.gang):
        vector = trial.tree.vector(lease.gang.request, ranks=lease.gang.ranks, model=model)
        claim = build_claim(trial, entry, model=model, vector=vector, total=total, shares=shares)
        if (room := _room_at_once(trial, claim)) or (room := make_room(trial, _widen(trial, claim, pool))):
            return room
        refused = refused or over_limit(trial, entry, vector, total)
    raise SpecError(
        f"gathering {lease.queue!r} does not make room for {lease.gang.ranks} ranks of {lease.gang.id}",
        hint=refused or "what cannot be stopped, or has only just started, is in the way",
    )


def _room_at_once(trial: State, claim: Claim) -> Room | None:
    if over_limit(trial, claim.entry, claim.vector, claim.total):
        return None
    usable = usable_nodes(trial.fleet, claim.entry.gang, claim.model)
    place = find_place(trial.fleet, trial.topology, claim.entry.gang, claim.model, usable)
    return Room(place=place, stopped=(), moved=(), cost=()) if place is not None else None


def _widen(trial: State, claim: Claim, pool: frozenset[int]) -> Claim:
    """Within the pool everything that can be stopped may be, whatever its share."""
    inside = {
        each.gang.id for each in trial.running() if each.leaf in pool and each.gang.preemptible and each.gang.stoppable
    }
    outside = {leaf: share for leaf, share in claim.allowance.items() if leaf not in pool}
    return replace(
        claim,
        stoppable=claim.stoppable | inside,
        movable=claim.movable | inside,
        allowance=outside,
    )


def _grow(state: State, leases: tuple[Lease, ...]) -> None:
    """Replace the tree by the planted one with these leases, and count everything anew under it."""
    before = state.tree
    fixed = {branch.name: tuple(state.fixed[at]) for at, branch in enumerate(before.branches)}
    tree = state.planted
    for lease in leases:
        tree = _graft(tree, lease, fixed, state.fleet.models)
    names = {name: before.branches[entry.leaf].name for name, entry in state.entries.items()}
    state.tree, state.leases = tree, leases
    state.entries = {name: replace(entry, leaf=tree.position[names[name]]) for name, entry in state.entries.items()}
    open_again(state, state.entries)


def _graft(tree: Tree, lease: Lease, fixed: dict[str, Vector], models: tuple[str, ...]) -> Tree:
    """`tree` with a queue for the leased gang; what is under the pooled queue guarantees only what cannot stop."""
    at = tree.position[lease.queue]
    pool = tree.below(at)
    need = wished(tree, lease.gang, models)
    nothing = (0,) * len(tree.resources)
    branches = list(tree.branches)
    for position in () if lease.over else pool:
        if position != at or not branches[at].children:
            floor = fixed.get(branches[position].name, nothing)
            branches[position] = replace(branches[position], floor=floor, held=nothing)
    endless = tree.branches[0].ceiling
    floor = nothing if lease.over else need
    parent = at if tree.branches[at].children else tree.branches[at].parent
    branches.append(
        Branch(name=LEASE + lease.gang.id, parent=parent, weight=1, floor=floor, ceiling=endless, held=nothing)
    )
    return plant(tree.resources, branches)
