"""Admission: first in, first out, whole gangs, and a reason for everybody."""

from hypothesis import given
from hypothesis import strategies as st

from mainspring.cluster.placement import Capacity, occupy
from mainspring.cluster.queue import QueueState, admit, refusal
from mainspring.spec import Job, Resources


def job(name: str, ranks: int, queue: str = "default", cpus: float = 1.0) -> Job:
    return Job(id=name, name=name, entry="m:f", ranks=ranks, queue=queue, resources=Resources(cpus=cpus))


def idle(*cpus: float) -> QueueState:
    nodes = tuple(Capacity(node=f"n{i}", cpus=count) for i, count in enumerate(cpus))
    return QueueState(total=nodes, free=nodes)


clusters = st.lists(st.integers(0, 8), min_size=1, max_size=5).map(lambda cpus: idle(*map(float, cpus)))
lines = st.lists(st.tuples(st.integers(1, 12), st.sampled_from("ab")), max_size=12).map(
    lambda rows: [job(f"j{i}", ranks, queue) for i, (ranks, queue) in enumerate(rows)]
)


@given(clusters, lines)
def test_every_job_is_decided_once_and_those_that_do_not_start_are_told_why(state, pending):
    decision = admit(state, pending)
    held = decision.waiting + decision.refused
    assert sorted([p.job_id for p in decision.placed] + [h.job_id for h in held]) == sorted(j.id for j in pending)
    assert all(h.reason for h in held)


@given(clusters, lines)
def test_admitted_gangs_together_fit_into_what_is_free(state, pending):
    free = state.free
    for placement in admit(state, pending).placed:
        free = occupy(free, placement, Resources())
    assert all(node.cpus >= 0 for node in free)


@given(clusters, lines)
def test_nobody_is_overtaken_inside_a_queue(state, pending):
    decision = admit(state, pending)
    waiting = {h.job_id for h in decision.waiting}
    for queue in "ab":
        line = [j.id for j in pending if j.queue == queue and j.id not in {h.job_id for h in decision.refused}]
        blocked = [name in waiting for name in line]
        assert blocked == sorted(blocked)


@given(clusters, lines)
def test_when_everything_is_free_the_head_of_the_line_starts_so_nothing_starves(state, pending):
    decision = admit(state, pending)
    if len(pending) > len(decision.refused):
        assert decision.placed


def test_a_gang_larger_than_the_cluster_is_refused_with_both_numbers():
    decision = admit(idle(2, 2), [job("huge", 5), job("next", 1)])
    assert decision.refused[0].job_id == "huge"
    assert "5 ranks" in decision.refused[0].reason
    assert "room for 4" in decision.refused[0].reason
    assert [p.job_id for p in decision.placed] == ["next"]


def test_a_rank_too_large_for_any_node_is_refused_although_the_sum_would_do():
    assert "room for 0" in refusal(job("wide", 1, cpus=4), idle(3, 3).total)


def test_waiting_jobs_say_what_they_wait_for():
    state = QueueState(total=idle(4).total, free=idle(1).free)
    decision = admit(state, [job("big", 2), job("small", 1), job("other", 1, queue="serving")])
    assert decision.waiting[0].reason == "needs 2 ranks of 1 cpu at once, 1 would fit now"
    assert decision.waiting[1].reason == "behind job big in queue 'default'"
    assert [p.job_id for p in decision.placed] == ["other"]
