"""Which waiting jobs start now, by the scheduler's core: quotas, whole gangs, and a reason for everybody.

`admit` is a pure function from what is free, who runs and who waits. Here a job that waits for room is not overtaken in
its queue, because nobody says how long the others will run. Jobs are stopped for others as the core decides, save those
that may not be started again. A gang that would not fit on the empty cluster is refused with both numbers instead of
waiting for ever.

Whoever has been told to leave counts as gone and waits in line already: what comes in its place is admitted at once,
and Ray lets it in when the other has left. So nobody else is stopped for room that is about to be there, and who
leaves is not given what he leaves.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import numpy as np

from mainspring.cluster.placement import Capacity, added, allowed, as_placed, slots
from mainspring.cluster.schedule.decide import decide
from mainspring.cluster.schedule.elastic import smallest
from mainspring.cluster.schedule.gang import Place, occupy
from mainspring.cluster.schedule.gather import LEASE, hold_pools, leaf_of
from mainspring.cluster.schedule.state import State, arrive, build_state, dequeue, hold, new_entry
from mainspring.spec import (
    WHOLE,
    Gang,
    Gathered,
    Job,
    Machine,
    NodeChanged,
    NodeNote,
    Offer,
    Placement,
    Pool,
    Queue,
    Request,
    Resources,
    Rules,
    Saved,
    Submitted,
    spec,
)
from mainspring.spec import Decision as Choice

MODEL = "device"  # of a node whose devices nobody could look at


@spec
class Running:
    """A job that holds its places, for how long it has, and how long ago it last saved what it has, or started."""

    job: Job
    placement: Placement
    ran_ms: int = 0
    saved_ms: int = 0


@spec
class QueueState:
    """The cluster as admission sees it: every node when empty, who runs where, what others leave of it, and the quotas.

    `free` is what is left by somebody else's count; a node that is missing there has nothing. Those `leaving` have been
    told to, and wait in line besides; who has `left` is still counted in `free`. Without `queues` every name of a queue
    is good, and has no limit. `pools` are quotas pooled for jobs that run or wait, `notes` name nodes and devices that
    must not be used.
    """

    total: tuple[Capacity, ...]
    free: tuple[Capacity, ...]
    running: tuple[Running, ...] = ()
    leaving: tuple[Running, ...] = ()
    left: tuple[Running, ...] = ()
    queues: tuple[Queue, ...] = ()
    pools: tuple[Pool, ...] = ()
    notes: tuple[NodeNote, ...] = ()
    rules: Rules = Rules()


@spec
class Held:
    """A job that does not start now, and why."""

    job_id: str
    reason: str


@spec
class Stop:
    """A running job that has to leave, and the work since it last saved what it has."""

    job_id: str
    reason: str
    lost_ms: int


@spec
class Decision:
    """Who starts and where, who is stopped for it, who waits, and who can never start here.

    Every pending job is placed, or waits, or is refused, save those that are still leaving.
    """

    placed: tuple[Placement, ...] = ()
    stopped: tuple[Stop, ...] = ()
    waiting: tuple[Held, ...] = ()
    refused: tuple[Held, ...] = ()


def admit(state: QueueState, pending: Sequence[Job], *, mine: Set[str] | None = None) -> Decision:
    """Decide about every job of `pending`, which is in order of arrival and has those in it that are leaving.

    Only what is decided about the jobs called `mine` (by default all) is the caller's to carry out: who starts where
    others stop for somebody else's job waits until those have been told.
    """
    refused = [Held(job_id=job.id, reason=reason) for job in pending if (reason := refusal(job, state.total))]
    never = {held.job_id for held in refused}
    possible = {job.id: job for job in pending if job.id not in never}
    if not possible and not any(each.job.menu for each in state.running):
        return Decision(refused=tuple(refused))
    books = _books(state, [*(each.job for each in state.running), *possible.values()])
    leaving = {each.job.id for each in state.leaving}
    decisions, said = _decide(books, possible, state.pools)
    placed, stopped = _to_do(decisions, possible.keys() - leaving, mine=mine)
    refused += [Held(job_id=each.gang, reason=each.reason) for each in decisions if each.kind == "refuse"]
    done = {each.job_id for each in (*placed, *refused)} | leaving
    waiting = [job for job in possible.values() if job.id not in done]
    heads: dict[str, str] = {}
    for job in waiting:
        if job.id in said:
            heads.setdefault(job.queue, job.id)
    room = _left(books)
    held = tuple(Held(job_id=job.id, reason=_reason(room, job, said, heads)) for job in waiting)
    return Decision(
        placed=tuple(placed),
        stopped=tuple(stopped),
        waiting=held,
        refused=tuple(each for each in refused if each.job_id not in leaving),
    )


def _decide(books: State, jobs: Mapping[str, Job], pools: Sequence[Pool]) -> tuple[tuple[Choice, ...], dict[str, str]]:
    """What to do about those who wait, and why some go on waiting; first come those that quotas are pooled for."""
    decisions: list[Choice] = []
    said: dict[str, str] = {}
    gangs = {name: gang_of(job) for name, job in jobs.items()}
    for pool in pools:
        if pool.gang in gangs:
            gathered = Gathered(queue=pool.queue, gang=gangs[pool.gang], until_ms=books.now_ms + pool.left_ms)
            outcome = decide(books, [gathered], now_ms=books.now_ms)
            reasons = [each for each in outcome.decisions if each.kind == "refuse"]
            if reasons:
                said[pool.gang] = ": ".join(filter(None, (reasons[0].reason, reasons[0].hint)))
            else:
                books, decisions = outcome.state, [*decisions, *outcome.decisions]
                del gangs[pool.gang]
    # Who has a menu saves when asked, so that any moment is one to take another shape.
    saved = [Saved(gang=name) for name in sorted(books.elastic) if books.entries[name].gang.stoppable]
    outcome = decide(books, [*saved, *(Submitted(gang=gang) for gang in gangs.values())], now_ms=books.now_ms)
    decisions += outcome.decisions
    return tuple(decisions), {each.gang: each.reason for each in decisions if each.kind == "wait"} | said


def _to_do(decisions: Sequence[Choice], able: Set[str], *, mine: Set[str] | None) -> tuple[list[Placement], list[Stop]]:
    """Who of those `able` to start now does, and who is stopped, as far as it is `mine` to say, in order."""
    placed: dict[str, Placement] = {}
    stopped: dict[str, Stop] = {}
    for each in decisions:
        if each.kind == "evict" and each.gang in placed:
            del placed[each.gang]
        elif each.kind == "evict" and each.gang not in able:
            whose = each.room_for or each.gang
            if mine is not None and whose not in mine:
                break
            stopped[each.gang] = Stop(job_id=each.gang, reason=each.reason, lost_ms=each.lost_ms)
        elif each.kind == "start" and each.gang in able and (mine is None or each.gang in mine):
            devices = each.devices if any(each.devices) else ()
            placed[each.gang] = Placement(job_id=each.gang, nodes=each.nodes, devices=devices, plan=each.plan)
    return list(placed.values()), list(stopped.values())


def gang_of(job: Job, plan: str = "") -> Gang:
    """The job as the core sees it; in the shape called `plan`, if it has a menu and one was chosen."""
    offers = {
        shape.plan: Offer(
            request=_request(shape.resources, shape.models),
            ranks=shape.ranks,
            speed=shape.speed,
            plan=shape.plan,
            watts=shape.watts,
            milli_usd_per_hour=shape.milli_usd_per_hour,
        )
        for shape in job.menu
    }
    chosen = offers.get(plan) or (smallest(tuple(offers.values())) if offers else None)
    return Gang(
        id=job.id,
        queue=job.queue,
        ranks=chosen.ranks if chosen else job.ranks,
        request=chosen.request if chosen else _request(job.resources),
        nodes=job.nodes,
        priority=job.priority,
        stoppable=job.starts > 1,
        menu=tuple(offers.values()),
    )


def _request(need: Resources, models: tuple[str, ...] = ()) -> Request:
    request = Request.of(cpus=need.cpus, devices=need.devices, models=models)
    return replace(request, memory_mib=-(-need.memory_bytes // 2**20))


def machines_in(total: Sequence[Capacity]) -> tuple[Machine, ...]:
    """Nodes as the core counts them, by name."""
    return tuple(
        Machine(
            name=node.node,
            cpu_milli=round(1000 * node.cpus),
            memory_mib=node.memory_bytes // 2**20,
            devices=int(node.devices),
            model=(node.model or MODEL) if node.devices >= 1 else "",
        )
        for node in sorted(total, key=lambda node: node.node)
    )


def _books(state: QueueState, jobs: Sequence[Job]) -> State:
    """The core's state: who runs counted on his devices and in his queue, and no more free than `state` says."""
    queues = state.queues or tuple(Queue(name=name) for name in dict.fromkeys(job.queue for job in jobs))
    machines = machines_in(state.total)
    books = build_state(machines, queues, rules=patient(state.rules))
    books.now_ms = max((each.ran_ms for each in state.running), default=0)
    size = {machine.name: machine.devices for machine in machines}
    known = [
        NodeChanged(node=note.node, open=not note.closed, sick=tuple(n for n in note.sick if n < size[note.node]))
        for note in state.notes
        if note.node in size
    ]
    if known:
        books = decide(books, known, now_ms=books.now_ms).state
    running = (gang_of(each.job, each.placement.plan) for each in state.running)
    hold_pools(books, state.pools, running, now_ms=books.now_ms)
    for each in sorted(state.running, key=lambda each: -each.ran_ms):
        _count(books, each)
    _cut_down(books, _with_left(state))
    return books


