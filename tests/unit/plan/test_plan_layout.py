"""How ranks become groups and batches become shares."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mainspring.plan.layout import capacity, divisors, even_count, fastest_counts, offers
from mainspring.spec import Health
from mainspring.testing.machines import build_cluster, build_device


def spread(groups: list[tuple[float, int]], shares: tuple[tuple[int, int], ...]) -> list[tuple[int, float]]:
    """`(micro-batches, seconds of one)` of every replica."""
    return [
        (count + (index < extra), seconds)
        for (seconds, size), (count, extra) in zip(groups, shares, strict=True)
        for index in range(size)
    ]


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


@given(st.integers(1, 10_000))
def test_divisors_are_exactly_those_that_divide(number: int) -> None:
    assert divisors(number) == tuple(d for d in range(1, number + 1) if number % d == 0)


def test_even_shares_need_a_multiple() -> None:
    assert even_count(4, 12) == 3
    assert even_count(4, 10) is None
    assert even_count(4, 0) is None


def test_unhealthy_devices_are_never_offered() -> None:
    from dataclasses import replace

    cluster = build_cluster((build_device(), 2, 2))
    sick = Health(device="X1", state="unhealthy", reasons=("7 uncorrected memory errors",))
    well = Health(device="X1", state="degraded", reasons=("hot",))
    cluster = replace(cluster, nodes=(replace(cluster.nodes[0], health=(sick, well)), cluster.nodes[1]))
    assert capacity(cluster) == 3
    assert max(len(offer.ranks) for offer in offers(cluster, global_batch=12)) == 3


def test_ranks_on_a_host_share_its_memory_and_speed() -> None:
    cpu = build_device("host", vendor="cpu", memory_bytes=64 * 1024**3)
    cluster = build_cluster((cpu, 1, 2))
    assert capacity(cluster) == 16
    by_size = {(len(o.ranks), o.ranks[0].share): o.ranks for o in offers(cluster, global_batch=8)}
    assert by_size[2, 0.5] != by_size[2, 1.0]  # both on one node, or one on each
    assert {rank.node for rank in by_size[2, 0.5]} == {0}
    assert {rank.node for rank in by_size[2, 1.0]} == {0, 1}
    for offer in by_size.values():
        for node in {rank.node for rank in offer}:
            here = [rank for rank in offer if rank.node == node]
            assert sum(rank.share for rank in here) <= 1 + 1e-9
            assert sum(rank.memory_bytes for rank in here) <= 64 * 1024**3
