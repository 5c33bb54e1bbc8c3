"""Placement: whole gangs, never more than there is, the same answer every time."""

import time
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mainspring.cluster.placement import Capacity, occupy, slots
from mainspring.cluster.queue import QueueState, admit
from mainspring.spec import Job, Placement, Resources


def place(job: Job, free: Sequence[Capacity]) -> Placement | None:
    """Where the job goes when it is alone and `free` is all there is."""
    return next(iter(admit(QueueState(total=tuple(free), free=tuple(free)), [job]).placed), None)


def gang(ranks: int, **need: float) -> Job:
    return Job(id="j", name="j", entry="m:f", ranks=ranks, resources=Resources(**need))


def nodes(*cpus: float) -> tuple[Capacity, ...]:
    return tuple(Capacity(node=f"n{i}", cpus=count) for i, count in enumerate(cpus))


capacities = st.lists(
    st.builds(
        Capacity,
        node=st.just(""),
        cpus=st.integers(0, 40).map(lambda tenths: tenths / 10),
        devices=st.integers(0, 8).map(float),
        memory_bytes=st.integers(0, 64).map(lambda mib: mib << 20),
    ),
    max_size=8,
).map(
    lambda found: tuple(
        Capacity(node=f"n{i}", cpus=c.cpus, devices=c.devices, memory_bytes=c.memory_bytes) for i, c in enumerate(found)
    )
)
jobs = st.builds(
    lambda ranks, tenths, devices, memory: gang(ranks, cpus=tenths / 10, devices=devices, memory_bytes=memory << 20),
    st.integers(1, 12),
    st.integers(1, 20),
    st.sampled_from((0, 0.5, 1, 2)),
    st.integers(0, 16),
)


@given(jobs, capacities)
def test_a_gang_gets_a_node_for_every_rank_exactly_when_there_is_room_for_all(job, free):
    placement = place(job, free)
    room = sum(slots(node, job.resources) for node in free)
    assert (placement is not None) == (room >= job.ranks)
    if placement is not None:
        assert len(placement.nodes) == job.ranks


@given(jobs, capacities)
def test_a_placement_never_takes_more_than_a_node_has(job, free):
    placement = place(job, free)
    if placement is not None:
        for node in occupy(free, placement, job.resources):
            assert node.cpus > -1e-9
            assert node.devices > -1e-9
            assert node.memory_bytes >= 0


@given(jobs, capacities)
def test_the_ranks_of_a_node_are_contiguous_and_the_order_of_nodes_does_not_matter(job, free):
    placement = place(job, free)
    assert placement == place(job, tuple(reversed(free)))
    if placement is not None:
        switches = sum(a != b for a, b in zip(placement.nodes, placement.nodes[1:], strict=False))
        assert switches == len(set(placement.nodes)) - 1


def test_a_small_gang_fills_the_fullest_node_and_leaves_the_large_one_whole():
    placement = place(gang(2), nodes(8, 2, 4))
    assert placement is not None
    assert placement.nodes == ("n1", "n1")


def test_a_gang_too_large_for_one_node_crosses_as_few_boundaries_as_possible():
    placement = place(gang(10), nodes(2, 8, 3))
    assert placement is not None
    assert placement.nodes == ("n0",) * 2 + ("n1",) * 8  # the rest goes where it fits tightest


def test_cpu_work_leaves_accelerator_nodes_to_those_who_need_them():
    free = (Capacity(node="a-gpu", cpus=4, devices=8), Capacity(node="b-cpu", cpus=64))
    plain, accelerated = place(gang(4), free), place(gang(4, devices=1), free)
    assert plain is not None
    assert accelerated is not None
    assert plain.nodes == ("b-cpu",) * 4
    assert accelerated.nodes == ("a-gpu",) * 4


def test_tenths_of_a_cpu_add_up():
    assert slots(Capacity(node="n", cpus=0.3), Resources(cpus=0.1)) == 3


def test_ten_times_the_nodes_take_about_ten_times_as_long_to_place():
    def seconds(count: int) -> float:
        free = nodes(*(float(i % 7) for i in range(count)))
        started_s = time.process_time()
        assert place(gang(2 * count), free) is not None
        return time.process_time() - started_s

    few, many = (min(seconds(count) for _ in range(3)) for count in (1_000, 10_000))
    assert many < 40 * few