def patient(rules: Rules) -> Rules:
    """`rules` for jobs of which nobody says how long they run: in a queue nobody is overtaken by who came later."""
    return replace(rules, ageing_ms=0, patience_ms=0)


def _with_left(state: QueueState) -> list[Capacity]:
    """What is free once those have left who are leaving."""
    free = {node.node: node for node in state.free}
    for each in (*state.leaving, *state.left):
        for name in each.placement.nodes:
            if name in free:
                free[name] = added(free[name], as_placed(each.job, each.placement).resources)
    return list(free.values())


def _cut_down(books: State, free: Sequence[Capacity]) -> None:
    """Let no node have more left than `free` says."""
    left, told = books.fleet.free, {node.node: node for node in free}
    found = [told.get(name) or Capacity(node=name, cpus=0.0) for name in books.fleet.names]
    left.cpu[:] = np.minimum(left.cpu, [round(1000 * node.cpus) for node in found])
    left.memory[:] = np.minimum(left.memory, [node.memory_bytes // 2**20 for node in found])
    # What somebody else has taken, nobody says of which device: of the last ones, as Ray begins with the first.
    left.devices[:] = np.maximum(left.devices, 0)
    taken = left.devices.sum(axis=1) - [round(WHOLE * node.devices) for node in found]
    after = left.devices[:, ::-1].cumsum(axis=1)[:, ::-1] - left.devices
    left.devices[:] -= np.clip(taken[:, None] - after, 0, left.devices)


def _count(books: State, running: Running) -> None:
    """Let a running gang hold its place; a queue that is no longer there has no limit to keep."""
    names, placement = books.fleet.names, running.placement
    gang = gang_of(running.job, placement.plan)
    here = [rank for rank, node in enumerate(placement.nodes) if node in names]
    if not here:
        return  # its nodes are gone, and it has yet to be told
    model = MODEL if gang.request.devices else ""
    if gang.request.devices:
        number = int(books.fleet.total.model[names.index(placement.nodes[here[0]])])
        model = books.fleet.models[number] if number >= 0 else ""
    place = Place(
        nodes=np.array([names.index(placement.nodes[rank]) for rank in here], np.int64),
        devices=np.array([placement.devices[rank] if placement.devices else 0 for rank in here], np.int64),
        model=model,
    )
    if gang.queue not in books.tree.leaves and LEASE + gang.id not in books.tree.position:
        occupy(books.fleet, gang, place)
        return
    entry = new_entry(books, gang, leaf_of(books, gang))
    arrive(books, entry)
    dequeue(books, entry)
    held = hold(books, entry, place)
    times = {"started_ms": books.now_ms - running.ran_ms, "saved_ms": books.now_ms - running.saved_ms}
    books.entries[gang.id] = replace(held, **times)


def _left(books: State) -> tuple[Capacity, ...]:
    """What is free for another gang, node by node."""
    free = books.fleet.free
    return tuple(
        Capacity(
            node=name,
            cpus=max(0, int(free.cpu[n])) / 1000,
            devices=int(free.devices[n].sum()) / WHOLE,
            memory_bytes=int(free.memory[n]) * 2**20,
        )
        for n, name in enumerate(books.fleet.names)
    )


def _reason(free: Sequence[Capacity], job: Job, said: Mapping[str, str], heads: Mapping[str, str]) -> str:
    """What a job waits for, in the words of the person who submitted it."""
    if job.id not in said:
        return f"behind job {heads[job.queue]} in queue {job.queue!r}" if job.queue in heads else "its turn comes next"
    if "no room" not in said[job.id]:
        return said[job.id]
    room = sum(slots(node, job.resources) for node in allowed(job, free))
    return f"needs {_ranks(job.ranks)} of {_each(job.resources)} at once, {room} would fit now"


def refusal(job: Job, total: Sequence[Capacity]) -> str:
    """Why `job` cannot run even when nothing else does, with the two numbers; empty when it can, in any shape."""
    shapes = [replace(job, ranks=each.ranks, resources=each.resources, menu=()) for each in job.menu]
    if shapes:
        return "" if any(not refusal(each, total) for each in shapes) else refusal(shapes[0], total)
    total = allowed(job, total)
    room = sum(slots(node, job.resources) for node in total)
    if room >= job.ranks:
        return ""
    return (
        f"job {job.id} needs {_ranks(job.ranks)} of {_each(job.resources)}, "
        f"{'its part of the cluster' if job.nodes else 'the whole cluster'} "
        f"({len(total)} node{'s' * (len(total) != 1)}) has room for {room}"
    )


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count != 1)}"


def _each(need: Resources) -> str:
    parts = [f"{need.cpus:g} cpu"]
    if need.devices:
        parts.append(f"{need.devices:g} device{'s' * (need.devices > 1)}")
    if need.memory_bytes:
        parts.append(f"{need.memory_bytes / 2**30:.3g} GiB")
    return " + ".join(parts)
