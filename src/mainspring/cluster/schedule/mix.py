"""The typical task mix: what waste is measured against, and how scarce each device model is for it.

A mix is the most frequent requests that together make up 95 % of the tasks, as in the paper of `kernels`. Its weights
may lean towards tasks with many devices; which lean suits a workload is found by shadow simulation, not assumed.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mainspring.cluster.schedule.fleet import Fleet
from mainspring.cluster.schedule.kernels import Floats, Mix
from mainspring.spec import WHOLE, Request

COVER = 0.95
MOST_KINDS = 256
SHARE_STEP, SIZE_STEP = 50, 1.25
SLIGHT = 1e-6


def build_mix(counts: Mapping[Request, int], models: Sequence[str], *, lean: float = 0.0) -> Mix:
    """The mix of tasks seen `counts` times; a task weighs its count times `1 + lean` for each whole device it asks."""
    often = _most_frequent(alike(counts))
    top = [(request, count * (1 + lean * request.device_milli / 1000)) for request, count in often]
    whole = sum(weight for _, weight in top) or 1.0
    groups: dict[tuple[int, int, tuple[bool, ...]], list[tuple[int, int, float]]] = defaultdict(list)
    for request, weight in top:
        if request.devices:
            allowed = tuple(not request.models or model in request.models for model in models)
            key = (request.devices, request.milli, allowed)
            groups[key].append((request.cpu_milli, request.memory_mib, weight / whole))
    levels = sorted({milli for _, milli, _ in groups})
    members = [member for key in sorted(groups) for member in sorted(groups[key])]
    return Mix(
        levels=np.array(levels, np.int64),
        level=np.array([levels.index(milli) for _, milli, _ in sorted(groups)], np.int64),
        number=np.array([number for number, _, _ in sorted(groups)], np.int64),
        allowed=np.array([key[2] for key in sorted(groups)], np.bool_).reshape(len(groups), len(models)),
        start=np.cumsum([0, *(len(groups[key]) for key in sorted(groups))], dtype=np.int64),
        cpu=np.array([cpu for cpu, _, _ in members], np.int64),
        memory=np.array([memory for _, memory, _ in members], np.int64),
        weight=np.array([weight for _, _, weight in members], np.float64),
    )


def alike(counts: Mapping[Request, int]) -> Mapping[Request, int]:
    """The same demand; where hardly any task is like another, those of about the same size count as one kind."""
    if len(_most_frequent(counts)) <= MOST_KINDS:
        return counts
    merged: defaultdict[Request, int] = defaultdict(int)
    for request, count in counts.items():
        share = request.milli if request.milli == WHOLE else max(1, round(request.milli / SHARE_STEP)) * SHARE_STEP
        cpu, memory = (_rounded(size) for size in (request.cpu_milli, request.memory_mib))
        merged[replace(request, cpu_milli=cpu, memory_mib=memory, milli=share)] += count
    return merged


def _most_frequent(counts: Mapping[Request, int]) -> list[tuple[Request, int]]:
    """The requests seen most often that together make up nearly all."""
    enough, seen, top = COVER * sum(counts.values()), 0, list[tuple[Request, int]]()
    for request, count in sorted(counts.items(), key=lambda item: (-item[1], _order(item[0]))):
        if seen >= enough:
            break
        seen += count
        top.append((request, count))
    return top


def _rounded(size: int) -> int:
    """The nearest step of a ladder."""
    return round(SIZE_STEP ** round(math.log(size, SIZE_STEP))) if size > 1 else size


def proportions(counts: Mapping[Request, int]) -> tuple[float, float]:
    """Cpu and memory beside each thousandth of a device, on average over the tasks that ask for devices."""
    with_devices = [(request, count) for request, count in counts.items() if request.devices]
    devices = sum(request.device_milli * count for request, count in with_devices) or 1
    cpu = sum(request.cpu_milli * count for request, count in with_devices) / devices
    memory = sum(request.memory_mib * count for request, count in with_devices) / devices
    return max(cpu, SLIGHT), max(memory, SLIGHT)


def scarcity(counts: Mapping[Request, int], fleet: Fleet) -> Floats:
    """For each model, the share of all demand bound to it over its share of all devices: above 1, it will run out.

    Demand bound to several models is spread over them by size. Demand that may go anywhere is bound to none.
    """
    supply = np.bincount(
        fleet.total.model[fleet.total.model >= 0],
        weights=fleet.total.devices.sum(axis=1)[fleet.total.model >= 0],
        minlength=len(fleet.models),
    )
    bound = np.zeros(len(fleet.models))
    demand = sum(request.device_milli * count for request, count in counts.items())
    for request, count in counts.items():
        allowed = np.array([model in request.models for model in fleet.models], np.bool_)
        reach = supply[allowed].sum() if allowed.any() else 0.0
        if reach and not allowed.all():
            bound[allowed] += request.device_milli * count / demand * supply[allowed] / reach
    return np.divide(bound * supply.sum(), supply, out=np.zeros_like(bound), where=supply > 0)


def _order(request: Request) -> tuple[object, ...]:
    return (request.cpu_milli, request.memory_mib, request.devices, request.milli, request.models)
