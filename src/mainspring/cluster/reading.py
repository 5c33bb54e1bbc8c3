"""What is written in the books, as admission sees it."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mainspring.cluster.placement import Capacity
from mainspring.cluster.queue import QueueState, Running
from mainspring.spec import ACTIVE, JobRecord, NodeNote, Pool, QueueFile


def read_state(
    records: Sequence[JobRecord],
    *,
    live: Iterable[JobRecord],
    left: Iterable[JobRecord],
    name: Callable[[JobRecord], str],
    total: tuple[Capacity, ...],
    free: tuple[Capacity, ...],
    quotas: QueueFile,
    notes: tuple[NodeNote, ...],
) -> QueueState:
    """The cluster and who holds what of it, by `name`.

    `live` are the driver's own attempts: those that have ended and are still being cleared away hold their places too.
    Those that have `left` a moment ago hold none, although `free` may not say so yet.
    """
    now_s = time.time()
    holding = {record.number: record for record in records if record.state in ACTIVE}
    leaving = {number: record for number, record in holding.items() if record.evicted}
    gave_way = {record.number for record in records if record.evicted}
    holding |= {each.number: each for each in live if each.number not in holding and each.number not in gave_way}

    def running(record: JobRecord) -> Running:
        assert record.placement is not None, "who is active has places"
        job = replace(record.job, id=name(record))
        return Running(job=job, placement=record.placement, **times_of(record, now_s))

    return QueueState(
        total=total,
        free=free,
        running=tuple(running(each) for number, each in holding.items() if number not in leaving),
        leaving=tuple(map(running, leaving.values())),
        left=tuple(map(running, left)),
        queues=quotas.queues,
        pools=pools_of(records, name, now_s),
        notes=notes,
        rules=quotas.rules,
    )


def times_of(record: JobRecord, now_s: float) -> dict[str, int]:
    """For how long a job has held its places, and how long ago it saved what it has, in ms.

    Both are told by its driver's clock and read by ours: where these disagree it is stopped for others a little earlier
    or later than it should be, and no more hangs on it.
    """
    ran_ms = max(0, round(1000 * (now_s - record.started_s)))
    saved_ms = max(0, round(1000 * (now_s - record.saved_s)))
    return {"ran_ms": ran_ms, "saved_ms": min(ran_ms, saved_ms)}


def pools_of(records: Iterable[JobRecord], name: Callable[[JobRecord], str], now_s: float) -> tuple[Pool, ...]:
    """The quotas that are pooled for jobs, which have their names from `name`; a lease that is over is none."""
    return tuple(
        Pool(gang=name(record), queue=record.lease.queue, left_ms=round(1000 * (record.lease.until_s - now_s)))
        for record in records
        if record.lease and record.lease.until_s > now_s
    )
