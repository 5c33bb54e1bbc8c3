"""NVML's call conventions, against a library that keeps them: results through pointers, a code from each call."""

import ctypes
from typing import Any

import pytest

from mainspring.hardware.devices.nvml import Nvml
from mainspring.spec import Unavailable

NOT_SUPPORTED = 3


class Library:
    """Answers like libnvidia-ml for one device; `missing` functions are not supported by it."""

    def __init__(self, *, missing: tuple[str, ...] = (), init: int = 0) -> None:
        self.missing = missing
        self.init = init

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return self.init

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, found: Any) -> int:  # noqa: N802
        found._obj.value = 7
        return 0 if uuid == b"GPU-abc" else 6

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, found: Any) -> int:  # noqa: N802
        found._obj.total, found._obj.used = 1000, 400
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: ctypes.c_void_p, found: Any) -> int:  # noqa: N802
        found._obj.gpu = 75
        return 0

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetTemperature": 66,
            "nvmlDeviceGetTemperatureThreshold": 90,
            "nvmlDeviceGetTotalEccErrors": 2,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x01 | 0x40 | 0x80,
            "nvmlDeviceGetTotalEnergyConsumption": 123_456,
        }

        def call(*arguments: Any) -> int:
            arguments[-1]._obj.value = answers[name]
            return NOT_SUPPORTED if name in self.missing else 0

        return call


def test_figures_come_back_in_the_platforms_units() -> None:
    nvml = Nvml(Library())
    handle = nvml.handle("abc")
    assert handle.value == 7
    assert nvml.memory(handle) == (1000, 400)
    assert nvml.temperature_celsius(handle) == 66.0
    assert nvml.slowdown_celsius(handle) == 90.0
    assert nvml.uncorrected_errors(handle) == 2
    assert nvml.utilisation(handle) == 0.75
    assert nvml.joules(handle) == 123.456
    assert nvml.throttled_by(handle) == ("hardware thermal limits", "the power brake")  # idle is not a fault


def test_what_a_device_does_not_support_is_absent() -> None:
    nvml = Nvml(Library(missing=("nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetTotalEnergyConsumption")))
    handle = nvml.handle("GPU-abc")
    assert nvml.uncorrected_errors(handle) is None
    assert nvml.joules(handle) is None


def test_an_unknown_device_and_a_sick_driver_are_unavailable() -> None:
    with pytest.raises(Unavailable, match="does not know GPU-xyz"):
        Nvml(Library()).handle("xyz")
    with pytest.raises(Unavailable, match="NVML error 9"):
        Nvml(Library(init=9))
