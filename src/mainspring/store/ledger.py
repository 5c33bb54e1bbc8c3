"""The jobs of a cluster and where they run: the record that several drivers agree by, and that outlives them all.

Whoever starts something writes it down first. Each change is one transaction with its event, names the attempt it
speaks of, and changes nothing when somebody else has taken the job over meanwhile. Order is by number and liveness by
counters, never by a clock.
"""

import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, insert, or_, select, update

from mainspring.spec import (
    ACTIVE,
    TERMINAL,
    Driver,
    Eviction,
    Job,
    JobRecord,
    JobResult,
    JobState,
    Lease,
    NodeNote,
    NotFound,
    Placement,
    SpecError,
)
from mainspring.store.database import drivers, insert_or_update, jobs, nodes
from mainspring.store.events import EventLog
from mainspring.store.parse import read_json, to_json
from mainspring.store.process import Owner, is_gone, this_process

GONE = "the process that started it is gone"
LIVE = jobs.c.state.not_in(sorted(TERMINAL))


class Ledger(EventLog):
    """Record jobs, the drivers that see to them, and what is known of nodes."""

    def enqueue(self, job: Job, *, address: str, cluster: str = "", driver: str = "") -> JobRecord:
        """Let `job` wait for its `driver`; without one it is lasting, and any scheduler of `address` may start it.

        Raises `SpecError` when a job of that id has not ended, and for a lasting job with a secret.
        """
        if not driver and job.secret_json != "{}":
            raise SpecError(
                f"job {job.id} has secrets and no driver", hint="what is kept for any scheduler to start has none"
            )
        kept = replace(job, secret_json="{}")
        mine = (jobs.c.workspace == self.workspace, jobs.c.id == job.id)
        with self.transaction() as connection:
            earlier = connection.execute(select(jobs).where(*mine)).one_or_none()
            if earlier is not None and earlier.state not in TERMINAL and not self._abandoned(earlier):
                raise SpecError(f"a job with the id {job.id!r} is {earlier.state}")
            connection.execute(delete(jobs).where(*mine))
            values = {
                "workspace": self.workspace,
                "id": job.id,
                "job_json": to_json(kept),
                "address": address,
                "cluster": cluster,
                "driver": driver,
                "lasting": int(not driver),
                "state": "PENDING",
                "reason": "",
                "attempt": earlier.attempt if earlier else 0,  # an attempt has its number for good
                "losses": 0,
                "placement_json": "",
                "result_json": "",
                "cancelled": "",
                "evicted": "",
                "lease_json": "",
            }
            number = connection.execute(insert(jobs).returning(jobs.c.number), values).scalar_one()
            self._told(job.id, "PENDING", attempt=values["attempt"])
            return JobRecord(
                number=number,
                workspace=self.workspace,
                job=kept,
                address=address,
                cluster=cluster,
                driver=driver,
                lasting=not driver,
                state="PENDING",
                attempt=values["attempt"],
            )

    def job(self, job_id: str) -> JobRecord:
        """The job called `job_id` in this workspace."""
        with self.read() as connection:
            row = connection.execute(
                select(jobs).where(jobs.c.workspace == self.workspace, jobs.c.id == job_id)
            ).one_or_none()
        if row is None:
            raise NotFound(
                f"no job {job_id!r} in workspace {self.workspace!r}",
                hint="list them with `mainspring queue` and `mainspring nodes`",
            )
        return _record(row)

    def jobs(self, *, limit: int = 100) -> tuple[JobRecord, ...]:
        """Jobs of this workspace, newest first."""
        return self._records(
            select(jobs).where(jobs.c.workspace == self.workspace).order_by(-jobs.c.number).limit(limit)
        )

    def jobs_of(self, cluster: str, *, address: str) -> tuple[JobRecord, ...]:
        """What waits or runs on `cluster` or will on `address`, of every workspace, in order of arrival."""
        # A lasting job belongs to its workspace's schedulers; what holds places there concerns everybody.
        waits = (jobs.c.address == address) & (jobs.c.workspace == self.workspace) & (jobs.c.lasting == 1)
        return self._records(select(jobs).where(LIVE, or_(jobs.c.cluster == cluster, waits)).order_by(jobs.c.number))

    def assign(
        self,
        cluster: str,
        placements: Sequence[Placement],
        *,
        driver: str,
        beside: Sequence[JobRecord],
        evictions: Sequence[Eviction] = (),
    ) -> bool:
        """Give waiting jobs their places and their next attempt, all in one commit: nothing is started before it.

        In the same commit others are told to leave theirs, whose drivers see to it. False, and nothing is changed, when
        meanwhile anybody holds places on `cluster` who was not seen among `beside`, one of the jobs does not wait for
        `driver` any more, or one of those to be stopped has left or has to leave already.
        """
        seen = {(record.number, record.attempt) for record in beside if record.state in ACTIVE}
        with self.transaction() as connection:
            query = select(jobs.c.number, jobs.c.attempt).where(jobs.c.cluster == cluster, jobs.c.state.in_(ACTIVE))
            if not seen.issuperset((row.number, row.attempt) for row in connection.execute(query)):
                return False
            waits = (jobs.c.state == "PENDING", jobs.c.driver.in_((driver, "")), jobs.c.cancelled == "")
            mine = (jobs.c.workspace == self.workspace, jobs.c.id.in_([each.job_id for each in placements]))
            attempts = {row.id: row.attempt + 1 for row in connection.execute(select(jobs).where(*mine, *waits))}
            if len(attempts) < len(placements) or not all(_may_evict(connection, each) for each in evictions):
                return False
            for each in evictions:
                self._evict(connection, each)
            for placement in placements:
                attempt = attempts[placement.job_id]
                values = {"state": "ADMITTED", "reason": "", "cluster": cluster, "driver": driver, "attempt": attempt}
                values |= {"evicted": "", "started_s": time.time(), "saved_s": 0.0}
                values["placement_json"] = to_json(placement)
                connection.execute(update(jobs).where(mine[0], jobs.c.id == placement.job_id).values(values))
                self._told(placement.job_id, "ADMITTED", attempt=attempt, nodes=placement.nodes)
        return True

    def note_saved(self, record: JobRecord) -> None:
        """Say that an attempt has just saved what it has."""
        mine = (jobs.c.number == record.number, jobs.c.attempt == record.attempt)
        with self.transaction() as connection:
            connection.execute(update(jobs).where(*mine).values(saved_s=time.time()))

    def advance(self, record: JobRecord, state: JobState, reason: str = "", *, result: JobResult | None = None) -> bool:
        """Record the next state of an attempt, and how it ended; False when it is not its driver's any more."""
        values = {"state": state, "reason": reason, "result_json": to_json(result) if result else ""}
        return self._change(record, values, state=state, reason=reason)

    def explain(self, reasons: Mapping[int, str]) -> None:
        """Say why jobs wait, by their numbers: a view of the line, in one commit and without an event for each step."""
        waits = (jobs.c.number == bindparam("of"), jobs.c.state == "PENDING")
        told = update(jobs).where(*waits).values(reason=bindparam("why"))
        with self.transaction() as connection:
            connection.execute(told, [{"of": number, "why": reason} for number, reason in reasons.items()])

    def requeue(self, record: JobRecord, reason: str, *, counted: bool) -> bool:
        """Let a job wait again after an attempt that was lost, `counted` against the starts it has."""
        values = {
            "state": "PENDING",
            "reason": reason,
            "placement_json": "",
            "losses": jobs.c.losses + int(counted),
            "driver": "" if record.lasting else record.driver,
        }
        return self._change(record, values, state="PENDING", reason=reason)

    def take_over(self, record: JobRecord, driver: str) -> JobRecord | None:
        """`record` as `driver`'s own from now on; None when it has changed meanwhile."""
        taken = self._change(record, {"driver": driver}, state=record.state, reason="taken over")
        return replace(record, driver=driver) if taken else None

    def cancel_job(self, job_id: str, reason: str) -> JobRecord:
        """Ask whoever sees to a job to stop it. The first reason is kept."""
        record = self.job(job_id)
        with self.transaction() as connection:
            mine = (jobs.c.number == record.number, LIVE, jobs.c.cancelled == "")
            if connection.execute(update(jobs).where(*mine).values(cancelled=reason)).rowcount:
                self.emit("job.cancel", job_id, {"reason": reason})
        return self.job(job_id)

    def pool(self, job_id: str, lease: Lease) -> JobRecord:
        """Have quotas pooled for a job that waits. They are given back when it has ended, however it does.

        Raises `SpecError` for a job that does not wait.
        """
        record = self.job(job_id)
        with self.transaction() as connection:
            waits = (jobs.c.number == record.number, jobs.c.state == "PENDING")
            if not connection.execute(update(jobs).where(*waits).values(lease_json=to_json(lease))).rowcount:
                raise SpecError(
                    f"job {job_id} is {self.job(job_id).state}", hint="quotas are pooled for a job that waits"
                )
            self.emit("job.pool", job_id, {"queue": lease.queue, "until_s": lease.until_s})
        return replace(record, lease=lease)

    def end_abandoned_jobs(self) -> None:
        """End this workspace's jobs that have lost the only driver they could have, wherever they ran."""
        mine = (jobs.c.workspace == self.workspace, jobs.c.lasting == 0, LIVE)
        with self.transaction() as connection:
            for row in connection.execute(select(jobs).where(*mine)).all():
                if self._abandoned(row):
                    self.advance(_record(row), "FAILED", GONE)

    def join(self, driver: str, cluster: str) -> None:
        """Count a process among the drivers of `cluster`."""
        values = {"id": driver, "cluster": cluster, "owner_json": to_json(this_process()), "beat": 0}
        with self.transaction() as connection:
            insert_or_update(connection, drivers, key=("id",), values=values)

    def beat(self, driver: str, cluster: str) -> None:
        """Say that `driver` lives, and that it has not left if it was taken for gone."""
        with self.transaction() as connection:
            mine = update(drivers).where(drivers.c.id == driver).values(beat=drivers.c.beat + 1)
            if not connection.execute(mine).rowcount:
                self.join(driver, cluster)

    def part(self, driver: str) -> None:
        """Strike a driver off: it has left, or is gone."""
        with self.transaction() as connection:
            connection.execute(delete(drivers).where(drivers.c.id == driver))

    def drivers(self) -> tuple[Driver, ...]:
        """Every driver that has not left in order."""
        with self.read() as connection:
            rows = connection.execute(select(drivers)).all()
        return tuple(Driver(id=row.id, cluster=row.cluster, owner_json=row.owner_json, beat=row.beat) for row in rows)

    def note_node(self, note: NodeNote) -> None:
        """Keep what is known of a node, in place of what was."""
        values: dict[str, Any] = {"cluster": note.cluster, "node": note.node, "closed": int(note.closed)}
        values |= {"sick_json": json.dumps(note.sick), "reason": note.reason}
        with self.transaction() as connection:
            insert_or_update(connection, nodes, key=("cluster", "node"), values=values)
            self.emit("node.note", note.node, {"closed": note.closed, "sick": list(note.sick), "reason": note.reason})

    def node_notes(self, cluster: str) -> tuple[NodeNote, ...]:
        """What is known of nodes of `cluster`, by name."""
        with self.read() as connection:
            rows = connection.execute(select(nodes).where(nodes.c.cluster == cluster).order_by(nodes.c.node)).all()
        return tuple(
            NodeNote(
                cluster=row.cluster,
                node=row.node,
                closed=bool(row.closed),
                sick=tuple(json.loads(row.sick_json)),
                reason=row.reason,
            )
            for row in rows
        )

    def _abandoned(self, row: Row[Any]) -> bool:
        """Whether a job that has not ended has lost the only driver that it could have."""
        return not row.lasting and not any(
            each.id == row.driver and not certainly_gone(each) for each in self.drivers()
        )

    def _change(self, record: JobRecord, values: Mapping[str, Any], *, state: JobState, reason: str) -> bool:
        """Change the row if it still is as `record` says: the same attempt, the same driver, not ended."""
        same = (jobs.c.number == record.number, jobs.c.attempt == record.attempt, jobs.c.driver == record.driver, LIVE)
        with self.transaction() as connection:
            if not connection.execute(update(jobs).where(*same).values(dict(values))).rowcount:
                return False
            self._told(record.job.id, state, attempt=record.attempt, reason=reason)
        return True

    def _evict(self, connection: Connection, eviction: Eviction) -> None:
        """Tell whoever sees to a running job that it has to leave its places."""
        of = eviction.record
        connection.execute(update(jobs).where(jobs.c.number == of.number).values(evicted=eviction.reason))
        told = {"attempt": of.attempt, "reason": eviction.reason, "lost_ms": eviction.lost_ms}
        self.emit("job.evict", of.job.id, told)

    def _told(self, job_id: str, state: str, *, attempt: int, reason: str = "", nodes: Sequence[str] = ()) -> None:
        told: dict[str, object] = {"state": state, "attempt": attempt, "reason": reason}
        self.emit("job.state", job_id, told | ({"nodes": list(nodes)} if nodes else {}))

    def _records(self, query: Select[Any]) -> tuple[JobRecord, ...]:
        with self.read() as connection:
            return tuple(_record(row) for row in connection.execute(query).all())


