"""One attempt of a job, from its places to its end: the only thread that touches its gang.

Each step is written in the store before it is taken, and can be taken again: a driver that takes an attempt over goes
through the same steps and finds what its predecessor has done. A write that is refused means that another driver has
this attempt now; then nothing of it is touched any more.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from mainspring.cluster.agent import GRACE_S, LAPSED
from mainspring.cluster.engine import Engine, Member
from mainspring.cluster.gang import Gang
from mainspring.cluster.handle import Handle, result_of
from mainspring.cluster.reconcile import group_name
from mainspring.cluster.verdict import RankEnd, culprit, judge
from mainspring.spec import SAVED, Cancelled, JobRecord, JobState, MainspringError, Unavailable, WorkerLost
from mainspring.store import Store

Outcome = Literal["ended", "again", "left"]
TICK_S = 0.1
SAVE_S = 30.0  # how long ranks may take to save what they have when their node is taken away
PATIENCE_S = 900.0  # how long a drain waits for a job to save what it has
RETRY_S = 2.0

log = logging.getLogger(__name__)


class LetGo(Exception):
    """The attempt is, or will be, another driver's."""


class Displaced(Exception):
    """The attempt has left its nodes because it had to; the message says why."""


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
    asked_s: float = 0.0  # when it was first asked to leave, and what it had said of its saves by then
    saved: str = ""

    def run(self, members: Mapping[str, Member], *, scratch: str, run_root: str) -> Outcome:
        """Take it to its end, whatever happens. `again` if it waits for its next attempt."""
        lost = False
        try:
            state, reason = self._through(members, scratch=scratch, run_root=run_root)
            lost = self._was_lost(reason)
        except LetGo:
            return "left"
        except Cancelled as error:
            state, reason = "CANCELLED", str(error)
        except Displaced as error:
            state, reason, lost = "FAILED", str(error), True
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
            handle.job,
            placement,
            members,
            run_dir=handle.run_dir,
            name=group_name(self.store.id, self.record),
            lasting=self.record.lasting,
        )
        self._reserve(gang)
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

    def _reserve(self, gang: Gang) -> None:
        """Wait for Ray to set the places aside; others may share the cluster, so this can take a while."""
        gang.reserve(existing=self.taken_over)
        while not gang.reserved():
            self._heed()
            if self.handle.cancelled:
                raise Cancelled(self.handle.cancelled)
            if self.handle.displaced:
                raise Displaced(self.handle.displaced)
            if gone := self._gone():
                raise WorkerLost(f"node {gone[0]} left the cluster before the job started")

    def _follow(self, gang: Gang) -> tuple[JobState, str]:
        """Watch a running gang until every rank has ended. The first failure, or a cancellation, ends the others."""
        asked, handle, tick = "", self.handle, threading.Event()
        while len(ends := gang.poll()) < handle.job.ranks:
            self._heed()
            first = culprit(ends)
            if not asked and (handle.cancelled or (handle.displaced and self._may_leave())):
                asked = handle.cancelled or handle.displaced
                gang.stop(asked, grace_s=GRACE_S if handle.cancelled else SAVE_S)
            elif not asked and first is not None:
                asked = f"rank {first.exit.rank} on {first.exit.node} failed first"
                gang.stop(asked, grace_s=GRACE_S)
            tick.wait(TICK_S)
        if asked and asked == handle.displaced and culprit(ends) is None and any(end.stopped for end in ends):
            raise Displaced(handle.displaced)
        # A reason that is not ours is the agent's: a time limit, or a driver that fell silent.
        imposed = next((end.stopped for end in ends if end.stopped not in ("", asked)), "")
        return judge(ends, stopped=imposed, cancelled=handle.cancelled if asked == handle.cancelled else "")

    def _may_leave(self) -> bool:
        """Whether a job that has to leave may be stopped: it has saved something since, or never says when it does."""
        try:
            said = (self.handle.run_dir / SAVED).read_text("utf-8")
        except FileNotFoundError:
            return True
        if self.asked_s == 0.0:
            self.asked_s, self.saved = time.monotonic(), said
        return self.handle.urgent or said != self.saved or time.monotonic() - self.asked_s > PATIENCE_S

    def _end(self, state: JobState, reason: str, *, lost: bool) -> Outcome:
        """Write the end down and clear up after it, or let the job wait for its next attempt."""
        handle, record = self.handle, self.record
        try:
            if lost and not handle.cancelled and record.losses + 1 < handle.job.starts:
                self._release()
                self._insist(lambda: self.store.requeue(record, reason, counted=True))
                handle.displaced, handle.urgent = "", False
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
