"""Admission: first in, first out, whole gangs, and a reason for everybody."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.cluster.placement import Capacity, occupy
from mainspring.cluster.queue import Decision, QueueState, Running, Stop, admit, refusal
from mainspring.spec import Job, NodeNote, Placement, Pool, Queue, Quota, Resources, Rules, Shape


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


def test_a_queue_keeps_to_its_quota_counting_what_runs_and_others_go_on():
    limits = (Queue(name="a", quotas=(Quota(resource="cpu", max=3),)), Queue(name="b"))
    nodes = idle(8).total
    running = (Running(job=job("r", 2, queue="a"), placement=Placement(job_id="r", nodes=("n0", "n0"))),)
    state = QueueState(total=nodes, free=idle(6).free, running=running, queues=limits)
    decision = admit(state, [job("x", 2, queue="a"), job("y", 2, queue="b"), job("z", 1, queue="none")])
    assert [placed.job_id for placed in decision.placed] == ["y"]
    assert decision.waiting[0].reason == "queue 'a' may hold 3 cpu and holds 2; this gang needs 2"
    assert decision.refused[0].reason == "no queue 'none'"


def test_one_and_a_half_devices_for_a_rank_are_refused():
    with pytest.raises(ValueError, match=r"a share of one device, or whole devices, not 1\.5 of them"):
        Resources(devices=1.5)


def test_two_halves_share_a_device_and_the_third_takes_another():
    node = Capacity(node="n0", cpus=8, devices=2)
    halves = [Job(id=name, name=name, entry="m:f", resources=Resources(devices=0.5)) for name in "abc"]
    decision = admit(QueueState(total=(node,), free=(node,)), halves)
    assert [placed.devices for placed in decision.placed] == [(1,), (1,), (2,)]
    running = tuple(Running(job=one, placement=at) for one, at in zip(halves, decision.placed, strict=True))
    left = replace(node, devices=0.5)
    again = admit(QueueState(total=(node,), free=(left,), running=running), [replace(halves[0], id="d")])
    assert again.placed[0].devices == (2,)


def test_closed_nodes_and_sick_devices_are_given_to_nobody():
    nodes = tuple(Capacity(node=name, cpus=4, devices=2) for name in ("n0", "n1"))
    notes = (NodeNote(cluster="c", node="n0", closed=True), NodeNote(cluster="c", node="n1", sick=(0,)))
    ask = Job(id="x", name="x", entry="m:f", ranks=2, resources=Resources(devices=1))
    decision = admit(QueueState(total=nodes, free=nodes, notes=notes), [ask, replace(ask, id="y", ranks=1)])
    assert decision.waiting[0].reason.endswith("1 would fit now")
    alone = admit(QueueState(total=nodes, free=nodes, notes=notes), [replace(ask, id="y", ranks=1)])
    assert alone.placed == (Placement(job_id="y", nodes=("n1",), devices=(2,)),)


def test_the_emptier_queue_comes_first():
    running = (Running(job=job("r", 2, queue="a"), placement=Placement(job_id="r", nodes=("n0", "n0"))),)
    state = QueueState(total=idle(4).total, free=idle(2).free, running=running)
    decision = admit(state, [job("x", 2, queue="a"), job("y", 2, queue="b")])
    assert [placed.job_id for placed in decision.placed] == ["y"]


NOW = Rules(shield_ms=1, restart_ms=1)


def runs(name: str, ranks: int, *, ran_ms: int = 60_000, **fields) -> Running:
    one = replace(job(name, ranks), **{"starts": 2, **fields})
    return Running(job=one, placement=Placement(job_id=name, nodes=("n0",) * ranks), ran_ms=ran_ms, saved_ms=1000)


def test_a_job_of_higher_priority_is_given_the_place_of_another_and_what_that_loses_is_told():
    state = QueueState(total=idle(4).total, free=idle(0).free, running=(runs("low", 4),), rules=NOW)
    decision = admit(state, [replace(job("high", 2), priority=1)])
    assert [placed.job_id for placed in decision.placed] == ["high"]
    assert decision.stopped == (Stop(job_id="low", reason="stops: makes room for high", lost_ms=1001),)


def test_what_may_not_be_started_again_and_what_has_only_just_started_is_not_stopped():
    high = [replace(job("high", 2), priority=1)]
    for left in (runs("low", 4, starts=1), runs("low", 4, ran_ms=0)):
        decision = admit(QueueState(total=idle(4).total, free=idle(0).free, running=(left,), rules=NOW), high)
        assert (decision.placed, decision.stopped) == ((), ())
        assert decision.waiting[0].job_id == "high"


def test_a_queue_gets_its_guarantee_back_from_one_that_has_borrowed_it():
    tree = tuple(Queue(name=name, quotas=(Quota(resource="cpu", min=2),)) for name in "ab")
    borrows = (runs("old", 2, ran_ms=9000, queue="a"), runs("new", 2, ran_ms=5000, queue="a"))
    state = QueueState(total=idle(4).total, free=idle(0).free, running=borrows, queues=tree, rules=NOW)
    decision = admit(state, [job("mine", 2, queue="b")])
    assert [placed.job_id for placed in decision.placed] == ["mine"]
    assert len(decision.stopped) == 1


def test_who_leaves_counts_as_gone_waits_in_line_and_nobody_else_is_stopped_for_what_he_leaves():
    first, other = replace(job("first", 2), priority=1), runs("other", 2)
    coming = Running(job=first, placement=Placement(job_id="first", nodes=("n0", "n0")))
    state = QueueState(
        total=idle(6).total,
        free=idle(0).free,  # as Ray has it: who leaves is there until he has left
        running=(coming, other),
        leaving=(runs("low", 4),),
        rules=NOW,
    )
    decision = admit(state, [state.leaving[0].job, replace(job("second", 2), priority=1)])
    assert [placed.job_id for placed in decision.placed] == ["second"]
    assert (decision.stopped, decision.waiting) == ((), ())


def test_what_needs_room_that_is_made_for_somebody_elses_job_waits_until_that_has_been_told():
    state = QueueState(total=idle(4).total, free=idle(0).free, running=(runs("low", 4),), rules=NOW)
    line = [replace(job("theirs", 2), priority=2), replace(job("ours", 2), priority=1)]
    both = admit(state, line)
    assert [placed.job_id for placed in both.placed] == ["theirs", "ours"]
    ours = admit(state, line, mine={"ours"})
    assert (ours.placed, ours.stopped) == ((), ())
    theirs = admit(state, line, mine={"theirs"})
    assert ([placed.job_id for placed in theirs.placed], len(theirs.stopped)) == (["theirs"], 1)


TREE = (
    Queue(name="org"),
    Queue(name="a", parent="org", quotas=(Quota(resource="cpu", min=4),)),
    Queue(name="b", parent="org", quotas=(Quota(resource="cpu", min=4),)),
)


def test_quotas_pooled_for_a_job_stop_whoever_is_in_its_way_and_hold_while_it_runs():
    held = (runs("x", 4, queue="a", ran_ms=9000), runs("y", 4, queue="b", ran_ms=5000))
    state = QueueState(total=idle(8).total, free=idle(0).free, running=held, queues=TREE, rules=NOW)
    big = job("big", 6, queue="a")
    assert admit(state, [big]).placed == ()
    pool = Pool(gang="big", queue="org", left_ms=60_000)
    decision = admit(replace(state, pools=(pool,)), [big])
    assert [placed.job_id for placed in decision.placed] == ["big"]
    assert {stop.job_id for stop in decision.stopped} == {"x", "y"}
    runs_now = Running(job=big, placement=decision.placed[0], ran_ms=60_000, saved_ms=60_000)
    after = replace(state, running=(runs_now,), leaving=held, pools=(pool,))
    back = [each.job for each in held]
    assert admit(after, back).stopped == ()
    after = replace(after, leaving=())
    (said, _) = admit(after, back).waiting
    assert said.reason == "needs 4 ranks of 1 cpu at once, 0 would fit now"
    # When the lease is over the job is one like others, and those within their shares have a right to its places.
    assert [stop.job_id for stop in admit(replace(after, pools=()), back).stopped] == []
    given_back = admit(replace(after, running=(), free=idle(8).free, pools=()), back)
    assert [placed.job_id for placed in given_back.placed] == ["x", "y"]


def test_a_pool_that_makes_no_room_yet_says_why_and_the_job_waits_on():
    held = (runs("x", 8, queue="b", starts=1),)
    pool = Pool(gang="big", queue="org", left_ms=60_000)
    state = QueueState(total=idle(8).total, free=idle(0).free, running=held, queues=TREE, pools=(pool,), rules=NOW)
    (said,) = admit(state, [job("big", 6, queue="a")]).waiting
    assert said.reason.startswith("gathering 'org' does not make room for 6 ranks of big")
    lost = admit(replace(state, pools=(replace(pool, queue="nobody"),)), [job("big", 6, queue="a")])
    assert lost.waiting[0].reason.startswith("no queue 'nobody'")


MENU = tuple(Shape(ranks=n, speed=speed, plan=f"dp{n}") for n, speed in ((1, 100), (2, 190), (4, 360)))


def elastic(name: str) -> Job:
    return replace(job(name, 1), menu=MENU, starts=5)


def in_shape(name: str, ranks: int, *, ran_ms: int = 60_000) -> Running:
    placement = Placement(job_id=name, nodes=("n0",) * ranks, plan=f"dp{ranks}")
    return Running(job=elastic(name), placement=placement, ran_ms=ran_ms, saved_ms=1000)


def test_who_has_a_menu_takes_what_is_free_and_gives_half_of_it_to_the_next_when_that_comes():
    alone = admit(QueueState(total=idle(4).total, free=idle(4).free, rules=NOW), [elastic("a")])
    assert [(each.job_id, each.plan, len(each.nodes)) for each in alone.placed] == [("a", "dp4", 4)]
    state = QueueState(total=idle(4).total, free=idle(0).free, running=(in_shape("a", 4),), rules=NOW)
    assert admit(state, []) == Decision()
    both = admit(state, [elastic("b")])
    (stop,) = both.stopped
    assert (stop.job_id, stop.reason.split(":")[0]) == ("a", "gives way at its checkpoint")
    assert [(each.job_id, each.plan) for each in both.placed] == [("b", "dp2")]
    # The one who shall give way is somebody else's: nothing is taken before he has been told.
    assert admit(state, [elastic("b")], mine={"b"}).placed == ()
    leaves = replace(state, running=(), leaving=state.running)
    told = admit(leaves, [elastic("a"), elastic("b")], mine={"b"})
    assert [(each.job_id, each.plan) for each in told.placed] == [("b", "dp2")]
    back = admit(replace(state, running=(in_shape("b", 2),), free=idle(2).free), [elastic("a")])
    assert ([(each.job_id, each.plan) for each in back.placed], back.stopped) == ([("a", "dp2")], ())


def test_who_has_a_menu_grows_when_another_has_ended_but_not_as_soon_as_it_has_started():
    state = QueueState(total=idle(4).total, free=idle(2).free, running=(in_shape("a", 2),), rules=NOW)
    (stop,) = admit(state, []).stopped
    assert stop.reason.startswith("grows at its checkpoint")
    assert admit(replace(state, rules=Rules(shield_ms=90_000)), []).stopped == ()
    others = admit(replace(state, running=(in_shape("a", 2), in_shape("b", 2)), free=idle(0).free), [])
    assert others.stopped == ()


def test_a_menu_of_which_nothing_fits_is_refused_and_one_of_which_something_does_is_not():
    assert refusal(elastic("a"), idle(1).total) == ""
    vast = replace(elastic("a"), menu=tuple(replace(shape, ranks=shape.ranks + 8) for shape in MENU))
    assert "needs 9 ranks" in refusal(vast, idle(1).total)
    with pytest.raises(ValueError, match="two shapes of a menu have one name"):
        replace(elastic("a"), menu=(*MENU, MENU[0]))


def test_what_somebody_has_just_left_is_free_although_it_is_still_counted():
    gone = in_shape("a", 4)
    state = QueueState(total=idle(4).total, free=idle(1).free, left=(gone,), rules=NOW)
    assert [each.plan for each in admit(state, [elastic("a")]).placed] == ["dp4"]


def test_a_job_whose_node_is_gone_holds_nothing_and_is_nobodys_victim():
    gone = replace(runs("gone", 2), placement=Placement(job_id="gone", nodes=("n7", "n7")))
    state = QueueState(total=idle(4).total, free=idle(0).free, running=(gone, runs("low", 4)), rules=NOW)
    decision = admit(state, [replace(job("high", 2), priority=1)])
    assert [stop.job_id for stop in decision.stopped] == ["low"]


@st.composite
def crowds(draw: st.DrawFn) -> tuple[QueueState, list[Job]]:
    """Two nodes, one of which may have gone, with jobs that run, leave and wait, some of them elastic."""
    nodes = tuple(Capacity(node=f"n{i}", cpus=4) for i in range(draw(st.integers(1, 2))))
    free = {"n0": 4, "n1": 4}
    held: list[Running] = []
    for number in range(draw(st.integers(0, 5))):
        ranks, node = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from(["n0", "n1"]))
        if free[node] >= ranks:
            free[node] -= ranks
            menu = MENU if draw(st.booleans()) else ()
            wants = {"queue": draw(st.sampled_from("ab")), "priority": draw(st.integers(0, 2)), "menu": menu}
            one = replace(job(f"r{number}", ranks), starts=draw(st.integers(1, 2)), **wants)
            placed = Placement(job_id=one.id, nodes=(node,) * ranks, plan=f"dp{ranks}" if menu else "")
            held.append(Running(job=one, placement=placed, ran_ms=draw(st.integers(0, 9))))
    leaving = tuple(each for each in held if each.job.starts > 1 and draw(st.booleans()))
    line = [
        replace(job(f"w{n}", draw(st.integers(1, 5)), draw(st.sampled_from("ab"))), priority=draw(st.integers(0, 2)))
        for n in range(draw(st.integers(0, 4)))
    ]
    line += [elastic(f"e{n}") for n in range(draw(st.integers(0, 2)))]
    pool = (Pool(gang=line[0].id, queue=line[0].queue, left_ms=9),) if line and draw(st.booleans()) else ()
    state = QueueState(
        total=nodes,
        free=tuple(replace(node, cpus=free[node.node]) for node in nodes),
        running=tuple(each for each in held if each not in leaving),
        leaving=leaving,
        pools=pool,
        rules=Rules(shield_ms=draw(st.integers(1, 9)), restart_ms=1),
    )
    return state, [*(each.job for each in leaving), *line]


@settings(max_examples=300)
@given(crowds(), st.booleans())
def test_whoever_runs_leaves_and_waits_places_fit_when_those_have_left_who_are_told_to(crowd, ours):
    state, line = crowd
    waits = [each.id for each in line if each.id not in {other.job.id for other in state.leaving}]
    mine = (
        {name for name in waits if name.endswith(("0", "2"))} if ours else set(waits) | {"r0", "r1", "r2", "r3", "r4"}
    )
    decision = admit(state, line, mine=mine)
    said = [each.job_id for each in (*decision.placed, *decision.waiting, *decision.refused)]
    assert sorted(said) == sorted(waits)
    assert {each.job_id for each in decision.placed} <= mine
    running = {each.job.id: each for each in state.running}
    stopped = [running[each.job_id] for each in decision.stopped]
    assert all(each.job.starts > 1 for each in stopped)
    assert state.pools or all(each.ran_ms >= state.rules.shield_ms for each in stopped)
    for node in state.total:
        stays = [each for each in state.running if each not in stopped]
        taken = sum(each.placement.nodes.count(node.node) for each in stays)
        assert taken + sum(each.nodes.count(node.node) for each in decision.placed) <= node.cpus


@pytest.mark.parametrize("entry", ["", "score", "sweep:", ":score", "my-sweep:score", "sweep:score()"])
def test_what_runs_is_a_function_of_a_module(entry):
    with pytest.raises(ValueError, match="what runs is MODULE:FUNCTION"):
        Job(id="j", name="j", entry=entry)
