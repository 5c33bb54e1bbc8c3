"""`simulate`: fill a cluster from a node list with a task list, under one policy, over several seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mainspring.cluster.schedule.fleet import Fleet, build_fleet
from mainspring.cluster.schedule.placer import PLAIN, Policy
from mainspring.cluster.simulate.inflate import Demand, arrivals, build_demand, capacity, inflate
from mainspring.cluster.simulate.trace import read_machines, read_requests
from mainspring.cluster.simulate.tune import build_shadow, tune
from mainspring.spec import (
    Knob,
    LoadPoint,
    LoadResult,
    PolicyName,
    Progress,
    Request,
    Simulation,
    SpecError,
    silent,
)

FIRST_SEED = 42
HIGHEST_LOAD = 10.0


def simulate(
    nodes: str | Path,
    pods: str | Path,
    *,
    policy: PolicyName = "plain",
    loads: Sequence[float] = (1.0, 1.3),
    seeds: int = 10,
    progress: Progress = silent,
) -> Simulation:
    """How much of the cluster in the file `nodes` the tasks in `pods` fill, at each load, on average over `seeds`.

    Raises `SpecError` for files that make no sense, and for loads that no cluster can have.
    """
    loads = tuple(sorted(set(loads)))
    if not loads or loads[0] <= 0 or loads[-1] > HIGHEST_LOAD or seeds < 1:
        raise SpecError(f"loads lie above 0 and up to {HIGHEST_LOAD:g}, and seeds are at least 1: {loads}, {seeds}")
    machines, tasks = read_machines(nodes), read_requests(pods)
    fleet = build_fleet(machines)
    demand = build_demand(tasks, fleet)
    chosen = PLAIN
    if policy == "tuned":
        chosen = tune(build_shadow(machines, demand, loads=loads), progress=progress)
    points = sorted({*loads, *(tenth / 10 for tenth in range(1, int(10 * loads[-1]) + 1))})
    trials: list[tuple[LoadPoint, ...]] = []
    for number in range(seeds):
        trials.append(fill(fleet, demand, policy=chosen, loads=points, number=number))
        progress((number + 1) / seeds, f"seed {number + 1} of {seeds}")
    curve = tuple(_mean([trial[index] for trial in trials]) for index in range(len(points)))
    return Simulation(
        policy=policy,
        nodes=len(machines),
        devices=sum(machine.devices for machine in machines),
        tasks=len(tasks),
        classes=len(demand.requests),
        impossible=_impossible(fleet, demand),
        knobs=tuple(Knob(name=name, value=value) for name, value in asdict(chosen).items()),
        loads=tuple(at for at in curve if at.load in loads),
        curve=curve,
        unknown=tuple(sorted({model for task in demand.requests for model in task.models} - set(fleet.models))),
    )


def fill(
    fleet: Fleet, demand: Demand, *, policy: Policy, loads: Sequence[float], number: int = 0
) -> tuple[LoadPoint, ...]:
    """One filling of a copy of `fleet`, by the `number`th order of arrival, looked at at each of `loads`."""
    classes = arrivals(demand, until=loads[-1] * capacity(fleet), seed=FIRST_SEED + number)
    return inflate(fleet.copy(), demand, classes, policy=policy, loads=loads)


def _mean(points: Sequence[LoadPoint]) -> LoadResult:
    by_seed = tuple(point.allocation_percent for point in points)
    return LoadResult(
        load=points[0].load,
        allocation_percent=statistics.fmean(by_seed),
        deviation=statistics.pstdev(by_seed),
        cpu_percent=statistics.fmean(point.cpu_percent for point in points),
        memory_percent=statistics.fmean(point.memory_percent for point in points),
        waste_percent=statistics.fmean(point.waste_percent for point in points),
        placed=statistics.fmean(point.placed for point in points),
        turned_away=statistics.fmean(point.turned_away for point in points),
        by_seed=by_seed,
    )


def _impossible(fleet: Fleet, demand: Demand) -> int:
    """How many of the tasks fit on no empty node."""
    return sum(count for request, count in demand.counts.items() if not _fits_somewhere(fleet, request))


def _fits_somewhere(fleet: Fleet, request: Request) -> bool:
    total = fleet.total
    able = (total.cpu >= request.cpu_milli) & (total.memory >= request.memory_mib)
    if request.devices:
        able &= (total.devices >= request.milli).sum(axis=1) >= request.devices
        if request.models:
            able &= [model >= 0 and fleet.models[model] in request.models for model in total.model]
    return bool(able.any())
