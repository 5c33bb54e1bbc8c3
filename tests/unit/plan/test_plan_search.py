"""The search: against brute force, monotone in what it is given, and honest about what does not fit."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.plan.blocks import Cut
from mainspring.plan.bounds import Bounds
from mainspring.plan.estimate import Estimator
from mainspring.plan.limits import EVERYTHING, Limits, beyond, plan_refusal
from mainspring.plan.offers import kinds, single
from mainspring.plan.search import menu, plan_training, search
from mainspring.plan.space import Space
from mainspring.spec import (
    DoesNotFit,
    Health,
    Hints,
    Link,
    Mesh,
    Operation,
    OperationCost,
    SpecError,
    TrainConfig,
    Unavailable,
)
from mainspring.testing.exhaustive import fastest_by_brute_force
from mainspring.testing.machines import GIB, build_cluster, build_device, build_model, freeze

SMALL = build_model(layers=4, hidden=256)
MEDIUM = build_model(layers=12, hidden=1024)  # 0.2 billion parameters
LARGE = build_model(layers=24, hidden=2048, vocab=32000)  # 1.7 billion parameters
CONFIG = TrainConfig(steps=10, global_batch=16, seq_len=128)
DEVICE = build_device()
DATA_ONLY = replace(EVERYTHING, axes=frozenset({"dp", "fsdp"}))


def batch(size: int, **changes: object) -> TrainConfig:
    return replace(CONFIG, global_batch=size, **changes)


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(1, 3),
    hidden=st.sampled_from([128, 512, 2048]),
    size=st.sampled_from([1, 2, 6, 8]),
    shape=st.sampled_from([(1, 1), (2, 1), (1, 3), (4, 1), (2, 2), (1, 4)]),
    memory_gib=st.floats(0.3, 20),
    network=st.floats(0.1, 50),
    precision=st.sampled_from(["fp32", "bf16"]),
    seq_len=st.sampled_from([128, 1024]),
    frozen=st.sampled_from([(0, 0, 0), (0, 0, 0), (0.9, 0.9, 0.9), (1, 0.5, 0), (0, 1, 0)]),
)
def test_the_search_finds_what_brute_force_finds(
    layers: int,
    hidden: int,
    size: int,
    shape: tuple[int, int],
    memory_gib: float,
    network: float,
    precision: str,
    seq_len: int,
    frozen: tuple[float, ...],
) -> None:
    model = freeze(build_model(layers=layers, hidden=hidden), *frozen)
    device = build_device(memory_bytes=int(memory_gib * GIB))
    cluster = build_cluster((device, *shape), network_gbps=network)
    config = batch(size, precision=precision, seq_len=seq_len)
    best = fastest_by_brute_force(model, cluster, config)
    try:
        plan = plan_training(model, cluster, config, hints=Hints(copies=1))  # which are chosen after all else
    except DoesNotFit:
        assert best == float("inf")
    else:
        assert plan.time.step_s == pytest.approx(best, rel=1e-9)
        assert plan.memory.total_bytes <= 0.9 * device.memory_bytes
        assert sum(plan.microbatches) * plan.microbatch == size
        assert plan.mesh.world == len({rank for stage in plan.stages for rank in stage.ranks}) == len(plan.nodes)


@pytest.mark.parametrize(("pp", "size", "nodes"), [(2, 8, 1), (3, 6, 1), (4, 8, 2)])
def test_of_twelve_blocks_every_cut_is_considered(pp: int, size: int, nodes: int) -> None:
    """Ten layers, the embedding and the head: every schedule, cut and ZeRO stage on eight and sixteen devices."""
    model = build_model(layers=10, hidden=512)
    cluster = build_cluster((build_device(memory_bytes=2 * GIB), 8, nodes), network_gbps=5)
    config = batch(size, microbatch=1, seq_len=256)
    hints = Hints(pp=pp, tp=1, cp=1, copies=1, recompute="none")
    best = fastest_by_brute_force(model, cluster, config, hints=hints)
    assert plan_training(model, cluster, config, hints=hints).time.step_s == pytest.approx(best, rel=1e-9)


@settings(max_examples=12, deadline=None)
@given(
    devices=st.integers(2, 7),
    slow=st.integers(1, 3),
    units=st.integers(2, 6),
    experts=st.sampled_from([0, 4]),
    size=st.sampled_from([4, 6]),
    memory_gib=st.floats(0.1, 4),
    network=st.floats(0.1, 50),
)
def test_on_two_kinds_of_device_the_search_finds_what_brute_force_finds(
    devices: int, slow: int, units: int, experts: int, size: int, memory_gib: float, network: float
) -> None:
    """A slice of what `benchmarks/plan_brute_force.py` goes through."""
    model = build_model(layers=max(1, units - 2), hidden=512, experts=experts)
    fast = build_device("fast", memory_bytes=int(memory_gib * GIB))
    old = build_device("old", memory_bytes=int(memory_gib * GIB / 2), fp32_flops_per_s=7e12)
    cluster = build_cluster((fast, 1, devices - 1), (old, 1, slow), network_gbps=network)
    space = Space(model, cluster, batch(size, seq_len=1024), hints=Hints(), limits=EVERYTHING, ranks=None)
    best = search(space, "time").best
    expected = fastest_by_brute_force(model, cluster, space.config)
    assert (best.time.step_s if best else float("inf")) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("experts", [0, 4])
def test_brute_force_passes_over_nothing_that_matters(experts: int) -> None:
    model = build_model(layers=2, hidden=512, experts=experts)
    cluster = build_cluster((build_device(memory_bytes=GIB // 2), 2, 1), (build_device("old"), 1, 1))
    config = batch(4, seq_len=1024)
    every = fastest_by_brute_force(model, cluster, config, everything=True)
    assert fastest_by_brute_force(model, cluster, config) == every < float("inf")


@settings(max_examples=30, deadline=None)
@given(
    tp=st.sampled_from([1, 2, 4]),
    ep=st.sampled_from([1, 2, 4]),
    hidden=st.sampled_from([256, 4096]),
    rows=st.sampled_from([1, 2, 3, 8, 64]),
    more=st.integers(2, 9),
    network=st.floats(0.1, 50),
)
def test_a_row_is_cheapest_in_the_largest_micro_batch(
    tp: int, ep: int, hidden: int, rows: int, more: int, network: float
) -> None:
    """By which the search looks at the largest alone to know what a place could cost at the least."""
    bounds = Bounds(Estimator(build_model(layers=4, hidden=hidden, experts=4), global_batch=576))
    cluster = build_cluster((DEVICE, 4, 4), network_gbps=network)
    offer = next(single(cluster, kinds(cluster)[0], pp=1, replicas=4, inner=tp, step=tp))
    cuts = [
        Cut(rows=count, seq_len=128, precision="bf16", recompute="none", tp=tp, ep=ep) for count in (rows, rows * more)
    ]
    few, many = (bounds.floor_s(cut, offer.layout(cluster, 1)) for cut in cuts)
    assert many <= few * (1 + 1e-9)


@settings(max_examples=12, deadline=None)
@given(
    better=st.sampled_from(["memory", "link", "network", "memory speed", "peak", "devices", "nodes"]),
    factor=st.floats(1, 8),
    per_node=st.integers(1, 4),
    nodes=st.integers(1, 3),
    size=st.sampled_from([8, 12, 30]),
    hidden=st.sampled_from([256, 1024]),
)
def test_better_hardware_never_gets_a_slower_plan(
    better: str, factor: float, per_node: int, nodes: int, size: int, hidden: int
) -> None:
    model = build_model(layers=6, hidden=hidden)

    def step_s(scale: dict[str, float], extra_devices: int, extra_nodes: int) -> float:
        device = build_device(
            memory_bytes=int(8 * GIB * scale.get("memory", 1)),
            memory_bytes_per_s=1e12 * scale.get("memory speed", 1),
            fp32_flops_per_s=2e13 * scale.get("peak", 1),
        )
        cluster = build_cluster(
            (device, per_node + extra_devices, nodes + extra_nodes),
            link_gbps=50 * scale.get("link", 1),
            network_gbps=2 * scale.get("network", 1),
        )
        return plan_training(model, cluster, batch(size)).time.step_s

    more = step_s({better: factor}, int(factor) * (better == "devices"), int(factor) * (better == "nodes"))
    assert more <= step_s({}, 0, 0) * (1 + 1e-12)


@settings(max_examples=20, deadline=None)
@given(fast=st.integers(1, 4), slow=st.integers(1, 4), added=st.integers(1, 3), size=st.sampled_from([12, 32]))
def test_adding_slow_devices_to_fast_ones_is_never_slower(fast: int, slow: int, added: int, size: int) -> None:
    old = build_device("old", fp32_flops_per_s=5e12, bf16_flops_per_s=2e13)
    few = plan_training(SMALL, build_cluster((DEVICE, 1, fast), (old, 1, slow)), batch(size))
    many = plan_training(SMALL, build_cluster((DEVICE, 1, fast), (old, 1, slow + added)), batch(size))
    assert many.time.step_s <= few.time.step_s * (1 + 1e-12)


def test_the_same_question_gets_the_same_answer() -> None:
    cluster = build_cluster((DEVICE, 4, 2))
    assert plan_training(LARGE, cluster, CONFIG) == plan_training(LARGE, cluster, CONFIG)


def test_mixed_devices_share_the_batch_by_speed() -> None:
    slow = build_device("old", fp32_flops_per_s=5e12, bf16_flops_per_s=2e13, memory_bytes_per_s=2.5e11)
    cluster = build_cluster((DEVICE, 1, 1), (slow, 1, 1))
    plan = plan_training(MEDIUM, cluster, batch(64, microbatch=1), ranks=2, limits=DATA_ONLY)
    first, second = plan.stages[0].microbatches
    assert first + second == 64
    assert 2.9 < first / second < 4.5  # a quarter of the speed, and the same time to launch kernels
    assert plan.stages[0].device == "X1 + old"
    assert plan.zero < 3  # uneven micro-batches that re-gather never end
    assert plan.time.bubble_s < 0.1 * plan.time.compute_s


@pytest.mark.parametrize("limits", [EVERYTHING, DATA_ONLY])
def test_every_plan_that_is_found_may_run(limits: Limits) -> None:
    slow = build_device("old", fp32_flops_per_s=5e12)
    cluster = build_cluster((DEVICE, 2, 2), (slow, 2, 2))
    for config in (batch(12), batch(16, precision="bf16"), batch(30, microbatch=1)):
        for plan in menu(SMALL, cluster, config, limits=limits):
            assert plan_refusal(plan) == ""
            assert not beyond(plan, limits)


def test_a_model_too_large_to_replicate_is_sharded() -> None:
    plan = plan_training(LARGE, build_cluster((DEVICE, 8, 1)), batch(8), limits=DATA_ONLY)
    assert plan.mesh.fsdp > 1
    assert any("usable" in other.reason for other in plan.rejected)
    assert plan.mesh not in {other.mesh for other in plan.rejected}


def test_sharding_stays_within_nodes_when_the_network_is_slow() -> None:
    cluster = build_cluster((build_device(memory_bytes=7 * GIB), 8, 4), link_gbps=300, network_gbps=0.5)
    plan = plan_training(LARGE, cluster, batch(256), ranks=32, limits=DATA_ONLY)
    assert plan.mesh == Mesh(dp=4, fsdp=8)


def test_two_ranks_on_one_host_are_planned_when_asked_for() -> None:
    host = build_device("host", vendor="cpu", fp32_flops_per_s=3e11, bf16_flops_per_s=3e11, memory_bytes_per_s=2e10)
    cluster = build_cluster((host, 1, 1), link_gbps=2)
    assert plan_training(SMALL, cluster, CONFIG).mesh.world == 1  # two ranks add traffic and no cores
    plan = plan_training(SMALL, cluster, CONFIG, ranks=2)
    assert plan.mesh.world == 2
    assert plan.watts == host.power_watts
    assert plan.device_memory_bytes == host.memory_bytes // 2


def test_on_hosts_replicas_win_by_what_gloos_operations_cost() -> None:
    """Where a gather and a scatter take as long as a sum, ZeRO-1 is the better plan: it updates half as much."""
    free = {"message_s": 1e-9, "unit_s": 1e-9, "handover_s": 1e-9}
    host = build_device("host", vendor="cpu", fp32_flops_per_s=3e11, memory_bytes_per_s=2e10, **free)
    hosts = build_cluster((host, 1, 1), link_gbps=2)
    rates: dict[Operation, float] = {"all_reduce": 5e9, "all_gather": 2.3e9, "reduce_scatter": 1.6e9}
    costs = tuple(OperationCost(operation=each, bytes_per_s=rate, latency_s=1e-4) for each, rate in rates.items())
    measured = replace(hosts, nodes=(replace(hosts.nodes[0], link=replace(hosts.nodes[0].link, costs=costs)),))
    hints = Hints(tp=1, pp=1, cp=1)
    plans = [plan_training(SMALL, cluster, CONFIG, ranks=2, hints=hints) for cluster in (hosts, measured)]
    assert [(plan.mesh, plan.zero) for plan in plans] == [(Mesh(fsdp=2), 1), (Mesh(dp=2), 0)]


def test_on_hosts_the_cores_that_compute_also_do_what_sharding_and_pipelines_need() -> None:
    free = {"message_s": 1e-9, "unit_s": 1e-9, "handover_s": 1e-9}

    def step_s(hints: Hints, **figures: float) -> float:
        host = build_device("host", vendor="cpu", fp32_flops_per_s=3e11, memory_bytes_per_s=2e10, **{**free, **figures})
        config = replace(CONFIG, microbatch=2)
        return plan_training(SMALL, build_cluster((host, 1, 1), link_gbps=2), config, ranks=2, hints=hints).time.step_s

    replicas, pipeline = Hints(dp=2, recompute="none"), Hints(pp=2, recompute="none")
    units, count = sum(block.count for block in SMALL.blocks), 4
    for zero, scatters, gathers in ((1, 1, 1), (2, count, 1), (3, count, 2 * count)):
        sharded = Hints(fsdp=2, zero=zero, recompute="none")
        assert step_s(sharded, unit_s=0.01) - step_s(sharded) == pytest.approx(units * scatters * 0.01)
        messages = units * (scatters + gathers)
        assert step_s(sharded, message_s=0.01) - step_s(sharded) == pytest.approx(messages * 0.01)
    for name in free:
        assert step_s(replicas, **{name: 0.01}) == step_s(replicas)  # torch's reducer needs none of them
    assert step_s(pipeline, handover_s=0.01) - step_s(pipeline) >= 0.01 * CONFIG.global_batch / 2


def test_what_does_not_fit_says_by_how_much_and_what_would() -> None:
    cluster = build_cluster((build_device(memory_bytes=6 * GIB), 2, 1))
    with pytest.raises(DoesNotFit, match=r"needs .* GiB a rank .* X1 has 6 GiB, 90% of it usable: .* short") as caught:
        plan_training(LARGE, cluster, batch(8))
    words = caught.value.hint.split()
    enough = int(words[words.index("such") - 1])
    plan_training(LARGE, build_cluster((build_device(memory_bytes=6 * GIB), enough, 1)), batch(max(8, enough)))


def test_a_sequence_that_no_sharding_helps_says_so() -> None:
    cluster = build_cluster((build_device(memory_bytes=GIB // 2), 2, 1))
    with pytest.raises(DoesNotFit) as caught:
        plan_training(SMALL, cluster, replace(CONFIG, seq_len=1_000_000), limits=DATA_ONLY)
    assert "sharding further does not help" in caught.value.hint
    shorter = int(re.search(r"a seq_len of (\d+)", caught.value.hint)[1])
    plan_training(SMALL, cluster, replace(CONFIG, seq_len=shorter), limits=DATA_ONLY)


@pytest.mark.parametrize(
    ("config", "ranks", "words", "hint"),
    [
        (batch(10), 4, "10 sequences is not a multiple of 4 ranks = 4", "8 or 12"),
        (batch(16, microbatch=4), 8, "16 sequences is not a multiple of 8 ranks x micro-batches of 4 = 32", "32"),
        (batch(2), 4, "a global batch of 2 sequences is smaller than 4 ranks", "2 ranks"),
        (batch(64), 64, "64 ranks were asked for, cluster 'c' has room for 8", "one accelerator"),
        (batch(8), 0, "ranks must be at least 1, got 0", ""),
    ],
)
def test_a_request_that_cannot_be_is_refused_with_its_numbers(
    config: TrainConfig, ranks: int, words: str, hint: str
) -> None:
    with pytest.raises(SpecError) as caught:
        plan_training(SMALL, build_cluster((DEVICE, 4, 2)), config, ranks=ranks, limits=DATA_ONLY)
    assert words in str(caught.value)
    assert hint in caught.value.hint


def test_while_no_device_is_healthy_a_plan_must_wait() -> None:
    cluster = build_cluster((DEVICE, 1, 1))
    sick = Health(device="X1-0", state="unhealthy", reasons=("uncorrected memory errors",))
    nodes = tuple(replace(node, health=(sick,)) for node in cluster.nodes)
    with pytest.raises(Unavailable, match="no healthy device") as caught:
        plan_training(SMALL, replace(cluster, nodes=nodes), CONFIG)
    assert "uncorrected memory errors" in caught.value.hint


def test_cost_needs_prices_and_names_the_devices_without() -> None:
    with pytest.raises(SpecError, match="no price is known for X1"):
        plan_training(SMALL, build_cluster((DEVICE, 1, 1)), CONFIG, objective="cost")


def test_the_cheapest_plan_leaves_out_what_costs_more_than_it_brings() -> None:
    dear = build_device("dear", price_usd_per_hour=50.0)
    cheap = build_device("cheap", price_usd_per_hour=1.0, bf16_flops_per_s=9e13, fp32_flops_per_s=1.8e13)
    cluster = build_cluster((dear, 1, 1), (cheap, 1, 1))
    spent = plan_training(MEDIUM, cluster, batch(64), objective="cost")
    hurried = plan_training(MEDIUM, cluster, batch(64), objective="time")
    assert spent.stages[0].device == "cheap"
    assert hurried.stages[0].device == "dear + cheap"
    assert spent.price_usd < hurried.price_usd
    assert spent.seconds > hurried.seconds


def test_a_menu_has_one_plan_for_each_power_of_two_and_for_all() -> None:
    plans = menu(SMALL, build_cluster((DEVICE, 3, 2)), batch(24))
    assert [plan.mesh.world for plan in plans] == [1, 2, 4, 6]


def test_a_menu_leaves_out_offers_that_nothing_fits_on() -> None:
    plans = menu(LARGE, build_cluster((DEVICE, 8, 1)), batch(8))
    assert min(plan.mesh.world for plan in plans) > 1
    with pytest.raises(DoesNotFit):
        menu(LARGE, build_cluster((build_device(memory_bytes=GIB), 1, 1)), batch(8))


def test_mfu_counts_no_recomputed_work() -> None:
    device = build_device(memory_bytes=5 * GIB, memory_bytes_per_s=1e15)
    cluster = build_cluster((device, 1, 1))
    tokens = TrainConfig(steps=1, global_batch=1, seq_len=16384)
    plan = plan_training(build_model(layers=24, hidden=512), cluster, tokens)
    assert plan.recompute == "full"
    assert plan.mfu < 0.8 * 3 / 4 + 0.01


def test_a_printed_plan_tells_where_bytes_and_seconds_go() -> None:
    cluster = build_cluster((build_device(price_usd_per_hour=2.0), 4, 2), network_gbps=1)
    text = str(plan_training(LARGE, cluster, batch(8)))
    for word in ("ranks on", "X1", "micro-batches of", "gradients", "communication", "tokens/s", "MFU", "USD"):
        assert word in text
    parts = text.splitlines()
    assert parts[0].startswith("plan      toy on c: ")
    assert all(len(line) < 240 for line in parts)


def test_links_slow_enough_leave_one_rank_alone() -> None:
    cluster = replace(build_cluster((DEVICE, 1, 2)), link=Link(name="string", bytes_per_s=1e4, latency_s=1.0))
    assert plan_training(SMALL, cluster, CONFIG).mesh.world == 1
