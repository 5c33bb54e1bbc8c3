"""A submitted job as its submitter holds it: where it is, how it ended, what it wrote, and how to stop it."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from mainspring.cluster.agent import tail_of
from mainspring.cluster.verdict import RankEnd
from mainspring.spec import TERMINAL, Job, JobResult, JobState, SpecError, Unavailable

OnState = Callable[[JobState, str], None]
LOG_BYTES = 4 << 20

log = logging.getLogger(__name__)


class Handle:
    """A submitted job: wait for it, cancel it, read its logs. Safe to use from any thread."""

    def __init__(self, job: Job, run_dir: Path, on_state: OnState | None = None, *, lasting: bool = False) -> None:
        self.job = job
        self.run_dir = run_dir
        self.lasting = lasting
        self._on_state = on_state
        self._state: JobState = "PENDING"
        self._reason = ""
        self._result: JobResult | None = None
        self._done = threading.Event()
        self._cancelled = ""
        self.evicted = ""
        """Why it has to leave its places to others; empty when it need not."""
        self.displaced = ""
        """Why it has to leave its nodes; empty when it need not."""
        self.urgent = False
        """Whether it has to leave them at once, and not when it has saved what it has."""

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
        most = max(self.job.ranks, *(shape.ranks for shape in self.job.menu), 1)
        if not 0 <= rank < most:
            raise SpecError(f"job {self.job.id} has ranks 0 to {most - 1}, not {rank}")
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

    def finish(self, result: JobResult) -> None:
        """Record the end and let every waiter go."""
        assert result.state in TERMINAL, result.state
        self._result = result
        self.move(result.state, result.reason)
        self._done.set()


def result_of(
    job: Job, state: JobState, reason: str, *, ends: tuple[RankEnd, ...] = (), seconds: float = 0.0
) -> JobResult:
    """How `job` ended, in order of ranks."""
    exits = tuple(end.exit for end in sorted(ends, key=lambda end: end.exit.rank))
    return JobResult(job_id=job.id, state=state, reason=reason, exits=exits, seconds=seconds)
