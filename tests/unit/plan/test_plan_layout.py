"""How ranks come to lie on nodes and batches become shares."""

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.plan.layout import even_count, fastest_counts
from mainspring.plan.limits import EXECUTABLE
from mainspring.plan.network import ring_of
from mainspring.plan.offers import Offer, Seat, kinds, seats
from mainspring.plan.space import Space, aligned, divisors
from mainspring.spec import AXES, Health, Hints, Link, Mesh, TrainConfig
from mainspring.testing.machines import build_cluster, build_device, build_model

OUTER = Link(name="outer", bytes_per_s=1e9, latency_s=1e-5)


def spread(groups: list[tuple[float, int]], shares: tuple[tuple[int, int], ...]) -> list[tuple[int, float]]:
    """`(micro-batches, seconds of one)` of every replica."""
    return [
        (count + (index < extra), seconds)
        for (seconds, size), (count, extra) in zip(groups, shares, strict=True)
        for index in range(size)
    ]


@settings(deadline=None)
@given(
    groups=st.lists(st.tuples(st.floats(0.1, 10), st.integers(1, 2)), min_size=1, max_size=3),
    total=st.integers(1, 8),
)
def test_uneven_shares_end_as_soon_as_the_best_of_all_shares(groups: list[tuple[float, int]], total: int) -> None:
    shares = fastest_counts(groups, total)
    seconds = [each for each, size in groups for _ in range(size)]
    every = [c for c in itertools.product(range(1, total + 1), repeat=len(seconds)) if sum(c) == total]
    if shares is None:
        assert not every
        return
    best = min(max(n * s for n, s in zip(c, seconds, strict=True)) for c in every)
    assert max(n * s for n, s in spread(groups, shares)) <= best * (1 + 1e-9)


@settings(deadline=None)
@given(
    groups=st.lists(st.tuples(st.floats(0.01, 100), st.integers(1, 300)), min_size=1, max_size=4),
    total=st.integers(1, 50_000),
)
def test_uneven_shares_lose_no_microbatch_and_starve_no_replica(groups: list[tuple[float, int]], total: int) -> None:
    shares = fastest_counts(groups, total)
    assert (shares is None) == (total < sum(size for _, size in groups))
    if shares is not None:
        counts = [count for count, _ in spread(groups, shares)]
        assert sum(counts) == total
        assert min(counts) >= 1


def test_a_device_three_times_as_fast_gets_three_times_the_work() -> None:
    assert fastest_counts([(1.0, 1), (3.0, 1)], 8) == ((6, 0), (2, 0))


@settings(deadline=None)
@given(st.integers(1, 10_000))
def test_divisors_are_exactly_those_that_divide(number: int) -> None:
    assert divisors(number) == tuple(d for d in range(1, number + 1) if number % d == 0)


def test_even_shares_need_a_multiple() -> None:
    assert even_count(4, 12) == 3
    assert even_count(4, 10) is None
    assert even_count(4, 0) is None


def test_unhealthy_devices_are_never_offered() -> None:
    cluster = build_cluster((build_device(), 2, 2))
    sick = Health(device="X1", state="unhealthy", reasons=("7 uncorrected memory errors",))
    well = Health(device="X1", state="degraded", reasons=("hot",))
    cluster = replace(cluster, nodes=(replace(cluster.nodes[0], health=(sick, well)), cluster.nodes[1]))
    (kind,) = kinds(cluster)
    assert kind.nodes == ((1, 2), (0, 1))
    assert (kind.room, kind.capacity(1), kind.capacity(2)) == (3, 2, 2)


def test_ranks_on_a_host_share_its_memory_and_speed() -> None:
    cpu = build_device("host", vendor="cpu", memory_bytes=64 * 1024**3)
    (kind,) = kinds(build_cluster((cpu, 1, 2)))
    assert kind.room == 16
    ways = seats(kind, 2, outer=OUTER, step=1)
    assert [seat.per_node for seat in ways] == [2, 1]  # both on one node, or one on each
    assert [list(seat.nodes(0, 2)) for seat in ways] == [[0, 0], [0, 1]]
    for seat in ways:
        rank = kind.rank(seat.per_node)
        assert rank.share * seat.per_node == 1
        assert rank.memory_bytes * seat.per_node <= 64 * 1024**3


def test_neighbours_with_a_fast_link_sit_densely() -> None:
    (kind,) = kinds(build_cluster((build_device(), 8, 4)))
    assert [seat.per_node for seat in seats(kind, 16, outer=OUTER, step=4)] == [8]


def test_replicas_and_stages_on_two_kinds_lie_on_their_own_nodes() -> None:
    cluster = build_cluster((build_device("a", bf16_flops_per_s=2e14), 4, 2), (build_device("b"), 4, 2))
    fast, slow = (Seat(kind, 4) for kind in kinds(cluster))
    by_replica = Offer(seats=(fast, slow), replicas=(2, 2))
    assert by_replica.nodes(pp=2, inner=2) == [0, 0, 0, 0, 2, 2, 2, 2, 1, 1, 1, 1, 3, 3, 3, 3]
    by_stage = Offer(seats=(fast, slow), replicas=(4,), stages=(1, 1))
    assert by_stage.nodes(pp=2, inner=2) == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert [rank.device.name for rank in by_stage.layout(cluster, 2).columns[0].ranks] == ["a", "b"]


@settings(deadline=None)
@given(
    degrees=st.tuples(*[st.sampled_from([1, 2, 3, 4])] * 6),
    per_node=st.sampled_from([1, 2, 4, 6, 8]),
    axes=st.sets(st.sampled_from(AXES), min_size=1),
)
def test_the_place_of_a_group_is_that_of_its_ranks(degrees: tuple[int, ...], per_node: int, axes: set[str]) -> None:
    from mainspring.plan.network import Fabric

    mesh = Mesh(**dict(zip(AXES, degrees, strict=True)))
    if not aligned(mesh, per_node):
        return
    inner = Link(name="inner", bytes_per_s=1e11, latency_s=1e-6)
    ring = ring_of(Fabric(per_node=per_node, inner=inner, outer=OUTER), mesh, tuple(axes))
    nodes: dict[int, int] = {}
    for place in itertools.product(*(range(d) if a in axes else (0,) for a, d in zip(AXES, degrees, strict=True))):
        rank = 0
        for at, degree in zip(place, degrees, strict=True):
            rank = rank * degree + at
        nodes[rank // per_node] = nodes.get(rank // per_node, 0) + 1
    assert (ring.ranks, ring.nodes, ring.per_node) == (sum(nodes.values()), len(nodes), max(nodes.values()))


def test_a_space_offers_no_more_ranks_than_there_are() -> None:
    cluster = build_cluster((build_device(), 4, 2))
    config = TrainConfig(steps=1, global_batch=16, seq_len=128)
    space = Space(build_model(), cluster, config, hints=Hints(), limits=EXECUTABLE, ranks=None)
    assert space.capacity() == 8
