"""One attempt of a job, from its places to its end: the only thread that touches its gang.

Each step is written in the store before it is taken, and can be taken again: a driver that takes an attempt over goes
through the same steps and finds what its predecessor has done. A write that is refused means that another driver has
this attempt now; then nothing of it is touched any more.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mainspring.cluster.agent import GRACE_S, LAPSED, LIMIT
from mainspring.cluster.engine import Engine, Member
from mainspring.cluster.gang import Gang
from mainspring.cluster.handle import Handle, result_of
from mainspring.cluster.placement import as_placed
from mainspring.cluster.reconcile import group_name
from mainspring.cluster.verdict import RankEnd, culprit, judge
from mainspring.spec import SAVED, Cancelled, Job, JobRecord, JobState, MainspringError, Unavailable, WorkerLost
from mainspring.store import Store

Outcome = Literal["ended", "again", "left"]
TICK_S = 0.1
SAVE_S = 30.0  # how long ranks may take to save what they have when their device is sick
NOTED_S = 1.0  # how often it is written down at most that a job has saved what it has
RETRY_S = 2.0

log = logging.getLogger(__name__)


class LetGo(Exception):
    """The attempt is, or will be, another driver's."""


class Displaced(Exception):
    """The attempt has left its nodes because it had to; the message says why."""


class Evicted(Exception):
    """The attempt has left its places to others; the message says why."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Why ranks shall end, how long they have, and whether they may first save what they have."""

    reason: str
    grace_s: float
    gently: bool = False


