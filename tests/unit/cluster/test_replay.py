"""Workloads in virtual time: nothing is lost, nobody ends twice, and lost work is done again."""

import pytest

from mainspring.cluster.schedule.state import build_state
from mainspring.cluster.simulate.replay import Arrival, replay
from mainspring.spec import Gang, Machine, Queue, Quota, Request, Rules

CORES = 4


def arrival(name: str, at_ms: int, work_ms: int, cores: int = 1, **wishes) -> Arrival:
    queue = wishes.pop("queue", "a")
    gang = Gang(id=name, queue=queue, request=Request(cpu_milli=1000 * cores), runtime_ms=work_ms, **wishes)
    return Arrival(at_ms=at_ms, gang=gang, work_ms=work_ms)


def state(*queues: Queue, **rules: int):
    machine = Machine(name="n", cpu_milli=1000 * CORES, memory_mib=1)
    return build_state([machine], queues or (Queue(name="a"),), rules=Rules(**rules))


def test_time_jumps_from_event_to_event_and_every_gang_ends_once():
    found = replay(state(), [arrival(f"g{i}", 10 * i, 100) for i in range(12)])
    assert all(life.ended_ms >= 0 for life in found.lives.values())
    assert found.makespan_ms == 330
    assert found.busy == 12 * 100 * 1000
    assert found.wait_ms() > 0
    assert found.wait_ms("g0") == 0


def test_a_small_gang_passes_a_large_one_when_it_is_done_in_time():
    arrivals = [
        arrival("first", 0, 100, 3),
        arrival("wide", 10, 50, 4),
        arrival("brief", 20, 30),
        arrival("long", 25, 500),
    ]
    lives = replay(state(), arrivals).lives
    assert lives["brief"].first_start_ms == 20
    assert lives["wide"].first_start_ms == 100
    assert lives["long"].first_start_ms >= 150


@pytest.mark.parametrize(("saved_every_ms", "ended_ms"), [(0, 250), (40, 170)])
def test_a_stopped_gang_does_again_what_it_had_not_saved(saved_every_ms, ended_ms):
    owner = Queue(name="owner", quotas=(Quota(resource="cpu", min=CORES),))
    shared = state(owner, Queue(name="a"), shield_ms=0)
    arrivals = [arrival("guest", 0, 100, CORES), arrival("own", 90, 60, CORES, queue="owner")]
    found = replay(shared, arrivals, saved_every_ms=saved_every_ms)
    assert found.lives["guest"].stops == 1
    assert found.lives["own"].ended_ms == 150
    assert found.lives["guest"].ended_ms == ended_ms


def test_a_gang_that_can_never_run_is_refused_and_the_others_go_on():
    found = replay(state(), [arrival("huge", 0, 10, 5), arrival("small", 0, 10)])
    assert [decision.gang for decision in found.refused] == ["huge"]
    assert found.lives["small"].ended_ms == 10
