"""Which waiting jobs start now, by the scheduler's core: quotas, whole gangs, and a reason for everybody.

`admit` is a pure function from what is free, who runs and who waits. Here a job that waits for room is not overtaken in
its queue, because nobody says how long the others will run, and nobody is stopped for another: a job that holds more
than its queue's share keeps it until it ends. A gang that would not fit on the empty cluster is refused with both
numbers instead of waiting for ever.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mainspring.cluster.placement import Capacity, allowed, slots
from mainspring.cluster.schedule.decide import decide
from mainspring.cluster.schedule.gang import Place, occupy
from mainspring.cluster.schedule.state import State, arrive, build_state, dequeue, hold, new_entry
from mainspring.spec import (
    WHOLE,
    Gang,
    Job,
    Machine,
    NodeChanged,
    NodeNote,
    Placement,
    Queue,
    Request,
    Resources,
    Rules,
    Submitted,
    spec,
)

NEVER_MS = 1 << 60
MODEL = "device"  # of a node whose devices nobody could look at


@spec
class QueueState:
    """The cluster as admission sees it: every node when empty, who runs where, what others leave of it, and the quotas.

    `free` is what is left by somebody else's count; a node that is missing there has nothing. Without `queues` every
    name of a queue is good, and has no limit. `notes` name nodes and devices that must not be used.
    """

    total: tuple[Capacity, ...]
    free: tuple[Capacity, ...]
    running: tuple[tuple[Job, Placement], ...] = ()
    queues: tuple[Queue, ...] = ()
    notes: tuple[NodeNote, ...] = ()


@spec
class Held:
    """A job that does not start now, and why."""

    job_id: str
    reason: str


@spec
class Decision:
    """Who starts and where, who waits, and who can never start here. Every pending job is in exactly one."""

    placed: tuple[Placement, ...] = ()
    waiting: tuple[Held, ...] = ()
    refused: tuple[Held, ...] = ()


def admit(state: QueueState, pending: Sequence[Job]) -> Decision:
    """Decide about every job of `pending`, which is in order of arrival."""
    refused = [Held(job_id=job.id, reason=reason) for job in pending if (reason := refusal(job, state.total))]
    never = {held.job_id for held in refused}
    possible = {job.id: job for job in pending if job.id not in never}
    if not possible:
        return Decision(refused=tuple(refused))
    books = _books(state, [*(job for job, _ in state.running), *possible.values()])
    outcome = decide(books, [Submitted(gang=gang_of(job)) for job in possible.values()], now_ms=0)
    placed: list[Placement] = []
    said: dict[str, str] = {}
    for decision in outcome.decisions:
        if decision.kind == "start":
            devices = decision.devices if any(decision.devices) else ()
            placed.append(Placement(job_id=decision.gang, nodes=decision.nodes, devices=devices))
        elif decision.kind == "refuse":
            refused.append(Held(job_id=decision.gang, reason=decision.reason))
        else:
            said[decision.gang] = decision.reason
    done = {each.job_id for each in (*placed, *refused)}
    waiting = [job for job in possible.values() if job.id not in done]
    heads: dict[str, str] = {}
    for job in waiting:
        if job.id in said:
            heads.setdefault(job.queue, job.id)
    room = _left(books)
    held = tuple(Held(job_id=job.id, reason=_reason(room, job, said, heads)) for job in waiting)
    return Decision(placed=tuple(placed), waiting=held, refused=tuple(refused))


def gang_of(job: Job) -> Gang:
    """The job as the core sees it."""
    need = job.resources
    whole = round(need.devices)
    request = Request(
        cpu_milli=round(1000 * need.cpus),
        memory_mib=-(-need.memory_bytes // 2**20),
        devices=max(whole, 1) if need.devices else 0,
        milli=round(1000 * need.devices) if 0 < need.devices < 1 else 1000,
    )
    return Gang(id=job.id, queue=job.queue, ranks=job.ranks, request=request, nodes=job.nodes)


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
    books = build_state(machines, queues, rules=Rules(shield_ms=NEVER_MS, ageing_ms=0, patience_ms=0))
    size = {machine.name: machine.devices for machine in machines}
    known = [
        NodeChanged(node=note.node, open=not note.closed, sick=tuple(n for n in note.sick if n < size[note.node]))
        for note in state.notes
        if note.node in size
    ]
    if known:
        books = decide(books, known, now_ms=0).state
    for job, placement in state.running:
        _count(books, gang_of(job), placement)
    _cut_down(books, state.free)
    return books


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


def _count(books: State, gang: Gang, placement: Placement) -> None:
    """Let a running gang hold its place; a queue that is no longer there has no limit to keep."""
    names = books.fleet.names
    here = [rank for rank, node in enumerate(placement.nodes) if node in names]
    model = MODEL if gang.request.devices else ""
    if here and gang.request.devices:
        number = int(books.fleet.total.model[names.index(placement.nodes[here[0]])])
        model = books.fleet.models[number] if number >= 0 else ""
    place = Place(
        nodes=np.array([names.index(placement.nodes[rank]) for rank in here], np.int64),
        devices=np.array([placement.devices[rank] if placement.devices else 0 for rank in here], np.int64),
        model=model,
    )
    if gang.queue not in books.tree.leaves:
        occupy(books.fleet, gang, place)
        return
    entry = new_entry(books, gang, books.tree.leaf(gang.queue))
    arrive(books, entry)
    dequeue(books, entry)
    hold(books, entry, place)


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
    """Why `job` cannot run even when nothing else does, with the two numbers; empty when it can."""
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
        parts.append(f"{need.devices:g} device")
    if need.memory_bytes:
        parts.append(f"{need.memory_bytes / 2**30:.3g} GiB")
    return " + ".join(parts)
