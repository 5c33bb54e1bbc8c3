import itertools

from hypothesis import given
from hypothesis import strategies as st

from mainspring.plan.layout import capacity, divisors, even_counts, fastest_counts, offers
from mainspring.spec import Health
from mainspring.testing.machines import build_cluster, build_device


@given(seconds=st.lists(st.floats(0.1, 10), min_size=1, max_size=4), total=st.integers(1, 9))
def test_uneven_shares_end_as_soon_as_the_best_of_all_shares(seconds: list[float], total: int) -> None:
    counts = fastest_counts(seconds, total)
    every = [c for c in itertools.product(range(1, total + 1), repeat=len(seconds)) if sum(c) == total]
    if counts is None:
        assert not every
        return
    assert sum(counts) == total
    best = min(max(n * s for n, s in zip(c, seconds, strict=True)) for c in every)
    assert max(n * s for n, s in zip(counts, seconds, strict=True)) <= best * (1 + 1e-9)


@given(seconds=st.lists(st.sampled_from([0.3, 1.0, 2.5]), min_size=1, max_size=200), total=st.integers(1, 5000))
def test_uneven_shares_lose_no_microbatch_and_starve_no_replica(seconds: list[float], total: int) -> None:
    counts = fastest_counts(seconds, total)
    assert (counts is None) == (total < len(seconds))
    if counts is not None:
        assert sum(counts) == total
        assert min(counts) >= 1


def test_a_device_three_times_as_fast_gets_three_times_the_work() -> None:
    assert fastest_counts([1.0, 3.0], 8) == (6, 2)


@given(st.integers(1, 10_000))
def test_divisors_are_exactly_those_that_divide(number: int) -> None:
    assert divisors(number) == tuple(d for d in range(1, number + 1) if number % d == 0)


def test_even_shares_need_a_multiple() -> None:
    assert even_counts(4, 12) == (3, 3, 3, 3)
    assert even_counts(4, 10) is None
    assert even_counts(4, 0) is None


def test_unhealthy_devices_are_never_offered() -> None:
    from dataclasses import replace

    cluster = build_cluster((build_device(), 2, 2))
    sick = Health(device="X1", state="unhealthy", reasons=("7 uncorrected memory errors",))
    well = Health(device="X1", state="degraded", reasons=("hot",))
    cluster = replace(cluster, nodes=(replace(cluster.nodes[0], health=(sick, well)), cluster.nodes[1]))
    assert capacity(cluster) == 3
    assert max(len(offer) for offer in offers(cluster, global_batch=12)) == 3


def test_ranks_on_a_host_share_its_memory_and_speed() -> None:
    cpu = build_device("host", vendor="cpu", memory_bytes=64 * 1024**3)
    cluster = build_cluster((cpu, 1, 2))
    assert capacity(cluster) == 16
    by_size = {(len(o), o[0].share): o for o in offers(cluster, global_batch=8)}
    assert by_size[2, 0.5] != by_size[2, 1.0]  # both on one node, or one on each
    assert {rank.node for rank in by_size[2, 0.5]} == {0}
    assert {rank.node for rank in by_size[2, 1.0]} == {0, 1}
    for offer in by_size.values():
        for node in {rank.node for rank in offer}:
            here = [rank for rank in offer if rank.node == node]
            assert sum(rank.share for rank in here) <= 1 + 1e-9
            assert sum(rank.memory_bytes for rank in here) <= 64 * 1024**3
