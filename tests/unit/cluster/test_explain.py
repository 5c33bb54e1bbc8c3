"""Why somebody waits, and what would let him start; every answer is tried."""

import pytest

from mainspring.cluster.schedule.explain import explain
from mainspring.cluster.schedule.scene import open_scene, plan_in_scene
from mainspring.spec import Gang, Machine, NotFound, Queue, Quota, Request, Scene

MACHINES = tuple(
    Machine(name=f"n{n}", cpu_milli=64_000, memory_mib=1000, devices=8, model="H100", domain=(f"r{n // 2}",))
    for n in range(4)
)


def gang(name: str, ranks: int, **wishes) -> Gang:
    return Gang(id=name, queue=wishes.pop("queue", "a"), ranks=ranks, request=Request(devices=8), **wishes)


def scene(*gangs: Gang, **quota: float) -> Scene:
    queues = (Queue(name="a", quotas=(Quota(resource="devices", **quota),)), Queue(name="b"))
    return Scene(machines=MACHINES, queues=queues, levels=("rack",), gangs=gangs)


def asked(found: Scene, name: str):
    outcome = open_scene(found)
    return explain(outcome.state, name, outcome.decisions)


def test_a_running_gang_says_where_it_runs():
    why = asked(scene(gang("x", 2)), "x")
    assert (why.state, len(why.nodes)) == ("running", 2)


def test_a_gang_without_room_hears_whose_end_would_help_and_how_many_ranks_would_fit():
    why = asked(scene(gang("x", 2, preemptible=False), gang("y", 1, preemptible=False), gang("z", 3), min=32), "z")
    assert why.state == "waiting"
    assert "no room" in why.reason
    assert "the end of x" in why.unblocks
    assert "asking for 1 rank instead of 3" in why.unblocks


def test_a_gang_that_needs_two_others_to_end_hears_of_both_and_of_no_third():
    gangs = (gang("x", 1, preemptible=False), gang("y", 2, preemptible=False), gang("w", 1, preemptible=False))
    why = asked(scene(*gangs, gang("z", 3), min=32), "z")
    assert any(text.startswith("the end of") and "together" in text for text in why.unblocks)


def test_a_required_rack_is_named_as_what_is_in_the_way():
    fillers = [gang(f"f{n}", 1, nodes=(f"n{n}",), preemptible=False) for n in (0, 2)]
    why = asked(scene(*fillers, gang("z", 2, level="rack", binding="required"), min=32), "z")
    assert "preferring one rack instead of requiring it" in why.unblocks


def test_a_gang_over_the_limit_of_its_queue_hears_the_two_numbers():
    why = asked(scene(gang("x", 2), gang("y", 1), max=16.0), "y")
    assert why.reason == "queue 'a' may hold 16 devices and holds 16; this gang needs 8"
    assert "the end of x" in why.unblocks


def test_a_refused_gang_is_remembered_by_its_reason_and_an_unknown_one_is_not_found():
    found = scene(gang("x", 9))
    assert asked(found, "x").state == "refused"
    with pytest.raises(NotFound, match="no gang 'nobody'"):
        asked(found, "nobody")


def test_a_gather_is_planned_in_a_scene():
    found = scene(gang("x", 1), gang("y", 2, queue="b"), gang("big", 3), min=32)
    plan = plan_in_scene(found, "a", "big", hours=2)
    assert len(plan.nodes) == 3
    assert plan.victims
    with pytest.raises(NotFound, match="no gang 'small'"):
        plan_in_scene(found, "a", "small", hours=2)


def test_one_behind_others_hears_what_would_do_were_they_gone():
    running, first = gang("x", 4, preemptible=False), gang("first", 4, preemptible=False)
    why = asked(scene(running, first, gang("second", 1, preemptible=False), min=32), "second")
    assert why.unblocks[0] == "the end of x, and first gone from before it"
