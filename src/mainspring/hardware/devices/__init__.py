"""One backend per vendor, six questions each; everything vendor-specific is behind them.

A vendor that is not built in comes from an installed plugin (`mainspring.device` entry points). Ascend and AMD are
absent on purpose: their drivers could not be exercised here, and a backend nobody ran is a guess. Both can be planned
for from the catalogue.
"""

from typing import TYPE_CHECKING, Protocol

from mainspring.hardware.health import Reading
from mainspring.spec import Device, Link, SpecError
from mainspring.spec.plugin import load

if TYPE_CHECKING:
    import torch

BUILTIN = {
    "cpu": "mainspring.hardware.devices.cpu:CpuBackend",
    "nvidia": "mainspring.hardware.devices.cuda:CudaBackend",
}


class DeviceBackend(Protocol):
    """What a vendor's software must answer; `index` counts this machine's devices from 0."""

    api: int

    def probe(self) -> tuple[Device, ...]:
        """The devices this process can see, with their peaks and memory."""
        ...

    def link(self) -> Link:
        """The connection among them."""
        ...

    def read(self, index: int) -> Reading:
        """Memory in use, temperature and faults of one device, now."""
        ...

    def utilisation(self, index: int) -> float:
        """The share of time one device was busy since the last call, from 0 to 1."""
        ...

    def energy(self, index: int) -> tuple[float, str] | None:
        """A counter of joules that only grows, and its method's name; None when there is no counter."""
        ...

    def collective(self) -> str:
        """The `torch.distributed` backend for tensors on these devices."""
        ...


def backend(vendor: str) -> DeviceBackend:
    """The backend for `vendor`; `SpecError` lists the known ones."""
    return load("device", vendor, BUILTIN)()


def local_vendor() -> str:
    """The vendor of this machine's accelerators, or `cpu` when torch is absent or sees none.

    Raises `SpecError` for an accelerator torch sees and nobody here knows.
    """
    kind = _accelerator()
    if kind is None:
        return "cpu"
    if kind == "cuda":
        import torch

        return "amd" if torch.version.hip else "nvidia"
    vendors = {"npu": "huawei", "xpu": "intel", "mps": "apple"}
    if kind not in vendors:
        raise SpecError(f"torch reports an accelerator of the unknown kind {kind!r}", hint="install its plugin")
    return vendors[kind]


def torch_device(local_rank: int) -> str:
    """The torch device of a rank, by its number on this machine: `cpu`, `cuda:0`, `npu:3`.

    A process that sees one accelerator uses it whatever its rank, because a launcher that isolates devices shows each
    rank its own as number 0. Raises `SpecError` when several are visible and this rank's is not among them.
    """
    kind = _accelerator()
    if kind is None:
        return "cpu"
    import torch

    count = torch.accelerator.device_count()
    if count == 1:
        return f"{kind}:0"
    if local_rank >= count:
        raise SpecError(f"local rank {local_rank} has no device: this machine shows {count}")
    return f"{kind}:{local_rank}"


def process_group_backend(device: "torch.device") -> str:
    """The `torch.distributed` backend for tensors on `device`."""
    return backend("cpu" if device.type == "cpu" else local_vendor()).collective()


def _accelerator() -> str | None:
    """The kind of accelerator torch can use here, or None."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return None
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type
