"""Submit gangs and follow them to their end: the shell around the pure decisions of `queue` and `placement`.

One thread admits: it looks at what is free, calls `admit`, and starts a thread for every placed job. That thread
takes its gang through ADMITTED, PLACED and RUNNING to the end and is the only one to touch it. The launcher starts
or joins Ray at the first submission, and its `close` leaves nothing running.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from mainspring.cluster.agent import GRACE_S, tail_of
from mainspring.cluster.engine import Engine, Member, connect
from mainspring.cluster.gang import Gang
from mainspring.cluster.placement import Capacity, occupy
from mainspring.cluster.queue import QueueState, admit, refusal
from mainspring.cluster.verdict import RankEnd, culprit, judge
from mainspring.spec import (
    TERMINAL,
    Cancelled,
    DoesNotFit,
    Job,
    JobResult,
    JobState,
    MainspringError,
    Placement,
    SpecError,
    Unavailable,
)

OnState = Callable[[JobState, str], None]
TICK_S = 0.1
ADMIT_S = 0.5
LOG_BYTES = 4 << 20

log = logging.getLogger(__name__)


class Handle:
    """A submitted job: wait for it, cancel it, read its logs. Safe to use from any thread."""

    def __init__(self, job: Job, run_dir: Path, on_state: OnState | None) -> None:
        self.job = job
        self.run_dir = run_dir
        self._on_state = on_state
        self._state: JobState = "PENDING"
        self._reason = ""
        self._result: JobResult | None = None
        self._done = threading.Event()
        self._cancelled = ""

    @property
    def state(self) -> JobState:
        """Where the job is now."""
        return self._state

    @property
    def reason(self) -> str:
        """Why it is there: what a pending job waits for, why a failed one failed."""
        return self._reason

    def wait(self, timeout_s: float | None = None) -> JobResult:
        """How the job ended, rank by rank; `Unavailable` if it has not after `timeout_s`."""
        if not self._done.wait(timeout_s):
            raise Unavailable(f"job {self.job.id} is still {self._state} after {timeout_s:g} s")
        assert self._result is not None
        return self._result

    @property
    def cancelled(self) -> str:
        """Why the job was asked to stop; empty when nobody has."""
        return self._cancelled

    def cancel(self, reason: str = "cancelled") -> None:
        """Ask the job to stop. Returns at once; `wait` says when it has. The first reason is kept."""
        self._cancelled = self._cancelled or reason

    def logs(self, rank: int = 0) -> str:
        """What `rank` has written to stdout and stderr so far: the last `LOG_BYTES` of it, the rest is in its file."""
        if not 0 <= rank < self.job.ranks:
            raise SpecError(f"job {self.job.id} has ranks 0 to {self.job.ranks - 1}, not {rank}")
        return tail_of(self.run_dir / f"rank-{rank}.log", LOG_BYTES)

    def move(self, state: JobState, reason: str = "") -> None:
        """Record a step of the job's life and tell whoever asked to hear of it."""
        self._state, self._reason = state, reason
        log.info("job state", extra={"job": self.job.id, "state": state, "reason": reason})
        if self._on_state is None:
            return
        try:
            self._on_state(state, reason)
        except Exception:
            log.exception("on_state raised", extra={"job": self.job.id, "state": state})

    def finish(self, state: JobState, reason: str, *, ends: tuple[RankEnd, ...] = (), seconds: float = 0.0) -> None:
        """Record the end and let every waiter go."""
        assert state in TERMINAL, state
        exits = tuple(end.exit for end in sorted(ends, key=lambda end: end.exit.rank))
        self._result = JobResult(job_id=self.job.id, state=state, reason=reason, exits=exits, seconds=seconds)
        self.move(state, reason)
        self._done.set()


