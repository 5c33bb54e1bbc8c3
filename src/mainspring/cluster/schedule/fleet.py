"""The machines of a cluster as arrays: what they have, and what is free of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mainspring.cluster.schedule.kernels import WHOLE, Classes, Ints, Nodes
from mainspring.spec import Machine, Request, SpecError


@dataclass(slots=True)
class Fleet:
    """Names and totals never change; `free` does. `model` of a node without devices is -1."""

    names: tuple[str, ...]
    models: tuple[str, ...]
    total: Nodes
    free: Nodes

    def copy(self) -> "Fleet":
        """The same machines with free capacity of their own."""
        return Fleet(self.names, self.models, self.total, copy_nodes(self.free))

    @property
    def device_milli(self) -> int:
        """Thousandths of devices of the whole cluster, healthy ones only."""
        return int(self.total.devices.sum())


def build_fleet(machines: Sequence[Machine]) -> Fleet:
    """The fleet of `machines`, all free; sick devices have no capacity."""
    if not machines:
        raise SpecError("a cluster needs at least one node")
    names = tuple(machine.name for machine in machines)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SpecError(f"{len(names)} nodes have {len(set(names))} names", hint=f"{twice} occurs twice")
    models = tuple(sorted({machine.model for machine in machines if machine.devices}))
    number = {model: index for index, model in enumerate(models)}
    devices = np.zeros((len(machines), max(1, *(machine.devices for machine in machines))), np.int64)
    for row, machine in zip(devices, machines, strict=True):
        row[: machine.devices] = WHOLE
        row[list(machine.sick)] = 0
    total = Nodes(
        cpu=_ints(machine.cpu_milli for machine in machines),
        memory=_ints(machine.memory_mib for machine in machines),
        devices=devices,
        size=_ints(machine.devices for machine in machines),
        model=_ints(number[machine.model] if machine.devices else -1 for machine in machines),
    )
    return Fleet(names=names, models=models, total=total, free=copy_nodes(total))


def copy_nodes(nodes: Nodes) -> Nodes:
    """A copy that shares nothing that changes."""
    return Nodes(nodes.cpu.copy(), nodes.memory.copy(), nodes.devices.copy(), nodes.size, nodes.model)


def build_classes(requests: Sequence[Request], models: Sequence[str]) -> Classes:
    """`requests` as the kernels read them. A request that names no model may use any."""
    allowed = np.zeros((len(requests), max(1, len(models))), np.bool_)
    for row, request in zip(allowed, requests, strict=True):
        row[: len(models)] = [not request.models or model in request.models for model in models]
    return Classes(
        cpu=_ints(request.cpu_milli for request in requests),
        memory=_ints(request.memory_mib for request in requests),
        number=_ints(request.devices for request in requests),
        milli=_ints(request.milli if request.devices else 0 for request in requests),
        allowed=allowed,
    )


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, np.int64)
