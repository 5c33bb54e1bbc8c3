"""A micro-batch goes in two copies where that hides more than it costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.plan.search import plan_training
from mainspring.spec import Cluster, Hints, Plan, SpecError, TrainConfig
from mainspring.testing.machines import build_cluster, build_device, build_model

MODEL = build_model(layers=8, hidden=4096, vocab=32000)
CONFIG = TrainConfig(steps=10, global_batch=16, seq_len=2048, microbatch=4, precision="bf16")
ROOMY = build_device(memory_bytes=1 << 40)
ALIKE = Hints(tp=8)


def planned(cluster: Cluster, hints: Hints) -> Plan:
    return plan_training(MODEL, cluster, CONFIG, ranks=8, hints=hints)


@given(link_gbps=st.floats(1, 1000))
def test_copies_are_chosen_where_they_are_faster_and_never_where_not(link_gbps: float) -> None:
    cluster = build_cluster((ROOMY, 8, 1), link_gbps=link_gbps)
    free, whole, cut = (planned(cluster, Hints(tp=8, copies=copies)) for copies in (0, 1, 2))
    assert (whole.copies, cut.copies) == (1, 2)
    assert free.time.step_s == min(whole.time.step_s, cut.time.step_s)


def test_where_sums_and_arithmetic_take_about_as_long_much_of_the_sums_is_hidden() -> None:
    cluster = build_cluster((ROOMY, 8, 1), link_gbps=100.0)
    whole, free = planned(cluster, Hints(tp=8, copies=1)), planned(cluster, ALIKE)
    assert free.copies == 2
    assert free.time.step_s < 0.9 * whole.time.step_s
    assert "in 2 copies" in str(free)
    sums = [each for each in free.traffic if each.axis == "tp"]
    assert all(each.exposed_s < each.seconds for each in sums)
    assert sum(t.messages for t in sums) == 2 * sum(t.messages for t in whole.traffic if t.axis == "tp")


def test_nothing_hides_on_a_host() -> None:
    host = build_device("host", memory_bytes=1 << 40, vendor="cpu")
    assert planned(build_cluster((host, 8, 1), link_gbps=10.0), ALIKE).copies == 1


def test_copies_that_cannot_be_are_refused() -> None:
    cluster = build_cluster((ROOMY, 8, 1))
    with pytest.raises(SpecError, match="need tp and dp alone"):
        planned(cluster, Hints(fsdp=2, tp=4, copies=2))
