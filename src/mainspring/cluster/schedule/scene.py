"""A described cluster as the scheduler's state: who runs is put where he runs, and who waits is decided about.

What `mainspring why`, `queue`, `nodes` and `gather` say, of the cluster at hand or of one in a file, is asked of this
state. Opening a scene decides on paper only.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mainspring.cluster.schedule.changes import apply_change
from mainspring.cluster.schedule.decide import Outcome, decide
from mainspring.cluster.schedule.gang import Place, choose_devices
from mainspring.cluster.schedule.gather import hold_pools, leaf_of, plan_gather
from mainspring.cluster.schedule.state import State, add, arrive, build_state, hold, new_entry
from mainspring.spec import (
    Decision,
    Gang,
    GatherPlan,
    NodeChanged,
    NotFound,
    Queue,
    Scene,
    SpecError,
    Standing,
    Submitted,
)

HOUR_MS = 3_600_000


def open_scene(scene: Scene) -> Outcome:
    """The state of a scene, and what was decided about its gangs when they came, one by one.

    Raises `SpecError` for a gang said to run where there is no room for it.
    """
    state = build_state(scene.machines, scene.queues or _named(scene), levels=scene.levels, rules=scene.rules)
    hold_pools(state, scene.pools, (each.gang for each in scene.running), now_ms=scene.now_ms)
    sick = {machine.name: machine.sick for machine in scene.machines}
    for name in scene.closed:
        apply_change(state, NodeChanged(node=name, open=False, sick=sick.get(name, ())))
    oldest = max((each.ran_ms for each in scene.running), default=0)
    came_ms = max(0, oldest - scene.now_ms)
    for standing in sorted(scene.running, key=lambda each: -each.ran_ms):
        _stand(state, standing, now_ms=came_ms + scene.now_ms)
    decisions: list[Decision] = []
    for gang in scene.gangs:
        outcome = decide(state, [Submitted(gang=gang)], now_ms=came_ms)
        state, decisions = outcome.state, [*decisions, *outcome.decisions]
    outcome = decide(state, [], now_ms=came_ms + scene.now_ms)
    state, decisions = outcome.state, [*decisions, *outcome.decisions]
    for lined in scene.line:
        entry = new_entry(state, lined.gang, state.tree.leaf(lined.gang.queue))
        arrive(state, replace(entry, reason=lined.reason))
    return Outcome(state, tuple(decisions))


def plan_in_scene(scene: Scene, queue: str, target: Gang | str, *, hours: float) -> GatherPlan:
    """What gathering would do for a gang that does not run yet: one that is described, or the scene's own by name."""
    if hours <= 0:
        raise SpecError(f"quotas cannot be pooled for {hours:g} hours", hint="say for how long at most: --hours 24")
    if isinstance(target, str):
        known = (*scene.gangs, *(each.gang for each in scene.line))
        gang = next((each for each in known if each.id == target), None)
        if gang is None:
            runs = any(each.gang.id == target for each in scene.running)
            waiting = ", ".join(each.id for each in known[:8])
            raise NotFound(
                f"{target} runs already" if runs else f"no gang {target!r} waits",
                hint=f"there are {waiting}" if waiting else "describe one, with how many ranks it has",
            )
        others = tuple(each for each in scene.gangs if each.id != target)
        scene = replace(scene, gangs=others, line=tuple(each for each in scene.line if each.gang.id != target))
    else:
        gang = target
    state = open_scene(scene).state
    return plan_gather(state, queue, gang, until_ms=state.now_ms + round(hours * HOUR_MS))


def _named(scene: Scene) -> tuple[Queue, ...]:
    """A queue without limits for every name of one."""
    gangs = (*(each.gang for each in (*scene.running, *scene.line)), *scene.gangs)
    return tuple(Queue(name=name) for name in sorted({gang.queue for gang in gangs}))


def _stand(state: State, standing: Standing, *, now_ms: int) -> None:
    """Write a running gang into the books, as of when it started."""
    gang = standing.gang
    if gang.id in state.entries:
        raise SpecError(f"gang {gang.id} is said to run twice")
    place = _place_of(state, standing)
    entry = new_entry(state, gang, leaf_of(state, gang))
    add(state.asked[entry.leaf], entry.asked)
    held = hold(state, entry, place)
    times = {"started_ms": now_ms - standing.ran_ms, "saved_ms": now_ms - standing.saved_ms}
    state.entries[gang.id] = replace(held, arrived_ms=times["started_ms"], **times)


def _place_of(state: State, standing: Standing) -> Place:
    gang, fleet = standing.gang, state.fleet
    unknown = sorted(set(standing.nodes) - set(fleet.names))
    if unknown:
        raise SpecError(f"gang {gang.id} is said to run on {unknown[0]}, which is no node of this cluster")
    nodes = np.array([fleet.names.index(name) for name in standing.nodes], np.int64)
    devices = np.array(standing.devices or (0,) * gang.ranks, np.int64)
    for n in np.unique(nodes):
        here = nodes == n
        devices[here] = _devices_on(state, int(n), standing, [int(bits) for bits in devices[here]])
    models = {int(fleet.total.model[n]) for n in np.unique(nodes)}
    if gang.request.devices and len(models) > 1:
        raise SpecError(f"gang {gang.id} is said to run on {len(models)} models of device; all its ranks have the same")
    return Place(nodes=nodes, devices=devices, model=fleet.models[models.pop()] if gang.request.devices else "")


def _devices_on(state: State, n: int, standing: Standing, given: Sequence[int]) -> Sequence[int]:
    """The devices of the gang's ranks on one node, where they are free."""
    request, free = standing.gang.request, state.fleet.free.devices[n]
    if not request.devices:
        return given
    if int((free // request.milli).sum()) < request.devices * len(given):
        raise SpecError(
            f"gang {standing.gang.id} is said to hold {request.device_milli * len(given) / 1000:g} devices of "
            f"{state.fleet.names[n]}, which has {int(free.sum()) / 1000:g} left"
        )
    if not any(given):
        return choose_devices(free, request, len(given))
    for bits in given:
        numbers = [number for number in range(bits.bit_length()) if bits >> number & 1]
        if len(numbers) != request.devices or any(number >= len(free) for number in numbers):
            raise SpecError(f"gang {standing.gang.id} needs {request.devices} devices a rank, and is given {numbers}")
        if any(free[number] < request.milli for number in numbers):
            raise SpecError(f"devices {numbers} of {state.fleet.names[n]} are taken already or sick")
    return given
