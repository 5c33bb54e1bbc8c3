"""Submit gangs and follow them to their end: the shell around the pure decisions of `queue` and `reconcile`.

One thread looks at the books in the store and at what Ray has, calls `reconcile` and `admit`, writes down what they
say, and starts a thread for every job that was placed (`attempt`). Drivers of one cluster share the books: each decides
about everybody and starts its own, in the place of others if need be, whose drivers read there that they have to leave.
A lasting job waits for whoever serves its address, and outlives that driver too.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from mainspring.cluster.agent import GRACE_S
from mainspring.cluster.attempt import Attempt
from mainspring.cluster.books import write_machines
from mainspring.cluster.engine import Engine, Member, connect
from mainspring.cluster.handle import Handle, OnState, result_of
from mainspring.cluster.inspection import lie_of, sick_notes, truthful
from mainspring.cluster.pulse import BEAT_S, Pulse
from mainspring.cluster.queue import QueueState, admit, machines_in, refusal
from mainspring.cluster.reading import read_state
from mainspring.cluster.reconcile import Group, displaced, group_of, reconcile
from mainspring.hardware.census import Census
from mainspring.spec import (
    ACTIVE,
    TERMINAL,
    DoesNotFit,
    Driver,
    Eviction,
    Job,
    JobRecord,
    JobState,
    Machine,
    NodeNote,
    Placement,
    QueueFile,
    SpecError,
    Unavailable,
)
from mainspring.store import Store

TICK_S = 0.1
ADMIT_S = 0.5
SWEEP_S = 5.0
LAG_S = 2.0  # how far what Ray says is free may be behind
HEALTH_S = 60.0

log = logging.getLogger(__name__)


class Launcher:
    """Starts jobs on the Ray cluster at `address`: `"local"`, `"auto"` or `"ray://host:port"`.

    `run_root/<job.id>/` receives the logs and files of every rank; by default `runs` in the store's home. Ranks write
    there directly where their node sees that folder; elsewhere, or when `scratch` names a node-local folder, they write
    locally and the launcher copies text as it grows and everything else at the end. Ranks on different nodes must not
    use the same file name. `quotas` are what jobs are admitted under; without any, every queue may fill the cluster.
    With `serves`, lasting jobs of this address and workspace are seen to as well.
    """

    def __init__(
        self,
        store: Store,
        *,
        address: str = "local",
        run_root: Path | None = None,
        scratch: str = "",
        quotas: QueueFile | None = None,
        serves: bool = False,
    ) -> None:
        self.address = address
        self.run_root = (run_root or store.home / "runs").absolute()
        self.driver = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.store = store
        self._scratch = scratch
        self._quotas = quotas or QueueFile(queues=())
        self._serves = serves
        self._engine: Engine | None = None
        self._cluster = ""
        self._told: tuple[Machine, ...] = ()
        self._pulse = Pulse()
        self._swept_s = self._asked_s = float("-inf")
        self._found: dict[str, Census | None] = {}
        self._lies: dict[str, str] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._parted = threading.Event()
        self._leaving = threading.Event()
        self._live: dict[int, tuple[JobRecord, Handle]] = {}
        self._left: list[tuple[JobRecord, float]] = []
        self._handles: dict[str, Handle] = {}
        self._threads: list[threading.Thread] = []
        self._closed = False

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, job: Job, on_state: OnState | None = None) -> Handle:
        """Queue `job` and return its handle.

        Raises `DoesNotFit` for a gang larger than the whole cluster, `SpecError` for a payload that is not JSON, the id
        of a live job, or files that the nodes do not see, `Unavailable` when Ray cannot be started or reached.
        `on_state` is called from other threads.
        """
        check_job(job)
        with self._lock:
            if self._closed:
                raise SpecError("the launcher is closed")
            earlier = self._handles.get(job.id)
            if earlier is not None and earlier.state not in TERMINAL:
                raise SpecError(f"a job with the id {job.id!r} is {earlier.state}")
            job = self._within_reach(job)
            folder = self._run_dir(job)
            self.store.enqueue(job, address=self.address, cluster=self._cluster, driver=self.driver)
            handle = self._handles[job.id] = Handle(job, folder, on_state)
        handle.move("PENDING")  # outside the lock, as it calls the caller's code
        self._wake.set()
        return handle

    def check(self, job: Job) -> None:
        """Raise what `submit` would raise because of the cluster, and submit nothing."""
        with self._lock:
            self._within_reach(job)

    def serve(self, stopped: threading.Event) -> None:
        """See to lasting jobs until `stopped`; raises `Unavailable` when Ray cannot be started or reached."""
        assert self._serves, "a launcher that serves is made with serves=True"
        with self._lock:
            self._connect()
        self._wake.set()
        stopped.wait()

    def close(self) -> None:
        """Cancel what still runs, let go of lasting jobs, wait until that is done, and disconnect."""
        with self._lock:
            self._closed = True
            for handle in self._handles.values():
                if not handle.lasting:
                    handle.cancel("the launcher was closed")
        self._leaving.set()
        self._wake.set()
        deadline_s = time.monotonic() + GRACE_S + 10.0
        while alive := [thread for thread in self._threads if thread.is_alive()]:
            if time.monotonic() > deadline_s:
                log.warning("jobs did not stop in time", extra={"threads": [thread.name for thread in alive]})
                break
            alive[0].join(TICK_S)
        self._parted.set()
        if self._engine is not None:
            self.store.part(self.driver)
            self._engine.close()
            self._engine = None

    def _connect(self) -> Engine:
        if self._engine is None:
            self._engine = connect(self.address)
            self._cluster = self._engine.cluster_id()
            self.store.join(self.driver, self._cluster)
            self.store.end_abandoned_jobs()
            threading.Thread(target=self._beat_forever, name="beat", daemon=True).start()
            self._spawn(self._look_forever, name="admission")
        return self._engine

    def _within_reach(self, job: Job) -> Job:
        """`job`, kept to the nodes that see what it needs. Nodes that join later are not asked for this job."""
        engine = self._connect()
        total = tuple(member.capacity for member in self._members(engine).values())
        if reason := refusal(job, total):
            lies = "; ".join(sorted(self._lies.values()))
            raise DoesNotFit(reason, hint=lies or "ask for fewer ranks or less per rank, or join a larger cluster")
        if not job.needs or self.address == "local":
            return job
        seeing = engine.seeing(job.needs, run_root=str(self.run_root))
        if len(seeing) == len(total):
            return job
        nodes = tuple(sorted(node.node for node in total if node.node in seeing))
        blind = sorted(node.node for node in total if node.node not in seeing)
        if not nodes or refusal(replace(job, nodes=nodes), total):
            raise SpecError(
                f"{len(blind)} of the {len(total)} nodes of {self.address} do not see what is on this machine's disk: "
                f"{', '.join(blind[:3])}{', ...' if len(blind) > 3 else ''} need {' and '.join(job.needs)}",
                hint="nothing was started; set MAINSPRING_DATABASE_URL to a PostgreSQL server and "
                "MAINSPRING_ARTIFACTS_URL to an object store, or share the disk among the nodes",
            )
        return replace(job, nodes=nodes)

    def _members(self, engine: Engine) -> dict[str, Member]:
        """The live nodes by name, with the devices that they really have."""
        members = engine.members()
        unseen = [each for each in members if each.accelerator and each.id not in self._found]
        for each, census in zip(unseen, engine.census(unseen).values() if unseen else (), strict=True):
            self._found[each.id] = census
            if lie := lie_of(each, census):
                self._lies[each.id] = lie
                log.warning("a node promises more than it has", extra={"lie": lie})
                self.store.emit("node.lie", each.capacity.node, {"reason": lie})
        return {each.capacity.node: truthful(each, self._found.get(each.id)) for each in members}

    def _health(self, engine: Engine, members: Mapping[str, Member], *, now_s: float) -> tuple[NodeNote, ...]:
        """What is known of nodes; now and then devices are asked how they are."""
        asked = [each for each in members.values() if self._found.get(each.id)]
        if asked and now_s - self._asked_s > HEALTH_S:
            self._asked_s = now_s
            self._found |= engine.census(asked)
            found = {each.capacity.node: census for each in asked if (census := self._found[each.id])}
            for note in sick_notes(self._cluster, found, self.store.node_notes(self._cluster)):
                self.store.note_node(note)
        return self.store.node_notes(self._cluster)

    def _run_dir(self, job: Job) -> Path:
        folder = self.run_root / job.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"cannot make {folder}: {error.strerror}", hint="free some disk space") from error
        return folder

    def _spawn(self, target: Callable[..., None], *args: object, name: str) -> None:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        self._threads = [old for old in self._threads if old.is_alive()] + [thread]
        thread.start()

    def _beat_forever(self) -> None:
        while not self._parted.wait(BEAT_S):
            try:
                self.store.beat(self.driver, self._cluster)
            except Unavailable as error:
                log.warning("the database did not hear the heartbeat", extra={"error": str(error)})

    def _look_forever(self) -> None:
        while not self._closed or self._waiting():
            # Others may share the cluster, so a waiting job looks again even when nothing happened here.
            idle = not (self._serves or self._live or self._waiting())
            self._wake.wait(None if idle else ADMIT_S)
            self._wake.clear()
            try:
                self._look()
            except Unavailable as error:
                log.warning("admission waits for the database", extra={"error": str(error)})
            except Exception as error:
                log.exception("admission failed")
                for handle in self._waiting():
                    said = f"admission failed: {type(error).__name__}: {error}"
                    self._finish(self.store.job(handle.job.id), handle, "FAILED", said)

    def _waiting(self) -> list[Handle]:
        with self._lock:
            live = {handle for _, handle in self._live.values()}
            mine = [each for each in self._handles.values() if not (each.lasting and self._closed)]
            return [each for each in mine if each.state not in TERMINAL and each not in live]

    def _look(self) -> None:
        """One pass: put the books in order, pass on what others wish, and start what finds a place."""
        engine = self._connect()
        now_s = time.monotonic()
        sweeps = now_s - self._swept_s > SWEEP_S
        named = engine.groups() if sweeps else ()
        # In this order: a group is made after its job is written, and a job is written by a driver that has joined.
        records = self.store.jobs_of(self._cluster, address=self.address)
        drivers = self.store.drivers()
        alive = self._pulse.alive(drivers, now_s=now_s) | {self.driver}
        members = self._members(engine)
        self._tell(members)
        if sweeps:
            found = [group_of(self.store.id, name, number) for number, name in named]
            self._settle(records, [group for group in found if group], drivers=drivers, alive=alive, members=members)
            self._swept_s = now_s
        notes = self._health(engine, members, now_s=now_s)
        self._pass_on(records, notes)
        with self._lock:
            busy = frozenset(self._live)  # an attempt that has given way may still be clearing up
        waiting = [
            each
            for each in records
            if each.state == "PENDING" and each.number not in busy and (not each.driver or each.driver in alive)
        ]
        self._admit(self._not_cancelled(waiting), records, members=members, notes=notes)

    def _tell(self, members: Mapping[str, Member]) -> None:
        """Write down what the nodes have, for those who cannot ask this Ray."""
        machines = machines_in([member.capacity for member in members.values()])
        if machines != self._told:
            write_machines(self.store, self._cluster, machines)
            self._told = machines

    def _settle(
        self,
        records: Sequence[JobRecord],
        groups: Sequence[Group],
        *,
        drivers: Sequence[Driver],
        alive: frozenset[str],
        members: Mapping[str, Member],
    ) -> None:
        """Remove groups nobody wants; see to jobs whose driver is gone."""
        assert self._engine is not None
        serves = self.address if self._serves and not self._closed else ""
        for step in reconcile(records, groups, alive=alive, cluster=self._cluster, serves=serves):
            log.info("set right", extra={"kind": step.kind, "group": step.group, "reason": step.reason})
            if step.record is None:
                self._engine.remove_group(step.group)
                self.store.emit("group.removed", step.group, {"driver": self.driver})
            elif step.kind == "fail":
                result = result_of(step.record.job, "FAILED", step.reason)
                self.store.advance(step.record, "FAILED", step.reason, result=result)
            elif step.kind == "again":
                self.store.requeue(step.record, step.reason, counted=False)
            elif taken := self.store.take_over(step.record, self.driver):
                self._start(taken, members, taken_over=True)
        for driver in drivers:
            if driver.id not in alive:
                self.store.part(driver.id)

    def _pass_on(self, records: Sequence[JobRecord], notes: Sequence[NodeNote]) -> None:
        """Tell own jobs that somebody wants them stopped, or their places, or their nodes for themselves."""
        told = {(record.number, record.attempt): record for record in records}
        with self._lock:
            live = list(self._live.values())
        for record, handle in live:
            now = told.get((record.number, record.attempt), record)
            if now.cancelled:
                handle.cancel(now.cancelled)
            if now.state in ACTIVE:
                handle.evicted = handle.evicted or now.evicted
            why, urgent = displaced(record, notes)
            if why and record.losses + 1 < record.job.starts:
                handle.displaced, handle.urgent = handle.displaced or why, handle.urgent or urgent

    def _not_cancelled(self, waiting: Sequence[JobRecord]) -> list[JobRecord]:
        """Those of `waiting` that shall still run; the others of this driver are ended."""
        kept: list[JobRecord] = []
        for record in waiting:
            handle = self._handle_of(record)
            reason = record.cancelled or (handle.cancelled if handle else "")
            if not reason:
                kept.append(record)
            elif handle is not None:
                self._finish(record, handle, "CANCELLED", reason)
        return kept

    def _handle_of(self, record: JobRecord) -> Handle | None:
        """The handle of a job that is this driver's to start; None for anybody else's."""
        with self._lock:
            if record.driver == self.driver:
                return self._handles.get(record.job.id)
            if record.driver or not self._serves or self._closed:
                return None
            handle = self._handles.get(record.job.id)
            if handle is None or handle.state in TERMINAL:
                handle = self._handles[record.job.id] = Handle(record.job, self._run_dir(record.job), lasting=True)
            return handle

    def _admit(
        self,
        waiting: Sequence[JobRecord],
        records: Sequence[JobRecord],
        *,
        members: Mapping[str, Member],
        notes: Sequence[NodeNote],
    ) -> None:
        """Decide about everybody who waits, write down the places of one's own, and start them."""
        mine = {self._name(record): record for record in waiting if self._handle_of(record)}
        elastic = any(each.job.menu and each.driver == self.driver and each.state in ACTIVE for each in records)
        if not mine and not elastic:
            return
        leaving = [each for each in records if each.state in ACTIVE and each.evicted and not each.cancelled]
        line = sorted([*waiting, *leaving], key=lambda record: record.number)
        names = {self._name(record): record for record in records}
        ours = {name for name, record in names.items() if record.driver == self.driver}
        state = self._state(records, members, notes)
        decision = admit(state, [replace(each.job, id=self._name(each)) for each in line], mine=mine.keys() | ours)
        placed = [replace(each, job_id=mine[each.job_id].job.id) for each in decision.placed]
        stops = [
            Eviction(record=names[each.job_id], reason=each.reason, lost_ms=each.lost_ms) for each in decision.stopped
        ]
        if (placed or stops) and not self.store.assign(
            self._cluster, placed, driver=self.driver, beside=records, evictions=stops
        ):
            self._wake.set()  # somebody was faster: look again
            return
        if stops:
            self._wake.set()  # some of them may be this driver's own
        by_id = {placement.job_id: placement for placement in placed}
        refused = {held.job_id: held.reason for held in decision.refused}
        waiting_for = {held.job_id: held.reason for held in decision.waiting}
        said: dict[int, str] = {}
        for name, record in mine.items():
            handle = self._handle_of(record)
            if record.job.id in by_id:
                self._start(self._placed(record, by_id[record.job.id]), members)
            elif handle and name in refused:
                self._finish(record, handle, "FAILED", "; ".join([refused[name], *sorted(self._lies.values())]))
            elif handle and handle.reason != (why := _why(record, waiting_for[name])):
                said[record.number] = why
                handle.move("PENDING", why)
        if said:
            self.store.explain(said)

    def _placed(self, record: JobRecord, placement: Placement) -> JobRecord:
        """The record as `Ledger.assign` has written it."""
        return replace(
            record,
            state="ADMITTED",
            evicted="",
            driver=self.driver,
            cluster=self._cluster,
            attempt=record.attempt + 1,
            placement=placement,
        )

    def _name(self, record: JobRecord) -> str:
        """The job's id, told apart from one of the same id in another workspace."""
        mine = record.workspace == self.store.workspace
        return record.job.id if mine else f"{record.job.id} of workspace {record.workspace}"

    def _state(
        self, records: Sequence[JobRecord], members: Mapping[str, Member], notes: Sequence[NodeNote]
    ) -> QueueState:
        """What is free: never more than Ray says, whose figures lag behind, nor than the books say."""
        assert self._engine is not None
        now_s = time.monotonic()
        with self._lock:
            live = [record for record, _ in self._live.values()]
            self._left = [(record, left_s) for record, left_s in self._left if now_s - left_s < LAG_S]
            left = [record for record, _ in self._left]
        rays = self._engine.available()
        return read_state(
            records,
            live=live,
            left=left,
            name=self._name,
            total=tuple(member.capacity for member in members.values()),
            free=tuple(replace(rays[each.id], node=name) for name, each in members.items() if each.id in rays),
            quotas=self._quotas,
            notes=tuple(notes),
        )

    def _start(self, record: JobRecord, members: Mapping[str, Member], *, taken_over: bool = False) -> None:
        assert self._engine is not None
        with self._lock:
            handle = self._handles.get(record.job.id)
            if handle is None or taken_over:
                handle = self._handles[record.job.id] = Handle(record.job, self._run_dir(record.job), lasting=True)
            self._live[record.number] = (record, handle)
        handle.displaced, handle.urgent, handle.evicted = "", False, record.evicted
        attempt = Attempt(
            handle=handle,
            record=record,
            store=self.store,
            engine=self._engine,
            leaving=self._leaving,
            taken_over=taken_over,
        )
        self._spawn(self._run, attempt, members, name=f"job-{record.job.id}")

    def _run(self, attempt: Attempt, members: Mapping[str, Member]) -> None:
        shared = "" if self.address == "local" else str(self.run_root)
        try:
            attempt.run(members, scratch=self._scratch, run_root=shared)
        finally:
            with self._lock:
                self._live.pop(attempt.record.number, None)
                self._left.append((attempt.record, time.monotonic()))
            self._wake.set()

    def _finish(self, record: JobRecord, handle: Handle, state: JobState, reason: str) -> None:
        """End a job that has not been started."""
        result = result_of(handle.job, state, reason)
        if self.store.advance(record, state, reason, result=result):
            handle.finish(result)


def _why(record: JobRecord, reason: str) -> str:
    """Why a job waits, and why it had to stop when it ran before."""
    return f"{reason}; left its places: {record.evicted.removeprefix('stops: ')}" if record.evicted else reason


def check_job(job: Job) -> None:
    """Raise `SpecError` for an id that cannot name a folder and for a payload that is not JSON."""
    if not job.id or job.id.startswith(".") or "/" in job.id or not job.id.isprintable():
        raise SpecError(f"{job.id!r} cannot be the id of a job", hint="it names a folder of the runs")
    try:
        json.loads(job.payload_json)
    except ValueError as error:
        raise SpecError(f"the payload of job {job.id} is not JSON: {error}") from error
