"""Health: each sign of trouble gives its state and its reason, and this machine reports its own."""

from typing import Any

import pytest

from mainspring.hardware.devices import backend, process_group_backend, torch_device
from mainspring.hardware.health import Reading, judge
from mainspring.hardware.probe import probe_health, probe_node
from mainspring.spec import Settings, SpecError

GIB = 1024**3


def reading(**changes: Any) -> Reading:
    return Reading(**{"memory_bytes": 80 * GIB, "used_bytes": GIB, **changes})


def test_a_device_that_reports_nothing_wrong_is_healthy() -> None:
    health = judge("X1", reading(temperature_celsius=60.0, temperature_limit_celsius=90.0, uncorrected_errors=0))
    assert (health.state, health.reasons) == ("healthy", ())
    assert (health.temperature_celsius, health.used_bytes) == (60.0, GIB)


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"uncorrected_errors": 3}, "unhealthy", "3 uncorrected memory errors"),
        ({"temperature_celsius": 86.0, "temperature_limit_celsius": 90.0}, "degraded", "86 C, slows down at 90 C"),
        ({"throttled_by": ("the power brake",)}, "degraded", "slowed down by the power brake"),
        ({"used_bytes": 79 * GIB}, "degraded", "79.0 of 80.0 GiB"),
        ({"load_per_core": 3.2}, "degraded", "3.2 runnable processes per core"),
        ({"disk_free_bytes": 2 * GIB}, "degraded", "2.0 GiB left"),
        ({"disk_free_bytes": 1000}, "unhealthy", "0.0 GiB left"),
    ],
)
def test_each_fault_is_judged_and_explained(changes: dict[str, Any], state: str, words: str) -> None:
    health = judge("X1", reading(**changes))
    assert health.state == state
    assert len(health.reasons) == 1
    assert words in health.reasons[0]


def test_the_worst_fault_decides_and_all_are_told() -> None:
    health = judge("X1", reading(load_per_core=9.0, uncorrected_errors=1))
    assert health.state == "unhealthy"
    assert len(health.reasons) == 2


def test_this_machine_reports_its_health(settings: Settings) -> None:
    node = probe_node()
    (health, *_) = probe_health(node)
    assert health.device == node.devices[0].name
    assert 0 < health.used_bytes < node.devices[0].memory_bytes


def test_a_vendor_nobody_wrote_a_backend_for_is_not_guessed() -> None:
    with pytest.raises(SpecError, match="no device named 'acme'") as caught:
        backend("acme")
    assert "cpu, nvidia" in caught.value.hint


def test_ranks_get_a_torch_device_and_its_collectives() -> None:
    import torch

    name = torch_device(1)
    assert name.split(":")[0] in ("cpu", "cuda")
    expected = "gloo" if name == "cpu" else "nccl"
    assert process_group_backend(torch.device(name)) == expected