@dataclass(slots=True)
class Attempt:
    """A handle's job in the attempt that `record` describes. `leaving` is set when lasting jobs are to be let go of."""

    handle: Handle
    record: JobRecord
    store: Store
    engine: Engine
    leaving: threading.Event
    taken_over: bool = False
    gang: Gang | None = None
    running_s: float = 0.0
    noted_s: float = 0.0
    saved_ns: int = 0  # the last change of `SAVED` that is written down
    job: Job = field(init=False)  # in the shape of this attempt

    def __post_init__(self) -> None:
        placed = self.record.placement
        self.job = as_placed(self.handle.job, placed) if placed else self.handle.job

    def run(self, members: Mapping[str, Member], *, scratch: str, run_root: str) -> Outcome:
        """Take it to its end, whatever happens. `again` if it waits for its next attempt."""
        self.saved_ns, lost = self._saved_ns(), False
        try:
            state, reason = self._through(members, scratch=scratch, run_root=run_root)
            lost = self._was_lost(reason)
        except LetGo:
            return "left"
        except Cancelled as error:
            state, reason = "CANCELLED", str(error)
        except Evicted as error:
            return self._give_way(str(error))
        except Displaced as error:
            state, reason, lost = "FAILED", str(error), True
            if self.handle.cancelled:
                state, reason = "CANCELLED", self.handle.cancelled
        except MainspringError as error:
            state, reason = "FAILED", f"{type(error).__name__}: {error}"
            lost = isinstance(error, WorkerLost) or self._was_lost(reason)
        except Exception as error:
            log.exception("job supervision failed", extra={"job": self.handle.job.id})
            state, reason = "FAILED", f"supervision failed: {type(error).__name__}: {error}"
        return self._end(state, reason, lost=lost)

    def _through(self, members: Mapping[str, Member], *, scratch: str, run_root: str) -> tuple[JobState, str]:
        handle, placement = self.handle, self.record.placement
        assert placement is not None
        where = f"on {', '.join(dict.fromkeys(placement.nodes))}"
        handle.move("ADMITTED", where)
        for node in placement.nodes:
            if node not in members:
                raise WorkerLost(f"node {node} left the cluster before the job started")
        self.gang = gang = Gang(
            self.job,
            placement,
            members,
            run_dir=handle.run_dir,
            name=group_name(self.store.id, self.record),
            lasting=self.record.lasting,
        )
        self._reserve(gang, where)
        gang.prepare(scratch=scratch, run_root=run_root)
        self._write("PLACED", where)
        handle.move("PLACED", where)
        self._write("RUNNING", where)
        gang.start()
        handle.move("RUNNING")
        self.running_s = time.monotonic()
        ended = self._follow(gang)
        gang.collect()
        return ended

    def _reserve(self, gang: Gang, where: str) -> None:
        """Wait for Ray to set the places aside: others may have to leave them first, or share the cluster."""
        handle, told = self.handle, False
        gang.reserve(existing=self.taken_over)
        while not gang.reserved():
            self._heed()
            if handle.cancelled:
                raise Cancelled(handle.cancelled)
            if self.record.state != "RUNNING":  # else it has ranks, which are to save what they have
                if handle.evicted:
                    raise Evicted(handle.evicted)
                if handle.displaced:
                    raise Displaced(handle.displaced)
            if gone := self._gone():
                raise WorkerLost(f"node {gone[0]} left the cluster before the job started")
            if not told:
                told = True
                self._write("ADMITTED", f"{where}, once Ray has set that aside")
                handle.move("ADMITTED", f"{where}, once Ray has set that aside")

    def _follow(self, gang: Gang) -> tuple[JobState, str]:
        """Watch a running gang until every rank has ended. The first failure, or a cancellation, ends the others."""
        handle, tick = self.handle, threading.Event()
        asked: Wish | None = None
        while len(ends := gang.poll()) < self.job.ranks:
            self._heed()
            self._note_saved()
            wish = self._wish(ends)
            if wish is not None and (asked is None or (asked.gently and not wish.gently)):
                asked = wish
                gang.stop(wish.reason, grace_s=wish.grace_s, gently=wish.gently)
            tick.wait(TICK_S)
        self._note_saved()
        if asked is not None and asked.reason == handle.cancelled:
            return judge(ends, cancelled=handle.cancelled)
        stopped = {end.stopped for end in ends} - {""}
        if stopped and culprit(ends) is None:
            if handle.evicted in stopped:
                raise Evicted(handle.evicted)
            if handle.displaced in stopped:
                raise Displaced(handle.displaced)
        # A reason that is not ours is the agent's, a time limit or a driver that fell silent; or an earlier driver's.
        imposed = next(iter(stopped - {asked.reason if asked else ""}), "")
        if self.taken_over and imposed and not imposed.startswith((LIMIT, LAPSED)):
            raise Displaced(imposed)
        return judge(ends, stopped=imposed)

    def _wish(self, ends: tuple[RankEnd, ...]) -> Wish | None:
        """What the ranks are to be asked, the hardest first; None when they may stay."""
        handle, first = self.handle, culprit(ends)
        if handle.cancelled:
            return Wish(handle.cancelled, GRACE_S)
        if first is not None:
            return Wish(f"rank {first.exit.rank} on {first.exit.node} failed first", GRACE_S)
        if handle.displaced and handle.urgent:
            return Wish(handle.displaced, SAVE_S)
        if leaves := handle.evicted or handle.displaced:
            return Wish(leaves, handle.job.grace_s, gently=True)
        return None

    def _saved_ns(self) -> int:
        """When the job last said that it has saved what it has."""
        try:
            return (self.handle.run_dir / SAVED).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _note_saved(self) -> None:
        """Write down that the job has saved what it has, for those who ask what stopping it would lose."""
        saved_ns, now_s = self._saved_ns(), time.monotonic()
        if saved_ns == self.saved_ns or now_s - self.noted_s < NOTED_S:
            return
        try:
            self.store.note_saved(self.record)
        except Unavailable as error:
            log.warning("a checkpoint is not written down", extra={"error": str(error)})
        self.saved_ns, self.noted_s = saved_ns, now_s

    def _give_way(self, reason: str) -> Outcome:
        """Let the job wait for its next attempt; its places are others' by now.

        Written down first: who is shot in between leaves a group that nobody is entitled to, and not a job that the
        next driver takes for one that has yet to run.
        """
        handle = self.handle
        if handle.cancelled:
            return self._end("CANCELLED", handle.cancelled, lost=False)
        try:
            self._insist(lambda: self.store.requeue(self.record, reason, counted=False))
        except LetGo:
            return "left"
        self._release()
        handle.move("PREEMPTED", reason)
        handle.move("PENDING", reason)
        return "again"

    def _end(self, state: JobState, reason: str, *, lost: bool) -> Outcome:
        """Write the end down and clear up after it, or let the job wait for its next attempt."""
        handle, record = self.handle, self.record
        try:
            if lost and not handle.cancelled and record.losses + 1 < handle.job.starts:
                self._release()
                self._insist(lambda: self.store.requeue(record, reason, counted=True))
                handle.move("PREEMPTED", reason)
                handle.move("PENDING", reason)
                return "again"
            seconds = time.monotonic() - self.running_s if self.running_s else 0.0
            ends: tuple[RankEnd, ...] = tuple(self.gang.ends.values()) if self.gang else ()
            result = result_of(handle.job, state, reason, ends=ends, seconds=seconds)
            # Before the places are given back: a successor must not find them gone and start the job once more.
            self._insist(lambda: self.store.advance(record, state, reason, result=result))
            self._release()
        except LetGo:
            return "left"
        handle.finish(result)
        return "ended"

    def _release(self) -> None:
        try:
            if self.gang is not None:
                self.gang.release()
        except Exception:
            log.exception("could not release the gang", extra={"job": self.handle.job.id})

    def _was_lost(self, reason: str) -> bool:
        """Whether it was not the job's own fault: a node or its agent went, or the driver fell silent."""
        return LAPSED in reason or bool(self._gone()) or (self.gang is not None and self.gang.lost)

    def _gone(self) -> list[str]:
        """The names of the attempt's nodes that Ray knows no more."""
        alive = {member.id for member in self.engine.members()}
        return [post.node for post in self.gang.posts if post.member.id not in alive] if self.gang else []

    def _heed(self) -> None:
        if self.record.lasting and self.leaving.is_set():
            raise LetGo

    def _write(self, state: JobState, reason: str) -> None:
        self._insist(lambda: self.store.advance(self.record, state, reason))

    def _insist(self, write: Callable[[], bool]) -> None:
        """Write until the database has it: what is not written down would be done twice, or be lost."""
        pause = threading.Event()
        while True:
            try:
                if write():
                    return
            except Unavailable as error:
                log.warning("the state of a job waits for the database", extra={"error": str(error)})
                self._heed()
                pause.wait(RETRY_S)
            else:
                self.handle.finish(result_of(self.handle.job, "FAILED", "another driver has taken the job over"))
                raise LetGo
