"""NVIDIA devices: catalogue peaks by the driver's name, NVML for health and energy, NCCL for collectives.

A device the catalogue does not list is measured instead of guessed. Without a device, tests reach NVML's call
conventions only; what calls torch.cuda has not run in the suite.
"""

from dataclasses import replace
from functools import cached_property

from mainspring.hardware import catalog
from mainspring.hardware.devices.nvml import Nvml
from mainspring.hardware.health import Reading
from mainspring.hardware.measure import accelerator_peaks
from mainspring.spec import Device, Link


class CudaBackend:
    """Answers for the NVIDIA devices this process can see."""

    api = 1

    @cached_property
    def _nvml(self) -> Nvml:
        return Nvml()

    def probe(self) -> tuple[Device, ...]:
        """One device each; memory as the driver reports it, which is what a program can allocate from."""
        import torch

        return tuple(_device(index) for index in range(torch.cuda.device_count()))

    def link(self) -> Link:
        """The catalogue's link for this kind of device; PCIe 3 for one it does not list."""
        import torch

        entry = catalog.matching(torch.cuda.get_device_name(0))
        return catalog.find_link("pcie3") if entry is None else entry.link

    def read(self, index: int) -> Reading:
        """Memory, temperature, ECC and throttling through NVML."""
        handle = self._nvml.handle(_uuid(index))
        total, used = self._nvml.memory(handle)
        return Reading(
            memory_bytes=total,
            used_bytes=used,
            temperature_celsius=self._nvml.temperature_celsius(handle),
            temperature_limit_celsius=self._nvml.slowdown_celsius(handle),
            uncorrected_errors=self._nvml.uncorrected_errors(handle),
            throttled_by=self._nvml.throttled_by(handle),
        )

    def utilisation(self, index: int) -> float:
        """The share of NVML's last sampling period in which a kernel ran."""
        return self._nvml.utilisation(self._nvml.handle(_uuid(index)))

    def energy(self, index: int) -> tuple[float, str] | None:
        """NVML's energy counter; None before Volta."""
        joules = self._nvml.joules(self._nvml.handle(_uuid(index)))
        return None if joules is None else (joules, "nvml_energy")

    def collective(self) -> str:
        """NCCL."""
        return "nccl"


def _device(index: int) -> Device:
    import torch

    properties = torch.cuda.get_device_properties(index)
    entry = catalog.matching(properties.name)
    if entry is not None:
        return replace(entry.device, memory_bytes=properties.total_memory)
    peaks = accelerator_peaks(f"cuda:{index}", properties.name)
    return Device(
        vendor="nvidia",
        name=properties.name,
        memory_bytes=properties.total_memory,
        memory_bytes_per_s=peaks.memory_bytes_per_s,
        fp32_flops_per_s=peaks.fp32_flops_per_s,
        bf16_flops_per_s=peaks.bf16_flops_per_s,
        int8_ops_per_s=peaks.int8_ops_per_s,
        power_watts=0.0,  # unknown without a catalogue entry: energy then needs NVML's counter
        source=peaks.source,
    )


def _uuid(index: int) -> str:
    import torch

    return str(torch.cuda.get_device_properties(index).uuid)