def certainly_gone(driver: Driver) -> bool:
    """Whether the driver's process, which was on this machine, no longer runs."""
    return is_gone(read_json(driver.owner_json, Owner))


def _may_evict(connection: Connection, eviction: Eviction) -> bool:
    of = eviction.record
    same = (jobs.c.number == of.number, jobs.c.attempt == of.attempt, jobs.c.evicted == "")
    return connection.execute(select(jobs.c.number).where(*same, jobs.c.state.in_(ACTIVE))).first() is not None


def _record(row: Row[Any]) -> JobRecord:
    return JobRecord(
        number=row.number,
        workspace=row.workspace,
        job=_job(row.job_json),
        address=row.address,
        cluster=row.cluster,
        driver=row.driver,
        lasting=bool(row.lasting),
        state=row.state,
        reason=row.reason,
        attempt=row.attempt,
        losses=row.losses,
        placement=read_json(row.placement_json, Placement) if row.placement_json else None,
        result=read_json(row.result_json, JobResult) if row.result_json else None,
        cancelled=row.cancelled,
        evicted=row.evicted,
        started_s=row.started_s,
        saved_s=row.saved_s,
        lease=read_json(row.lease_json, Lease) if row.lease_json else None,
    )


@functools.lru_cache(maxsize=4096)
def _job(text: str) -> Job:  # read again at every decision while it waits
    return read_json(text, Job)
