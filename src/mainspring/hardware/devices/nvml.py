"""The few NVML calls health and energy need, through ctypes: no extra package, and absent drivers are an answer.

Function names, struct layouts and constants are those of nvml.h (NVML API reference, r535 and later).
"""

import ctypes
from typing import Any

from mainspring.spec import Unavailable

LIBRARY = "libnvidia-ml.so.1"
SUCCESS = 0
TEMPERATURE_GPU = 0
THRESHOLD_SLOWDOWN = 1
UNCORRECTED = 1
VOLATILE = 0
TEXT_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE, and that of a UUID
# nvmlClocksThrottleReason*: the bits that mean trouble (idle and application clocks do not).
THROTTLE = {
    0x04: "the power cap",
    0x08: "a hardware slowdown",
    0x20: "software thermal limits",
    0x40: "hardware thermal limits",
    0x80: "the power brake",
}


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Nvml:
    """An open NVML session. `library` stands in for the driver's own in tests."""

    def __init__(self, library: Any = None) -> None:
        """Load and initialise NVML; `Unavailable` when this machine has no NVIDIA driver."""
        try:
            self._library = library or ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise Unavailable("no NVIDIA driver on this machine", hint=f"{LIBRARY} cannot be loaded") from error
        code = self._library.nvmlInit_v2()
        if code != SUCCESS:
            raise Unavailable(f"the NVIDIA driver does not start: NVML error {code}")

    def handle(self, uuid: str) -> ctypes.c_void_p:
        """The device with this UUID; numbers would not do, since CUDA_VISIBLE_DEVICES renumbers."""
        found = ctypes.c_void_p()
        full = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
        code = self._library.nvmlDeviceGetHandleByUUID(full.encode(), ctypes.byref(found))
        if code != SUCCESS:
            raise Unavailable(f"the NVIDIA driver does not know {full}: NVML error {code}")
        return found

    def handle_at(self, number: int) -> ctypes.c_void_p:
        """The device with this number, in the order of PCI buses and whatever CUDA_VISIBLE_DEVICES says."""
        found = ctypes.c_void_p()
        code = self._library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(found))
        if code != SUCCESS:
            raise Unavailable(f"the NVIDIA driver does not give out device {number}: NVML error {code}")
        return found

    def count(self) -> int:
        """How many devices the driver has."""
        found = ctypes.c_uint()
        code = self._library.nvmlDeviceGetCount_v2(ctypes.byref(found))
        if code != SUCCESS:
            raise Unavailable(f"the NVIDIA driver does not count its devices: NVML error {code}")
        return found.value

    def name(self, handle: ctypes.c_void_p) -> str:
        """The device's model as the driver calls it."""
        return self._text("nvmlDeviceGetName", handle)

    def uuid(self, handle: ctypes.c_void_p) -> str:
        """What CUDA_VISIBLE_DEVICES takes for this device, or for this part of one."""
        return self._text("nvmlDeviceGetUUID", handle)

    def slices(self, handle: ctypes.c_void_p) -> tuple[ctypes.c_void_p, ...]:
        """The MIG instances that the device is cut into; none when it is whole."""
        most = self._number(ctypes.c_uint, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0
        found: list[ctypes.c_void_p] = []
        for number in range(most):
            part = ctypes.c_void_p()
            if self._library.nvmlDeviceGetMigDeviceHandleByIndex(handle, number, ctypes.byref(part)) == SUCCESS:
                found.append(part)
        return tuple(found)

    def memory(self, handle: ctypes.c_void_p) -> tuple[int, int]:
        """`(total, used)` bytes."""
        found = _Memory()
        code = self._library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(found))
        if code != SUCCESS:
            raise Unavailable(f"the NVIDIA driver does not report memory: NVML error {code}")
        return found.total, found.used

    def temperature_celsius(self, handle: ctypes.c_void_p) -> float | None:
        """Of the chip."""
        found = self._number(ctypes.c_uint, "nvmlDeviceGetTemperature", handle, TEMPERATURE_GPU)
        return None if found is None else float(found)

    def slowdown_celsius(self, handle: ctypes.c_void_p) -> float | None:
        """Where the chip begins to slow down."""
        found = self._number(ctypes.c_uint, "nvmlDeviceGetTemperatureThreshold", handle, THRESHOLD_SLOWDOWN)
        return None if found is None else float(found)

    def uncorrected_errors(self, handle: ctypes.c_void_p) -> int | None:
        """Memory errors ECC could not correct since the last reset; None without ECC."""
        name = "nvmlDeviceGetTotalEccErrors"
        return self._number(ctypes.c_ulonglong, name, handle, UNCORRECTED, VOLATILE)

    def throttled_by(self, handle: ctypes.c_void_p) -> tuple[str, ...]:
        """Why the clock is below what was asked for."""
        bits = self._number(ctypes.c_ulonglong, "nvmlDeviceGetCurrentClocksThrottleReasons", handle) or 0
        return tuple(reason for bit, reason in THROTTLE.items() if bits & bit)

    def utilisation(self, handle: ctypes.c_void_p) -> float:
        """The share of the driver's last sampling period (up to 1 s) in which a kernel ran."""
        found = _Utilization()
        code = self._library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(found))
        if code != SUCCESS:
            raise Unavailable(f"the NVIDIA driver does not report utilisation: NVML error {code}")
        return found.gpu / 100

    def joules(self, handle: ctypes.c_void_p) -> float | None:
        """Energy since the driver was loaded (Volta and later)."""
        found = self._number(ctypes.c_ulonglong, "nvmlDeviceGetTotalEnergyConsumption", handle)
        return None if found is None else found / 1000

    def _text(self, name: str, handle: ctypes.c_void_p) -> str:
        found = ctypes.create_string_buffer(TEXT_BYTES)
        code = getattr(self._library, name)(handle, found, TEXT_BYTES)
        if code != SUCCESS:
            raise Unavailable(f"the NVIDIA driver does not answer {name}: NVML error {code}")
        return found.value.decode()

    def _number(self, kind: type[Any], name: str, handle: ctypes.c_void_p, *arguments: int) -> int | None:
        """One figure, or None when this device does not have it."""
        found = kind()
        code = getattr(self._library, name)(handle, *arguments, ctypes.byref(found))
        return found.value if code == SUCCESS else None
