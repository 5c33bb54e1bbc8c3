"""A gang's ranks on nodes and devices: how many fit where, which devices they take, and putting them back."""

from dataclasses import dataclass

import numpy as np

from mainspring.cluster.schedule.fleet import Fleet
from mainspring.cluster.schedule.kernels import WHOLE, Flags, Ints, Nodes
from mainspring.cluster.schedule.topology import Shape, Topology, arrange, rank_nodes, spread_out
from mainspring.spec import Gang, Request

ANY_NUMBER = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """The node of every rank, its devices as bits, and the model they are of (empty without devices)."""

    nodes: Ints
    devices: Ints
    model: str


def shape_of(gang: Gang, topology: Topology) -> Shape:
    """The gang's wishes in the numbers of this cluster; `SpecError` names a level that it does not have."""
    level = topology.depth(gang.level) if gang.level else 0
    return Shape(
        ranks=gang.ranks,
        within=level if gang.binding == "required" else 0,
        segment=max(1, gang.segment),
        segment_depth=topology.depth(gang.segment_level) if gang.segment > 1 else 0,
    )


def count_slots(free: Nodes, request: Request, usable: Flags) -> Ints:
    """How many ranks of `request` fit on each usable node."""
    slots = np.where(usable, ANY_NUMBER, 0)
    slots = np.minimum(slots, free.cpu // request.cpu_milli) if request.cpu_milli else slots * (free.cpu >= 0)
    if request.memory_mib:
        slots = np.minimum(slots, free.memory // request.memory_mib)
    if request.devices == 1:
        slots = np.minimum(slots, (free.devices // request.milli).sum(axis=1))
    elif request.devices:
        slots = np.minimum(slots, (free.devices >= request.milli).sum(axis=1) // request.devices)
    return np.maximum(slots, 0)


def usable_nodes(fleet: Fleet, gang: Gang, model: str) -> Flags:
    """Nodes that have devices of `model` (all nodes when it is empty) and are among those the gang may use."""
    usable = np.ones(len(fleet.names), np.bool_)
    if model:
        usable &= fleet.total.model == fleet.models.index(model)
    if gang.nodes:
        usable &= np.isin(np.array(fleet.names), np.array(gang.nodes))
    return usable


def find_place(fleet: Fleet, topology: Topology, gang: Gang, model: str, usable: Flags) -> Place | None:
    """Places for all ranks on free capacity, or None. Takes nothing."""
    slots = count_slots(fleet.free, gang.request, usable)
    if int(slots.sum()) < gang.ranks:
        return None
    shape = shape_of(gang, topology)
    wished = slots
    if gang.layout == "spread":
        wished = spread_out(slots, gang.ranks)
    elif not gang.request.devices:
        wished = np.where(fleet.total.size == 0, slots, 0)  # leaves nodes with devices to others, if it can
    counts = arrange(topology, wished, shape)
    if counts is None and wished is not slots:
        counts = arrange(topology, slots, shape)
    if counts is None:
        return None
    nodes = rank_nodes(topology, counts)
    devices = np.zeros(len(nodes), np.int64)
    if gang.request.devices:
        for n in np.flatnonzero(counts):
            devices[nodes == n] = choose_devices(fleet.free.devices[n], gang.request, int(counts[n]))
    return Place(nodes=nodes, devices=devices, model=model)


def choose_devices(free: Ints, request: Request, ranks: int) -> list[int]:
    """Bits of the devices of each of `ranks` on one node. Shares fill the device that they leave fullest."""
    left, chosen = free.copy(), []
    for _ in range(ranks):
        able = np.flatnonzero(left >= request.milli)
        if request.devices == 1 and request.milli < WHOLE:
            able = able[np.argsort(left[able], kind="stable")]
        taken = able[: request.devices]
        left[taken] -= request.milli
        chosen.append(int((1 << taken).sum()))
    return chosen


def occupy(fleet: Fleet, gang: Gang, place: Place, *, sign: int = -1) -> None:
    """Take the place (or with `sign=1` give it back)."""
    request, free = gang.request, fleet.free
    np.add.at(free.cpu, place.nodes, sign * request.cpu_milli)
    np.add.at(free.memory, place.nodes, sign * request.memory_mib)
    if request.devices:
        numbers = np.arange(free.devices.shape[1])
        used = (place.devices[:, None] >> numbers & 1).astype(np.int64)
        np.add.at(free.devices, place.nodes, sign * request.milli * used)
