"""Filling an empty cluster until more has been asked for than it has: how much of it ends up in use?

Tasks arrive in a random order, drawn again from the list when it is spent, and never leave; a task that does not fit
is turned away. A load of 1.3 means that arrivals asked for 130 % of the devices (of the cpus where there are none).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mainspring.cluster.schedule.fleet import Fleet
from mainspring.cluster.schedule.kernels import Floats, Ints
from mainspring.cluster.schedule.placer import Placer, Policy
from mainspring.cluster.schedule.winners import FAILED
from mainspring.spec import LoadPoint, Request, SpecError

DRAW = 1024


@dataclass(frozen=True, slots=True)
class Demand:
    """The distinct requests of a task list, how often each occurs, and which one each task is."""

    requests: tuple[Request, ...]
    counts: Mapping[Request, int]
    tasks: Ints
    size: Ints = field(repr=False)  # what a request adds to the load

    @property
    def shares(self) -> Floats:
        """How often each request occurs, as a share of all tasks."""
        return np.array([self.counts[request] for request in self.requests]) / len(self.tasks)


def build_demand(tasks: Sequence[Request], fleet: Fleet) -> Demand:
    """The demand of `tasks`, measured in devices where `fleet` has some, else in cpus."""
    counts = Counter(tasks)
    requests = tuple(sorted(counts, key=lambda r: (r.devices, r.milli, r.cpu_milli, r.memory_mib, r.models)))
    number = {request: index for index, request in enumerate(requests)}
    by_device = fleet.device_milli > 0
    size = np.array([request.device_milli if by_device else request.cpu_milli for request in requests], np.int64)
    if not size.any():
        raise SpecError(
            f"none of the {len(tasks)} tasks asks for {'a device' if by_device else 'a cpu'}",
            hint="load is measured in devices where the cluster has some, else in cpus",
        )
    return Demand(requests, counts, np.array([number[task] for task in tasks], np.int64), size)


def capacity(fleet: Fleet) -> int:
    """All there is of what load is measured in."""
    return fleet.device_milli or int(fleet.total.cpu.sum())


def arrivals(demand: Demand, *, until: float, seed: int) -> Ints:
    """Classes of the tasks that arrive until they ask for `until` in all: every task once, then drawn again.

    A longer sequence with the same seed begins with the shorter one.
    """
    draw = np.random.default_rng(seed)
    parts = [draw.permutation(demand.tasks)]
    asked = int(demand.size[parts[0]].sum())
    while asked <= until:
        parts.append(draw.choice(demand.tasks, DRAW))
        asked += int(demand.size[parts[-1]].sum())
    classes = np.concatenate(parts)
    return classes[: np.searchsorted(np.cumsum(demand.size[classes]), until, side="right")]


def inflate(
    fleet: Fleet, demand: Demand, classes: Ints, *, policy: Policy, loads: Sequence[float]
) -> tuple[LoadPoint, ...]:
    """Fill `fleet`, which it changes, and look at it at each of `loads`, in ascending order."""
    placer = Placer(fleet, demand.requests, counts=demand.counts, policy=policy)
    whole, asked = capacity(fleet), np.cumsum(demand.size[classes])
    nodes, devices = np.full(len(classes), FAILED, np.int64), np.zeros(len(classes), np.int64)
    points: list[LoadPoint] = []
    done = 0
    for load in loads:
        end = int(np.searchsorted(asked, load * whole, side="right"))
        placer.replay(np.arange(done, end), classes=classes, nodes=nodes, devices=devices)
        done = end
        placed = nodes[:end] != FAILED
        free, total = fleet.free, fleet.total
        points.append(
            LoadPoint(
                load=load,
                allocation_percent=100 * float(demand.size[classes[:end]][placed].sum()) / whole,
                cpu_percent=_used_percent(free.cpu, total.cpu),
                memory_percent=_used_percent(free.memory, total.memory),
                waste_percent=100 * placer.waste_milli / whole,
                placed=int(placed.sum()),
                turned_away=int(end - placed.sum()),
            )
        )
    return tuple(points)


def _used_percent(free: Ints, total: Ints) -> float:
    return 100 * (1 - float(free.sum()) / max(1, float(total.sum())))
