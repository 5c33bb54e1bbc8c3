"""This machine as a `Node`: its accelerators, or its CPU when it has none, with links and health."""

import socket
from pathlib import Path

from mainspring.hardware import limits
from mainspring.hardware.devices import DeviceBackend, backend, local_vendor
from mainspring.hardware.health import judge
from mainspring.hardware.share import isolation
from mainspring.spec import Device, Health, Node


def probe_node(root: Path = limits.ROOT) -> Node:
    """What this machine offers to this process, measured where a catalogue cannot know it (about 1 s the first time).

    CPU affinity and the cgroup limits under `root` are respected. Raises `SpecError` for an accelerator of an unknown
    vendor.
    """
    vendor = local_vendor()
    answers = backend(vendor)
    devices = answers.probe()
    return Node(
        name=socket.gethostname(),
        devices=devices,
        link=answers.link(),
        cpu_cores=limits.cores(root),
        memory_bytes=limits.memory_bytes(root),
        health=_judged(answers, devices),
        isolation=isolation((vendor,), root=root),
    )


def probe_health(node: Node) -> tuple[Health, ...]:
    """The health, now, of the devices of `node`, which must be this machine."""
    return _judged(backend(node.devices[0].vendor), node.devices) if node.devices else ()


def _judged(answers: DeviceBackend, devices: tuple[Device, ...]) -> tuple[Health, ...]:
    return tuple(judge(device.name, answers.read(index)) for index, device in enumerate(devices))
