"""Which waiting jobs start now: first in, first out, in each queue.

`admit` is a pure function from what is free and who waits to a decision with a reason for everybody. A gang starts
whole or not at all. The head of a queue is never overtaken inside its queue, so a large gang is not starved by
small ones; queues do not wait for one another. A gang that would not fit on the empty cluster is refused with both
numbers instead of waiting for ever.
"""

from collections.abc import Sequence

from mainspring.cluster.placement import Capacity, allowed, occupy, place, slots
from mainspring.spec import Job, Placement, Resources, spec


@spec
class QueueState:
    """The cluster as admission sees it: every node when empty, and what is left of it now."""

    total: tuple[Capacity, ...]
    free: tuple[Capacity, ...]


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
    placed: list[Placement] = []
    waiting: list[Held] = []
    refused: list[Held] = []
    free = state.free
    heads: dict[str, str] = {}
    for job in pending:
        if reason := refusal(job, state.total):
            refused.append(Held(job_id=job.id, reason=reason))
        elif job.queue in heads:
            reason = f"behind job {heads[job.queue]} in queue {job.queue!r}"
            waiting.append(Held(job_id=job.id, reason=reason))
        elif placement := place(job, free):
            placed.append(placement)
            free = occupy(free, placement, job.resources)
        else:
            heads[job.queue] = job.id
            room = sum(slots(node, job.resources) for node in allowed(job, free))
            reason = f"needs {_ranks(job.ranks)} of {_each(job.resources)} at once, {room} would fit now"
            waiting.append(Held(job_id=job.id, reason=reason))
    return Decision(placed=tuple(placed), waiting=tuple(waiting), refused=tuple(refused))


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