class Launcher:
    """Starts jobs on the Ray cluster at `address`: `"local"`, `"auto"` or `"ray://host:port"`.

    `run_root/<job.id>/` receives the logs and files of every rank. Ranks write there directly where their node sees
    that folder; elsewhere, or when `scratch` names a node-local folder, they write locally and the launcher copies
    text as it grows and everything else at the end. Ranks on different nodes must not use the same file name.
    """

    def __init__(self, *, address: str = "local", run_root: Path, scratch: str = "") -> None:
        self.address = address
        self.run_root = run_root.absolute()
        self._scratch = scratch
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._pending: list[Handle] = []
        self._live: dict[str, tuple[Handle, Placement]] = {}
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
        if not job.id or job.id.startswith(".") or "/" in job.id or not job.id.isprintable():
            raise SpecError(f"{job.id!r} cannot be the id of a job", hint="it names a folder of the runs")
        try:
            json.loads(job.payload_json)
        except ValueError as error:
            raise SpecError(f"the payload of job {job.id} is not JSON: {error}") from error
        with self._lock:
            if self._closed:
                raise SpecError("the launcher is closed")
            earlier = self._handles.get(job.id)
            if earlier is not None and earlier.state not in TERMINAL:
                raise SpecError(f"a job with the id {job.id!r} is {earlier.state}")
            job = self._within_reach(job)
            handle = self._handles[job.id] = Handle(job, self._run_dir(job), on_state)
        handle.move("PENDING")  # outside the lock, as it calls the caller's code
        with self._lock:
            self._pending.append(handle)
        self._wake.set()
        return handle

    def check(self, job: Job) -> None:
        """Raise what `submit` would raise because of the cluster, and submit nothing."""
        with self._lock:
            self._within_reach(job)

    def close(self) -> None:
        """Cancel what still runs, wait until it is gone, and disconnect."""
        with self._lock:
            self._closed = True
            for handle in self._handles.values():
                handle.cancel("the launcher was closed")
        self._wake.set()
        deadline_s = time.monotonic() + GRACE_S + 10.0
        while alive := [thread for thread in self._threads if thread.is_alive()]:
            if time.monotonic() > deadline_s:
                log.warning("jobs did not stop in time", extra={"threads": [thread.name for thread in alive]})
                break
            alive[0].join(TICK_S)
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _within_reach(self, job: Job) -> Job:
        """`job`, kept to the nodes that see what it needs. Nodes that join later are not asked for this job."""
        if self._engine is None:
            self._engine = connect(self.address)
            self._spawn(self._admit_forever, name="admission")
        total = tuple(member.capacity for member in self._engine.members())
        if reason := refusal(job, total):
            raise DoesNotFit(reason, hint="ask for fewer ranks or less per rank, or join a larger cluster")
        if not job.needs or self.address == "local":
            return job
        seeing = self._engine.seeing(job.needs, run_root=str(self.run_root))
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

    def _admit_forever(self) -> None:
        while not self._closed or self._pending:
            # Others may share the cluster, so a waiting job looks again even when nothing happened here.
            self._wake.wait(ADMIT_S if self._pending else None)
            self._wake.clear()
            try:
                self._admit()
            except Exception as error:
                log.exception("admission failed")
                with self._lock:
                    given_up, self._pending = self._pending, []
                for handle in given_up:
                    handle.finish("FAILED", f"admission failed: {type(error).__name__}: {error}")

    def _admit(self) -> None:
        """One pass: drop the cancelled, decide about the rest, start what was placed."""
        assert self._engine is not None
        with self._lock:
            cancelled = [handle for handle in self._pending if handle.cancelled]
            self._pending = [handle for handle in self._pending if handle not in cancelled]
        for handle in cancelled:
            handle.finish("CANCELLED", handle.cancelled)
        if not self._pending:
            return
        members = {member.capacity.node: member for member in self._engine.members()}
        state = self._look(members)
        with self._lock:
            by_id = {handle.job.id: handle for handle in self._pending}
            decision = admit(state, [handle.job for handle in self._pending])
            for placement in decision.placed:
                self._live[placement.job_id] = (by_id[placement.job_id], placement)
            leaving = {p.job_id for p in decision.placed} | {held.job_id for held in decision.refused}
            self._pending = [handle for handle in self._pending if handle.job.id not in leaving]
        for held in decision.waiting:
            if by_id[held.job_id].reason != held.reason:
                by_id[held.job_id].move("PENDING", held.reason)
        for held in decision.refused:
            by_id[held.job_id].finish("FAILED", held.reason)
        for placement in decision.placed:
            handle = by_id[placement.job_id]
            self._spawn(self._run, handle, placement, members, name=f"job-{placement.job_id}")

    def _look(self, members: dict[str, Member]) -> QueueState:
        """What is free: never more than Ray says, nor than our own books say, as Ray's figures lag behind."""
        assert self._engine is not None
        total = tuple(member.capacity for member in members.values())
        ours = total
        with self._lock:
            for handle, placement in self._live.values():
                ours = occupy(ours, placement, handle.job.resources)
        rays = self._engine.available()
        free = tuple(_least(book, rays.get(members[book.node].id, Capacity(node=book.node, cpus=0))) for book in ours)
        return QueueState(total=total, free=free)

    def _run(self, handle: Handle, placement: Placement, members: dict[str, Member]) -> None:
        """Take one placed job to its end, whatever happens."""
        gang = Gang(handle.job, placement, members, run_dir=handle.run_dir)
        ended: tuple[JobState, str] = ("FAILED", "")
        started_s = time.monotonic()
        try:
            handle.move("ADMITTED", f"on {', '.join(dict.fromkeys(placement.nodes))}")
            self._reserve(handle, gang)
            gang.prepare(scratch=self._scratch, run_root="" if self.address == "local" else str(self.run_root))
            handle.move("PLACED", f"on {', '.join(dict.fromkeys(placement.nodes))}")
            gang.start()
            handle.move("RUNNING")
            started_s = time.monotonic()
            ended = _follow(handle, gang)
            gang.collect()
        except Cancelled as error:
            ended = ("CANCELLED", str(error))
        except MainspringError as error:
            ended = ("FAILED", f"{type(error).__name__}: {error}")
        except Exception as error:
            log.exception("job supervision failed", extra={"job": handle.job.id})
            ended = ("FAILED", f"supervision failed: {type(error).__name__}: {error}")
        finally:
            seconds = time.monotonic() - started_s
            self._release(handle, gang)
            handle.finish(*ended, ends=tuple(gang.ends.values()), seconds=seconds)

    def _reserve(self, handle: Handle, gang: Gang) -> None:
        """Wait for Ray to set the places aside; others may share the cluster, so this can take a while."""
        assert self._engine is not None
        gang.reserve()
        while not gang.reserved():
            if handle.cancelled:
                raise Cancelled(handle.cancelled)
            alive = {member.id for member in self._engine.members()}
            for post in gang.posts:
                if post.member.id not in alive:
                    raise Unavailable(f"node {post.node} left the cluster before the job started")

    def _release(self, handle: Handle, gang: Gang) -> None:
        try:
            gang.release()
        except Exception:
            log.exception("could not release the gang", extra={"job": handle.job.id})
        with self._lock:
            self._live.pop(handle.job.id, None)
            self._wake.set()


def _follow(handle: Handle, gang: Gang) -> tuple[JobState, str]:
    """Watch a running gang until every rank has ended. The first failure, or a cancellation, ends the others."""
    asked = ""
    tick = threading.Event()
    while len(ends := gang.poll()) < handle.job.ranks:
        first = culprit(ends)
        if not asked and handle.cancelled:
            asked = handle.cancelled
            gang.stop(asked, grace_s=GRACE_S)
        elif not asked and first is not None:
            asked = f"rank {first.exit.rank} on {first.exit.node} failed first"
            gang.stop(asked, grace_s=GRACE_S)
        tick.wait(TICK_S)
    # A reason that is not ours is the agent's: a time limit, or a driver that fell silent.
    imposed = next((end.stopped for end in ends if end.stopped not in ("", asked)), "")
    return judge(ends, stopped=imposed, cancelled=handle.cancelled if asked == handle.cancelled else "")


def _least(one: Capacity, other: Capacity) -> Capacity:
    return Capacity(
        node=one.node,
        cpus=min(one.cpus, other.cpus),
        devices=min(one.devices, other.devices),
        memory_bytes=min(one.memory_bytes, other.memory_bytes),
    )
