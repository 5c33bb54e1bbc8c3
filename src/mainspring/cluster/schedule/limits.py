"""Whether the quota tree lets a gang start, and the sentence that says why not."""

from mainspring.cluster.schedule.fleet import Fleet, copy_nodes
from mainspring.cluster.schedule.gang import find_place, usable_nodes
from mainspring.cluster.schedule.quota import ROOT, Vector, unit
from mainspring.cluster.schedule.state import Entry, State
from mainspring.spec import Gang


def models_for(state: State, gang: Gang) -> tuple[str, ...]:
    """Models the gang may run on, those first that no queue has a guarantee of, then those with most free devices.

    All ranks of a gang run on one model. Without devices there is one choice, no model.
    """
    if not gang.request.devices:
        return ("",)
    fleet, tree = state.fleet, state.tree
    able = [model for model in fleet.models if not gang.request.models or model in gang.request.models]
    free = {model: int(fleet.free.devices[fleet.total.model == fleet.models.index(model)].sum()) for model in able}
    guarded = {model: tree.guarded[tree.resources.index(f"devices/{model}")] for model in able}
    return tuple(sorted(able, key=lambda model: (guarded[model], -free[model], model)))


def refusal(state: State, entry: Entry) -> str:
    """Why a gang could not start even if nothing else ran and all nodes were well; empty when it could."""
    gang, fleet = entry.gang, state.fleet
    empty = Fleet(fleet.names, fleet.models, fleet.total, copy_nodes(fleet.total))
    unknown = [model for model in gang.request.models if model not in fleet.models]
    reasons: list[str] = []
    for model in models_for(state, gang):
        vector = state.tree.vector(gang.request, ranks=gang.ranks, model=model)
        if reason := never_possible(state, entry, vector):
            reasons.append(reason)
        elif find_place(empty, state.topology, gang, model, usable_nodes(empty, gang, model)) is not None:
            return ""
    if reasons:
        return reasons[0]
    if unknown and len(unknown) == len(gang.request.models):
        return f"no node has a {' or a '.join(unknown)}; there are {', '.join(fleet.models) or 'no devices'}"
    inside = f" within one {gang.level}" if gang.level and gang.binding == "required" else ""
    return f"the whole cluster ({len(fleet.names)} nodes) has no room for its {gang.ranks} ranks{inside}"


def over_limit(state: State, entry: Entry, vector: Vector, total: Vector) -> str:
    """Which limit the gang would break if it held `vector` too; empty when none."""
    tree, used = state.tree, state.used
    if not entry.gang.preemptible and (reason := _over_floor(state, entry, vector)):
        return reason
    for at in tree.path(entry.leaf):
        branch = tree.branches[at]
        reserved = _never_lent(state, at, entry.leaf) if branch.children else None
        if at == ROOT and reserved is None:
            break  # what the whole cluster can hold is a question of room
        ceiling = total if at == ROOT else branch.ceiling
        for r, value in enumerate(vector):
            room = ceiling[r] - (reserved[r] if reserved else 0)
            if value and used[at][r] + value > room:
                name = f"queue {branch.name!r}" if at else "the cluster"
                kept = f", {_said(state, reserved[r], r)} of it kept for others" if reserved and reserved[r] else ""
                return (
                    f"{name} may hold {_said(state, ceiling[r], r)} {tree.resources[r]}{kept} and holds "
                    f"{_said(state, used[at][r], r)}; this gang needs {_said(state, value, r)}"
                )
    return ""


def never_possible(state: State, entry: Entry, vector: Vector) -> str:
    """Which limit the gang would break even if it were alone; empty when none."""
    tree = state.tree
    for at in tree.path(entry.leaf)[:-1]:
        branch = tree.branches[at]
        for r, value in enumerate(vector):
            if value > branch.ceiling[r]:
                return (
                    f"needs {_said(state, value, r)} {tree.resources[r]}, and queue {branch.name!r} may never hold "
                    f"more than {_said(state, branch.ceiling[r], r)}"
                )
            if value and not entry.gang.preemptible and tree.guarded[r] and value > branch.floor[r]:
                return (
                    f"is not preemptible and needs {_said(state, value, r)} {tree.resources[r]}, above the min of "
                    f"{_said(state, branch.floor[r], r)} of queue {branch.name!r}"
                )
    return ""


def _over_floor(state: State, entry: Entry, vector: Vector) -> str:
    """Work that cannot be stopped stays within the guarantee of its queue and of all queues above."""
    tree = state.tree
    for at in tree.path(entry.leaf)[:-1]:
        for r, value in enumerate(vector):
            floor, fixed = tree.branches[at].floor[r], state.fixed[at][r]
            if value and tree.guarded[r] and fixed + value > floor:
                return (
                    f"not preemptible: of its min of {_said(state, floor, r)} {tree.resources[r]}, queue "
                    f"{tree.branches[at].name!r} has {_said(state, fixed, r)} in such use; this gang needs "
                    f"{_said(state, value, r)}"
                )
    return ""


def _never_lent(state: State, at: int, leaf: int) -> list[int] | None:
    """What parts of branch `at`, other than the one that `leaf` is in, keep for themselves and do not use."""
    tree = state.tree
    mine = frozenset(tree.path(leaf))
    kept = [child for child in tree.branches[at].children if child not in mine and any(tree.branches[child].held)]
    if not kept:
        return None
    return [
        sum(max(0, tree.branches[child].held[r] - state.used[child][r]) for child in kept)
        for r in range(len(tree.resources))
    ]


def _said(state: State, value: int, r: int) -> str:
    return f"{value / unit(state.tree.resources[r]):g}"
