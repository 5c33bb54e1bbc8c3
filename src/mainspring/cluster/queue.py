"""Which waiting jobs start now, by the scheduler's core: quotas, whole gangs, and a reason for everybody.

`admit` is a pure function from what is free, who runs and who waits. Here a job that waits for room is not overtaken in
its queue, because nobody says how long the others will run, and nobody is stopped for another: a job that holds more
than its queue's share keeps it until it ends. A gang that would not fit on the empty cluster is refused with both
numbers instead of waiting for ever.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mainspring.cluster.placement import Capacity, allowed, slots
from mainspring.cluster.schedule.decide import decide
from mainspring.cluster.schedule.gang import Place
from mainspring.cluster.schedule.state import State, arrive, book, build_state, dequeue, new_entry
from mainspring.spec import Gang, Job, Machine, Placement, Queue, Request, Resources, Rules, SpecError, Submitted, spec

NEVER_MS = 1 << 60
MODEL = "device"  # Ray tells how many devices a node has, not which


@spec
class QueueState:
    """The cluster as admission sees it: every node when empty, what is left of it now, who runs, and the quotas.

    Without `queues` every name of a queue is good, and has no limit.
    """

    total: tuple[Capacity, ...]
    free: tuple[Capacity, ...]
    running: tuple[tuple[Job, Placement], ...] = ()
    queues: tuple[Queue, ...] = ()


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
            placed.append(Placement(job_id=decision.gang, nodes=decision.nodes))
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
    held = tuple(Held(job_id=job.id, reason=_reason(state, job, said, heads)) for job in waiting)
    return Decision(placed=tuple(placed), waiting=held, refused=tuple(refused))


def gang_of(job: Job) -> Gang:
    """The job as the core sees it. Raises `SpecError` for a share of more than one device."""
    need = job.resources
    whole = round(need.devices)
    if need.devices > 1 and need.devices != whole:
        raise SpecError(
            f"job {job.id} asks for {need.devices:g} devices for each rank",
            hint="a rank takes a share of one device, or whole devices",
        )
    request = Request(
        cpu_milli=round(1000 * need.cpus),
        memory_mib=-(-need.memory_bytes // 2**20),
        devices=max(whole, 1) if need.devices else 0,
        milli=round(1000 * need.devices) if 0 < need.devices < 1 else 1000,
    )
    return Gang(id=job.id, queue=job.queue, ranks=job.ranks, request=request, nodes=job.nodes)


def _books(state: QueueState, jobs: Sequence[Job]) -> State:
    """The core's state: what is free as it is told, and who runs counted in his queue."""
    queues = state.queues or tuple(Queue(name=name) for name in dict.fromkeys(job.queue for job in jobs))
    machines = [
        Machine(
            name=node.node,
            cpu_milli=round(1000 * node.cpus),
            memory_mib=node.memory_bytes // 2**20,
            devices=int(node.devices),
            model=MODEL if node.devices >= 1 else "",
        )
        for node in sorted(state.total, key=lambda node: node.node)
    ]
    rules = Rules(shield_ms=NEVER_MS, ageing_ms=0, patience_ms=0)
    books = build_state(machines, queues, rules=rules)
    left = books.fleet.free
    for n, node in enumerate(sorted(state.free, key=lambda node: node.node)):
        left.cpu[n] = round(1000 * node.cpus)
        left.memory[n] = node.memory_bytes // 2**20
        numbers = np.arange(left.devices.shape[1])
        left.devices[n] = np.clip(round(1000 * node.devices) - 1000 * numbers, 0, 1000)
    for job, placement in state.running:
        _count(books, gang_of(job), placement)
    return books


def _count(books: State, gang: Gang, placement: Placement) -> None:
    """Count a running gang in its queue; a queue that is no longer there has no limit to keep."""
    if gang.queue not in books.tree.leaves:
        return
    entry = new_entry(books, gang, books.tree.leaf(gang.queue))
    arrive(books, entry)
    dequeue(books, entry)
    numbers = [books.fleet.names.index(node) for node in placement.nodes if node in books.fleet.names]
    model = MODEL if gang.request.devices else ""
    place = Place(nodes=np.array(numbers, np.int64), devices=np.zeros(len(numbers), np.int64), model=model)
    held = books.tree.vector(gang.request, ranks=gang.ranks, model=model)
    books.entries[gang.id] = running = replace(entry, place=place, held=held, started_ms=0)
    book(books, running, sign=1)


def _reason(state: QueueState, job: Job, said: Mapping[str, str], heads: Mapping[str, str]) -> str:
    """What a job waits for, in the words of the person who submitted it."""
    if job.id not in said:
        return f"behind job {heads[job.queue]} in queue {job.queue!r}" if job.queue in heads else "its turn comes next"
    if "no room" not in said[job.id]:
        return said[job.id]
    room = sum(slots(node, job.resources) for node in allowed(job, state.free))
    return f"needs {_ranks(job.ranks)} of {_each(job.resources)} at once, {room} would fit now"


def refusal(job: Job, total: Sequence[Capacity]) -> str:
    """Why `job` cannot run even when nothing else does, with the two numbers; empty when it can."""
    try:
        gang_of(job)
    except SpecError as error:
        return str(error)
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
