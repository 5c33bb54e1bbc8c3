"""Whom to blame when a whole gang falls over."""

import pytest

from mainspring.cluster.verdict import RankEnd, culprit, judge, require_success
from mainspring.spec import Cancelled, Failed, JobResult, RankExit, WorkerLost


def end(rank: int, reason: str = "", *, code: int | None = 0, at_s: float = 0.0, stopped: str = "") -> RankEnd:
    return RankEnd(exit=RankExit(rank=rank, node="n", code=code, reason=reason), at_s=at_s, stopped=stopped)


def test_a_rank_that_lost_its_peer_is_not_blamed_for_the_peers_bug():
    ends = [
        end(0, "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer", code=1, at_s=1.0),
        end(1, "ValueError: bad batch", code=1, at_s=1.2),
    ]
    assert judge(ends) == ("FAILED", "rank 1 on n: ValueError: bad batch")


def test_a_kill_from_outside_outranks_the_exceptions_it_causes():
    ends = [end(0, "ValueError: bad", code=1, at_s=1.0), end(2, "killed by SIGKILL", code=None, at_s=1.5)]
    assert judge(ends) == ("FAILED", "WorkerLost: rank 2 on n was killed by SIGKILL")


def test_the_earliest_of_two_bugs_is_the_cause():
    ends = [end(0, "KeyError: 1", code=1, at_s=2.0), end(1, "KeyError: 2", code=1, at_s=1.0)]
    blamed = culprit(ends)
    assert blamed is not None
    assert blamed.exit.rank == 1


def test_ranks_we_stopped_are_nobodys_fault():
    ends = [end(0), end(1, "killed by SIGKILL", code=None, stopped="cancelled")]
    assert culprit(ends) is None
    assert judge(ends, cancelled="cancelled") == ("CANCELLED", "cancelled")


def test_a_time_limit_outranks_the_errors_of_interrupted_ranks():
    ends = [end(0, "RuntimeError: interrupted", code=1), end(1, code=143, stopped="time limit")]
    assert judge(ends, stopped="time limit") == ("FAILED", "time limit")


@pytest.mark.parametrize(
    ("state", "reason", "kind"),
    [
        ("CANCELLED", "cancelled", Cancelled),
        ("FAILED", "WorkerLost: rank 0 on n was killed by SIGKILL", WorkerLost),
        ("FAILED", "rank 0 on n: ValueError: boom", Failed),
    ],
)
def test_a_result_is_raised_as_the_error_its_reader_can_act_on(state, reason, kind):
    exits = (RankExit(rank=0, node="n", code=1, reason="ValueError: boom", log_tail="the last words"),)
    result = JobResult(job_id="j", state=state, reason=reason, exits=exits, seconds=1.0)
    with pytest.raises(kind, match="job j") as caught:
        require_success(result)
    assert type(caught.value) is kind
    assert ("the last words" in caught.value.hint) == (kind is Failed)


def test_a_success_is_returned_as_it_is():
    result = JobResult(job_id="j", state="SUCCEEDED", reason="", exits=(), seconds=1.0)
    assert require_success(result) is result
