"""The host's CPU as a device: measured peaks, the memory it may use, RAPL for energy.

One `Device` stands for all cores; ranks that share it each get their part of everything.
"""

import shutil
from pathlib import Path

import psutil

from mainspring.hardware import limits, rapl
from mainspring.hardware.health import Reading
from mainspring.hardware.measure import cpu_model, cpu_peaks, loopback
from mainspring.spec import Device, Link, load_settings

# Intel Xeon 8480+: 350 W for 56 cores. Used when the package states no limit of its own.
WATTS_PER_CORE = 6.25


class CpuBackend:
    """Answers for the host's CPU."""

    api = 1

    def __init__(self) -> None:
        self._seen = psutil.cpu_times()
        self._counter = rapl.Counter()

    def probe(self) -> tuple[Device, ...]:
        """One device for all the cores this process may use."""
        count = limits.cores()
        peaks = cpu_peaks(count)
        stated = rapl.limit_watts()
        watts = f"{WATTS_PER_CORE} W a core" if stated is None else "RAPL limit"
        device = Device(
            vendor="cpu",
            name=f"{cpu_model()} ({count} cores)",
            memory_bytes=limits.memory_bytes(),
            memory_bytes_per_s=peaks.memory_bytes_per_s,
            fp32_flops_per_s=peaks.fp32_flops_per_s,
            bf16_flops_per_s=peaks.bf16_flops_per_s,
            int8_ops_per_s=peaks.int8_ops_per_s,
            power_watts=WATTS_PER_CORE * count if stated is None else stated,
            source=f"{peaks.source}; power by {watts}",
        )
        return (device,)

    def link(self) -> Link:
        """TCP over loopback, measured."""
        return loopback()

    def read(self, index: int) -> Reading:  # noqa: ARG002  there is one CPU device
        """Memory, load and the disk that holds the platform's home."""
        heats = [row.current for rows in psutil.sensors_temperatures().values() for row in rows if row.current > 0]
        return Reading(
            memory_bytes=limits.memory_bytes(),
            used_bytes=limits.used_memory_bytes(),
            temperature_celsius=max(heats, default=None),
            load_per_core=psutil.getloadavg()[0] / (psutil.cpu_count() or 1),
            disk_free_bytes=shutil.disk_usage(_existing(load_settings().home_path)).free,
        )

    def utilisation(self, index: int) -> float:  # noqa: ARG002  there is one CPU device
        """Busy time over all time since the last call, all cores together."""
        before, self._seen = self._seen, psutil.cpu_times()
        passed = sum(self._seen) - sum(before)
        idle = self._seen.idle - before.idle + getattr(self._seen, "iowait", 0) - getattr(before, "iowait", 0)
        return min(1.0, max(0.0, 1 - idle / passed)) if passed > 0 else 0.0

    def energy(self, index: int) -> tuple[float, str] | None:  # noqa: ARG002  there is one CPU device
        """The RAPL package counters; None where the kernel shows none (most virtual machines)."""
        joules = self._counter.joules()
        return None if joules is None else (joules, "rapl")

    def collective(self) -> str:
        """Gloo: the collective library that runs on host memory."""
        return "gloo"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
