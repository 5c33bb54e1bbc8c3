"""The quota tree: who is entitled to how much, and who may take more.

A queue's share of a resource is found from the root down by weighted max-min filling, with its `min` as the floor and
what all its jobs ask for as the wish, running or waiting. Shares therefore do not move when a job goes from running
back to waiting: whoever is within its share after a reclaim is no victim of the next one.

Vectors are tuples over `Tree.resources`, in integer units: thousandths of a cpu or device, MiB.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mainspring.cluster.schedule.waterfill import waterfill
from mainspring.spec import ANY_DEVICE, Queue, Quota, Request, SpecError

Vector = tuple[int, ...]
ENDLESS = 1 << 60
UNITS = {"cpu": 1000, "memory": 1024}
DEVICE_UNIT = 1000
ROOT = 0


@dataclass(frozen=True, slots=True)
class Branch:
    """One queue of the tree in integer units; `parent` and `children` are positions, parents before children.

    `ceiling` is the lesser of `max` and what `borrow` allows; `held` is the part of `floor` that is never lent.
    """

    name: str
    parent: int
    weight: int
    floor: Vector
    ceiling: Vector
    held: Vector
    children: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tree:
    """Queues under one root, which is the cluster. `guarded` resources have a `min` somewhere."""

    resources: tuple[str, ...]
    branches: tuple[Branch, ...]
    position: Mapping[str, int]
    guarded: tuple[bool, ...]

    def leaf(self, name: str) -> int:
        """The position of the leaf `name`; `SpecError` when there is none or jobs cannot wait there."""
        if name not in self.position:
            near = difflib.get_close_matches(name, self.leaves, n=3)
            hint = f"nearest: {', '.join(near)}" if near else f"queues: {', '.join(self.leaves[:8])}"
            raise SpecError(f"no queue {name!r}", hint=hint)
        at = self.position[name]
        if self.branches[at].children:
            inner = ", ".join(self.branches[child].name for child in self.branches[at].children)
            raise SpecError(f"queue {name!r} is divided; jobs wait in its parts", hint=f"one of {inner}")
        return at

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of the queues in which jobs wait."""
        return tuple(branch.name for branch in self.branches[1:] if not branch.children)

    def path(self, at: int) -> tuple[int, ...]:
        """Positions from `at` up to the root."""
        steps = [at]
        while steps[-1] != ROOT:
            steps.append(self.branches[steps[-1]].parent)
        return tuple(steps)

    def below(self, at: int) -> frozenset[int]:
        """Every position under `at`, and `at` itself."""
        inside = {at}
        for position in range(at + 1, len(self.branches)):
            if self.branches[position].parent in inside:
                inside.add(position)
        return frozenset(inside)

    def vector(self, request: Request, *, ranks: int, model: str) -> Vector:
        """What `ranks` of `request` take when they run on `model`; a typed resource counts only its own model."""
        devices = request.device_milli * ranks
        amount = {"cpu": request.cpu_milli * ranks, "memory": request.memory_mib * ranks, ANY_DEVICE: devices}
        if model:
            amount[f"{ANY_DEVICE}/{model}"] = devices
        return tuple(amount.get(resource, 0) for resource in self.resources)


def build_tree(queues: Sequence[Queue], models: Sequence[str]) -> Tree:
    """The tree of `queues` on a cluster with these device models; `SpecError` names what contradicts itself."""
    by_name = {queue.name: queue for queue in queues}
    if len(by_name) < len(queues):
        names = [queue.name for queue in queues]
        raise SpecError(f"queue {next(name for name in names if names.count(name) > 1)!r} is stated twice")
    _check_parents(by_name)
    resources = ("cpu", "memory", ANY_DEVICE, *(f"{ANY_DEVICE}/{model}" for model in models))
    for queue in queues:
        _check_resources(queue, resources, models)
    ordered = _parents_first(by_name)
    position = {name: index + 1 for index, name in enumerate(ordered)}
    endless = (ENDLESS,) * len(resources)
    branches = [Branch(name="", parent=ROOT, weight=1, floor=endless, ceiling=endless, held=(0,) * len(resources))]
    branches += [_branch(by_name[name], position, resources) for name in ordered]
    _raise_floors(branches, by_name, resources)
    return plant(resources, branches)


def plant(resources: tuple[str, ...], branches: Sequence[Branch]) -> Tree:
    """The tree of `branches`, which name their parents; children are found here."""
    children: dict[int, list[int]] = {}
    for index, branch in enumerate(branches[1:], start=1):
        children.setdefault(branch.parent, []).append(index)
    return Tree(
        resources=resources,
        branches=tuple(replace(branch, children=tuple(children.get(i, ()))) for i, branch in enumerate(branches)),
        position={branch.name: index for index, branch in enumerate(branches)},
        guarded=tuple(any(branch.floor[r] for branch in branches[1:]) for r in range(len(resources))),
    )


