"""How a gang ended, from how its ranks ended.

When one rank dies, its peers fail too, within milliseconds, because their connections to it break. The rank to
blame is therefore not simply the first to leave: a kill that nobody here sent outranks an exception, and an
exception about a lost peer yields to one about anything else. Among equals, the earliest counts.
"""

import re
from collections.abc import Sequence

from mainspring.spec import Cancelled, Failed, JobResult, JobState, RankExit, WorkerLost, spec

# What gloo, NCCL and sockets say when the other side is gone.
_PEER_GONE = re.compile(
    r"connection (was )?(closed|reset|refused)|reset by peer|broken pipe|remote process exited|DistBackendError"
    r"|DistNetworkError|NCCL|gloo",
    re.IGNORECASE,
)


@spec
class RankEnd:
    """How and when one rank ended; `stopped` says why it had been asked to, empty if it went by itself."""

    exit: RankExit
    at_s: float
    stopped: str = ""

    @property
    def failed(self) -> bool:
        """Whether this rank ended badly by itself."""
        return not self.stopped and (self.exit.code != 0)


def culprit(ends: Sequence[RankEnd]) -> RankEnd | None:
    """The rank whose failure ended the gang, or None when every rank succeeded or was stopped."""
    return min((end for end in ends if end.failed), key=_blame, default=None)


def judge(ends: Sequence[RankEnd], *, stopped: str = "", cancelled: str = "") -> tuple[JobState, str]:
    """State and reason of a gang whose ranks have all ended.

    `cancelled` is why somebody stopped the job, `stopped` any other cause from outside the ranks (a time limit).
    """
    if cancelled:
        return "CANCELLED", cancelled
    if stopped:
        return "FAILED", stopped
    end = culprit(ends)
    if end is None:
        return "SUCCEEDED", ""
    where = f"rank {end.exit.rank} on {end.exit.node}"
    if end.exit.code is None:
        return "FAILED", f"WorkerLost: {where} was {end.exit.reason}"
    return "FAILED", f"{where}: {end.exit.reason}"


def require_success(result: JobResult) -> JobResult:
    """Return `result` if the job succeeded, else raise `Cancelled`, `WorkerLost` or `Failed` with its reason."""
    if result.state == "SUCCEEDED":
        return result
    message = f"job {result.job_id} {result.state.lower()}: {result.reason}"
    if result.state == "CANCELLED":
        raise Cancelled(message)
    blamed = [end for end in result.exits if end.reason and end.reason in result.reason]
    tail = blamed[0].log_tail.strip() if blamed else ""
    kind = WorkerLost if result.reason.startswith("WorkerLost") else Failed
    raise kind(message, hint=f"the end of its log:\n{tail}" if tail else "its log is in the run's folder")


def _blame(end: RankEnd) -> tuple[int, float, int]:
    echo = _PEER_GONE.search(end.exit.reason) is not None
    return (0 if end.exit.code is None else 1 + echo), end.at_s, end.exit.rank
