"""Constants fitted to measurements of a made-up machine whose constants are known."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.models.profile import profile_decoder
from mainspring.plan import network
from mainspring.plan.calibrate import Exchanged, Passed, Updated, fit_device, fit_link
from mainspring.plan.estimate import ADAM_TRAFFIC_BYTES
from mainspring.plan.network import Ring
from mainspring.spec import Device, Link, Precision, SpecError
from mainspring.testing.machines import build_device
from mainspring.train.calibrate import SHAPES, SIZES, Shape

GUESS = build_device("guess", fp32_flops_per_s=1e12, bf16_flops_per_s=4e12, memory_bytes_per_s=1e11)


def passed_on(device: Device, shape: Shape) -> Passed:
    """What `shape` would take on `device`, asked of the cost model one constant at a time."""
    from mainspring.plan.calibrate import _pass_s
    from mainspring.plan.stack import TORCH

    model = profile_decoder(shape.config, seq_len=shape.seq_len, name="probe")
    each = Passed(model=model, rows=shape.rows, precision=shape.precision, seconds=1.0)
    return replace(each, seconds=_pass_s(device, each, TORCH))


def updated_on(device: Device) -> list[Updated]:
    return [Updated(params=n, seconds=ADAM_TRAFFIC_BYTES * n / device.memory_bytes_per_s) for n in (1 << 20, 1 << 23)]


@settings(deadline=None, max_examples=30)
@given(
    product=st.floats(0.2, 1),
    attention=st.floats(0.1, 1),
    memory=st.floats(1e10, 1e12),
    overhead=st.floats(1e-5, 1e-3),
    narrow=st.floats(1, 8),
)
def test_the_constants_of_a_machine_are_found_again(
    product: float, attention: float, memory: float, overhead: float, narrow: float
) -> None:
    true = replace(
        GUESS,
        matmul_share=product,
        attention_share=attention,
        memory_bytes_per_s=memory,
        block_overhead_s=overhead,
        bf16_flops_per_s=narrow * 1e12,
    )
    found, samples = fit_device(GUESS, [passed_on(true, shape) for shape in SHAPES], updated_on(true))
    assert found.matmul_share == pytest.approx(product, rel=1e-3)
    assert found.attention_share == pytest.approx(attention, rel=1e-3)
    assert found.memory_bytes_per_s == pytest.approx(memory, rel=1e-3)
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
        "reduce_scatter": lambda size: network.gather_s(ring, size),
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


def test_too_few_measurements_are_refused() -> None:
    narrow: Precision = "bf16"
    with pytest.raises(SpecError, match="0 measurements in fp32 are too few"):
        fit_device(GUESS, [passed_on(GUESS, replace(SHAPES[0], precision=narrow))], [])
    with pytest.raises(SpecError, match="too few to fit a link"):
        fit_link([], name="none")
    same = Exchanged(operation="send", ranks=2, payload_bytes=0, seconds=1e-4)
    with pytest.raises(SpecError, match="do not grow"):
        fit_link([same, same], name="none")