def divide(tree: Tree, total: Vector, asked: Sequence[Sequence[int]]) -> tuple[Vector, ...]:
    """The share of every branch, given what the gangs of each leaf ask for, running and waiting together."""
    shares = [[0] * len(tree.resources) for _ in tree.branches]
    for r in range(len(tree.resources)):
        wants = _wishes(tree, r, asked)
        shares[ROOT][r] = total[r]
        for at, branch in enumerate(tree.branches if wants[ROOT] else ()):
            inner = branch.children
            parts = [wants[child] for child in inner]
            if sum(parts) > shares[at][r]:
                parts = waterfill(
                    shares[at][r],
                    wants=parts,
                    floors=[tree.branches[child].floor[r] for child in inner],
                    weights=[tree.branches[child].weight for child in inner],
                )
            for child, part in zip(inner, parts, strict=True):
                shares[child][r] = part
    return tuple(tuple(share) for share in shares)


def _wishes(tree: Tree, r: int, asked: Sequence[Sequence[int]]) -> list[int]:
    """What each branch would have if it could; what is never lent counts as wished for."""
    wants = [0] * len(tree.branches)
    for at in range(len(tree.branches) - 1, ROOT, -1):
        branch = tree.branches[at]
        own = wants[at] if branch.children else asked[at][r]
        wants[at] = max(min(own, branch.ceiling[r]), branch.held[r])
        wants[branch.parent] += wants[at]
    return wants


def unit(resource: str) -> int:
    """How many integer units one of a person's units has."""
    return UNITS.get(resource, DEVICE_UNIT)


def _check_parents(by_name: Mapping[str, Queue]) -> None:
    for queue in by_name.values():
        if queue.parent and queue.parent not in by_name:
            near = difflib.get_close_matches(queue.parent, by_name, n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            raise SpecError(f"queue {queue.name!r} hangs under {queue.parent!r}, which does not exist", hint=hint)
    for start in by_name:
        walked, at = [start], by_name[start].parent
        while at:
            walked.append(at)
            if at == start:
                raise SpecError(
                    f"the queues form a circle: {' under '.join(walked)}", hint="one of them hangs under no other"
                )
            if walked.count(at) > 1:
                break
            at = by_name[at].parent


def _check_resources(queue: Queue, resources: Sequence[str], models: Sequence[str]) -> None:
    for quota in queue.quotas:
        if quota.resource in resources:
            continue
        near = difflib.get_close_matches(quota.resource, resources, n=3, cutoff=0.4)
        kind = "model of device" if quota.resource.startswith(f"{ANY_DEVICE}/") else "resource"
        raise SpecError(
            f"queue {queue.name!r} has a quota of {quota.resource!r}, which is no {kind} of this cluster",
            hint=f"nearest: {', '.join(near)}" if near else f"models here: {', '.join(models) or 'none'}",
        )


def _raise_floors(branches: list[Branch], by_name: Mapping[str, Queue], resources: Sequence[str]) -> None:
    """A parent that states no quota has what its parts have; one that does must have as much as they together.

    What is guaranteed of a model is guaranteed of any: "10 of any type, of which 4 A100" are 10 in all, and 4 A100
    alone are 4.
    """
    general = resources.index(ANY_DEVICE)
    inner = [[0] * len(resources) for _ in branches]
    for at in range(len(branches) - 1, ROOT, -1):
        branch, stated = branches[at], {quota.resource for quota in by_name[branches[at].name].quotas}
        floor = list(branch.floor)
        for r, resource in enumerate(resources):
            if resource not in stated:
                floor[r] = inner[at][r]
            elif inner[at][r] > floor[r]:
                have, together = floor[r] / unit(resource), inner[at][r] / unit(resource)
                raise SpecError(
                    f"the minima of {resource} under queue {branch.name!r} add up to {together:g}, above its {have:g}",
                    hint="raise the parent's min or lower those of its parts",
                )
        typed = sum(floor[general + 1 :])
        most, which = (floor[general], "min") if branch.floor[general] else (branch.ceiling[general], "limit")
        if typed > most:
            raise SpecError(
                f"queue {branch.name!r} has a {which} of {most / unit(ANY_DEVICE):g} devices, "
                f"and minima of {typed / unit(ANY_DEVICE):g} of certain models",
                hint=f"the {which} of devices counts all models together",
            )
        floor[general] = max(floor[general], typed)
        for r, amount in enumerate(floor):
            inner[branch.parent][r] += amount
        branches[at] = replace(branch, floor=tuple(floor))


def _parents_first(by_name: Mapping[str, Queue]) -> list[str]:
    """Names in order of depth, then name."""

    def depth(name: str) -> int:
        return 1 + depth(by_name[name].parent) if by_name[name].parent else 0

    return sorted(by_name, key=lambda name: (depth(name), name))


def _branch(queue: Queue, position: Mapping[str, int], resources: Sequence[str]) -> Branch:
    stated = {quota.resource: quota for quota in queue.quotas}
    floor, ceiling, held = [], [], []
    for resource in resources:
        quota, size = stated.get(resource, Quota(resource=resource)), unit(resource)
        lowest = round(quota.min * size)
        highest = ENDLESS if quota.max is None else round(quota.max * size)
        borrowed = ENDLESS if quota.borrow is None else lowest + round(quota.borrow * size)
        floor.append(lowest)
        ceiling.append(min(highest, borrowed))
        held.append(0 if quota.lend is None else max(0, lowest - round(quota.lend * size)))
    return Branch(
        name=queue.name,
        parent=position.get(queue.parent, ROOT),
        weight=queue.weight,
        floor=tuple(floor),
        ceiling=tuple(ceiling),
        held=tuple(held),
    )
