"""Constants fitted to measurements of a made-up machine whose constants are known."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.models.profile import profile_decoder
from mainspring.plan import network
from mainspring.plan.calibrate import Exchanged, Passed, Stepped, Updated, fit_device, fit_host, fit_link
from mainspring.plan.network import Ring
from mainspring.plan.slices import ADAM_TRAFFIC_BYTES
from mainspring.spec import Device, Link, Node, Operation, OperationCost, Precision, SpecError
from mainspring.testing.machines import build_device
from mainspring.train.calibrate import SIZES
from mainspring.train.timed import MODEL, SHAPES, Shape, planned

GUESS = build_device("guess", fp32_flops_per_s=1e12, bf16_flops_per_s=4e12, memory_bytes_per_s=1e11)


def passed_on(device: Device, shape: Shape, share: float = 1.0) -> Passed:
    """What `shape` would take on `device`, asked of the cost model one constant at a time."""
    from mainspring.plan.calibrate import _pass_s
    from mainspring.plan.stack import TORCH

    model = profile_decoder(shape.config, seq_len=shape.seq_len, name="probe")
    each = Passed(model=model, rows=shape.rows, precision=shape.precision, seconds=1.0, share=share)
    return replace(each, seconds=_pass_s(device, each, TORCH))


def updated_on(device: Device, share: float = 1.0) -> list[Updated]:
    width = share * device.memory_bytes_per_s
    return [Updated(params=n, seconds=ADAM_TRAFFIC_BYTES * n / width, share=share) for n in (1 << 20, 1 << 23)]


@settings(deadline=None, max_examples=30)
@given(
    product=st.floats(0.2, 1),
    attention=st.floats(0.1, 1),
    memory=st.floats(1e10, 1e12),
    activation=st.floats(0.1, 1),
    overhead=st.floats(1e-5, 1e-3),
    narrow=st.floats(1, 8),
    ranks=st.integers(1, 4),
)
def test_the_constants_of_a_machine_are_found_again(
    product: float, attention: float, memory: float, activation: float, overhead: float, narrow: float, ranks: int
) -> None:
    true = replace(
        GUESS,
        matmul_share=product,
        attention_share=attention,
        memory_bytes_per_s=memory,
        activation_share=activation,
        block_overhead_s=overhead,
        bf16_flops_per_s=narrow * 1e12,
    )
    share = 1 / ranks
    found, samples = fit_device(GUESS, [passed_on(true, each, share) for each in SHAPES], updated_on(true, share))
    assert found.matmul_share == pytest.approx(product, rel=1e-3)
    assert found.attention_share == pytest.approx(attention, rel=1e-3)
    assert found.memory_bytes_per_s == pytest.approx(memory, rel=1e-3)
    assert found.activation_share == pytest.approx(activation, rel=1e-3)
    assert found.block_overhead_s == pytest.approx(overhead, rel=1e-3)
    assert found.bf16_flops_per_s == pytest.approx(narrow * 1e12, rel=1e-2)
    assert max(abs(sample.error) for sample in samples) < 1e-2


def test_one_disturbed_measurement_hardly_matters() -> None:
    true = replace(GUESS, matmul_share=0.6, block_overhead_s=2e-4)
    passed = [passed_on(true, shape) for shape in SHAPES]
    passed[3] = replace(passed[3], seconds=3 * passed[3].seconds)
    found, _ = fit_device(GUESS, passed, updated_on(true))
    assert found.matmul_share == pytest.approx(0.6, rel=0.05)
    assert found.memory_bytes_per_s == pytest.approx(true.memory_bytes_per_s, rel=0.05)


def test_a_machine_faster_than_its_peak_gets_a_higher_one() -> None:
    true = replace(GUESS, fp32_flops_per_s=3e12, matmul_share=1.0)
    found, _ = fit_device(GUESS, [passed_on(true, shape) for shape in SHAPES], updated_on(true))
    assert found.fp32_flops_per_s * found.matmul_share == pytest.approx(3e12, rel=1e-3)


@settings(deadline=None)
@given(latency=st.floats(1e-6, 1e-3), rate=st.floats(1e8, 1e11), ranks=st.integers(2, 4))
def test_a_link_is_found_again(latency: float, rate: float, ranks: int) -> None:
    link = Link(name="true", bytes_per_s=rate, latency_s=latency)
    ring = Ring(ranks=ranks, per_node=ranks, nodes=1, inner=link, outer=None)
    times = {
        "all_reduce": lambda size: network.reduce_s(ring, size),
        "all_gather": lambda size: network.gather_s(ring, size),
        "reduce_scatter": lambda size: network.scatter_s(ring, size),
        "all_to_all": lambda size: network.exchange_s(ring, size),
        "send": lambda size: network.send_s(link, size),
    }
    exchanged = [
        Exchanged(operation=name, ranks=ranks, payload_bytes=size, seconds=time(size))
        for name, time in times.items()
        for size in SIZES
    ]
    found, samples = fit_link(exchanged, name="loopback")
    assert found.latency_s == pytest.approx(latency, rel=1e-3)
    assert found.bytes_per_s == pytest.approx(rate * ranks, rel=1e-3)  # each of them is counted on its part
    assert max(abs(sample.error) for sample in samples) < 1e-3


def test_each_operation_has_its_own_latency_and_rate() -> None:
    times: dict[Operation, tuple[float, float]] = {
        "all_reduce": (2e-4, 5e9),
        "all_gather": (1e-4, 2e9),
        "reduce_scatter": (3e-4, 1e9),
        "all_to_all": (5e-5, 4e9),
        "send": (4e-5, 8e9),
    }
    costs = tuple(OperationCost(operation=each, bytes_per_s=rate, latency_s=s) for each, (s, rate) in times.items())
    link = Link(name="true", bytes_per_s=1e9, latency_s=1e-4, costs=costs)
    ring = Ring(ranks=2, per_node=2, nodes=1, inner=link, outer=None)
    run = {
        "all_reduce": network.reduce_s,
        "all_gather": network.gather_s,
        "reduce_scatter": network.scatter_s,
        "all_to_all": network.exchange_s,
    }
    exchanged = [
        Exchanged(each, 2, size, network.send_s(link, size) if each == "send" else run[each](ring, size))
        for each in times
        for size in SIZES
    ]
    assert network.reduce_s(ring, 8e6) == pytest.approx(2e-4 + 8e6 / 5e9)
    assert network.scatter_s(ring, 8e6, messages=3) == pytest.approx(9e-4 + 4e6 / 1e9)
    found, samples = fit_link(exchanged, name="loopback")
    for cost in found.costs:
        assert (cost.latency_s, cost.bytes_per_s / 2) == pytest.approx(times[cost.operation], rel=1e-3)
    assert len(found.costs) == len(times)
    assert max(abs(sample.error) for sample in samples) < 1e-3


def test_what_a_host_adds_to_plans_is_found_again() -> None:
    host = build_device("host", vendor="cpu", fp32_flops_per_s=3e11, memory_bytes_per_s=2e10)
    link = Link(name="loopback", bytes_per_s=2e9, latency_s=1e-4)
    node = Node(name="host", devices=(host,), link=link, cpu_cores=2, memory_bytes=host.memory_bytes)
    true = replace(host, message_s=3e-4, unit_s=1e-3, handover_s=2e-3)
    plans = planned(node, ranks=2)
    assert {plan.mesh.label for plan in plans} == {"dp2", "fsdp2", "tp2", "pp2"}
    stepped = [Stepped(MODEL, plan, Stepped(MODEL, plan, 0.0).predicted_s(true, link, cores=2)) for plan in plans]
    found, samples = fit_host(host, link, stepped, cores=2)
    assert found.message_s == pytest.approx(3e-4, rel=1e-3)
    assert found.unit_s == pytest.approx(1e-3, rel=1e-3)
    assert found.handover_s == pytest.approx(2e-3, rel=1e-3)
    assert max(abs(sample.error) for sample in samples) < 1e-3


def test_too_few_measurements_are_refused() -> None:
    narrow: Precision = "bf16"
    with pytest.raises(SpecError, match="0 measurements in fp32 are too few"):
        fit_device(GUESS, [passed_on(GUESS, replace(SHAPES[0], precision=narrow))], [])
    with pytest.raises(SpecError, match="too few to fit a link"):
        fit_link([], name="none")
    same = Exchanged(operation="send", ranks=2, payload_bytes=0, seconds=1e-4)
    with pytest.raises(SpecError, match="do not grow"):
        fit_link([same, same], name="none")
