"""What accelerators a machine really has and how they are, asked of the driver itself and not of who counts on them.

NVML answers without torch and without a context on the device, also where CUDA_VISIBLE_DEVICES hides it.
"""

import ctypes
from pathlib import Path

from mainspring.hardware import catalog
from mainspring.hardware.devices.nvml import Nvml
from mainspring.hardware.health import Reading, judge
from mainspring.spec import Health, Unavailable, spec

# AMD's and Intel's drivers: there are devices, and nobody here who could count them.
OTHERS = ("/dev/kfd", "/dev/dri/renderD128")


@spec
class Census:
    """The devices of one machine by number: their model and their health."""

    models: tuple[str, ...] = ()
    health: tuple[Health, ...] = ()

    @property
    def sick(self) -> tuple[int, ...]:
        """The numbers of devices that must not be used."""
        return tuple(number for number, each in enumerate(self.health) if each.state == "unhealthy")


def take_census(nvml: Nvml | None = None, others: tuple[str, ...] = OTHERS) -> Census | None:
    """The devices of this machine; None where there are some that only another vendor's driver could count."""
    try:
        session = nvml or Nvml()
        devices = [session.handle_at(number) for number in range(session.count())]
        names = [_model(session.name(device)) for device in devices]
        readings = [_read(session, device) for device in devices]
    except Unavailable:
        return None if any(Path(path).exists() for path in others) else Census()
    return Census(
        models=tuple(names),
        health=tuple(judge(name, reading) for name, reading in zip(names, readings, strict=True)),
    )


def _model(name: str) -> str:
    entry = catalog.matching(name)
    return entry.device.name if entry else name


def _read(session: Nvml, device: ctypes.c_void_p) -> Reading:
    total, used = session.memory(device)
    return Reading(
        memory_bytes=total,
        used_bytes=used,
        uncorrected_errors=session.uncorrected_errors(device),
    )
