"""The best plan for training a model on a cluster, and why not the others.

Branch and bound over `space`: frames in the order of the least they could cost, refined until no frame left could be
better than what was found. Stages are cut by `partition`, schedules are run event by event by `simulate`. Nothing is
measured, nothing is left to chance: the same question gets the same answer.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import get_args

from mainspring.plan import price
from mainspring.plan.bounds import Bounds
from mainspring.plan.copies import in_copies
from mainspring.plan.estimate import Estimate
from mainspring.plan.floor import estimator_of, remedies, smallest
from mainspring.plan.layout import Layout
from mainspring.plan.limits import EXECUTABLE, Limits
from mainspring.plan.offers import Offer
from mainspring.plan.outcome import (
    indivisible_batch,
    keep_best,
    lacking,
    plan_of,
    rank_key,
    rejected,
    too_large,
)
from mainspring.plan.refine import CLOSE, Refiner
from mainspring.plan.space import Space, indivisible, tensor_parallel
from mainspring.spec import (
    AXES,
    Cluster,
    DoesNotFit,
    Hints,
    Mesh,
    ModelSpec,
    Objective,
    Plan,
    SpecError,
    TrainConfig,
    Unavailable,
)

FREE = Hints()
RATES = {"time": price.nothing, "cost": price.usd_per_hour, "energy": price.watts}


@dataclass(slots=True)
class Found:
    """What a search has seen: the best, and the best of each mesh (those that do not fit by what they lack)."""

    best: Estimate | None = None
    offer: Offer | None = None
    by_mesh: dict[Mesh, Estimate] = field(default_factory=dict[Mesh, Estimate])
    examined: int = 0

    def least(self) -> Estimate | None:
        """The choice that came nearest to fitting."""
        return min(self.by_mesh.values(), key=lacking, default=None)


def plan_training(
    model: ModelSpec,
    cluster: Cluster,
    config: TrainConfig,
    *,
    ranks: int | None = None,
    objective: Objective = "time",
    hints: Hints = FREE,
    limits: Limits = EXECUTABLE,
) -> Plan:
    """The plan that needs least of `objective`; with `ranks`, on exactly that many, else on any number.

    Only what `limits` allow is considered, and of it what `hints` ask for. Raises `SpecError` for a request that makes
    no sense, `DoesNotFit`, with what is missing and what would do, when nothing fits, and `Unavailable` while no device
    is healthy.
    """
    space = Space(model, cluster, config, hints=hints, limits=limits, ranks=ranks)
    check(space, objective)
    found = search(space, objective)
    if found.best is None:
        _settle(found, space)
    assert found.best is not None
    assert found.offer is not None
    estimator = estimator_of(space)
    plan = plan_of(estimator, cluster, config, found.best, offer=found.offer, objective=objective)
    plan = in_copies(plan, estimator, found.best, hints)
    others = (*found.by_mesh.values(), *alternatives(space, found.best.choice.mesh, objective))
    return replace(plan, rejected=rejected(found.best, others, objective))


def menu(
    model: ModelSpec,
    cluster: Cluster,
    config: TrainConfig,
    *,
    objective: Objective = "time",
    hints: Hints = FREE,
    limits: Limits = EXECUTABLE,
) -> tuple[Plan, ...]:
    """One plan for each resource offer: 1, 2, 4 ... ranks and all of them, save those that nothing fits on."""
    space = Space(model, cluster, config, hints=hints, limits=limits, ranks=None)
    check(space, objective)
    most = space.capacity()
    sizes = sorted({1 << power for power in range(most.bit_length())} | {most})
    plans: list[Plan] = []
    last: SpecError | None = None
    for ranks in sizes:
        try:
            plans.append(
                plan_training(model, cluster, config, ranks=ranks, objective=objective, hints=hints, limits=limits)
            )
        except SpecError as error:
            last = error
    if not plans and last is not None:
        raise last
    return tuple(plans)


def search(space: Space, objective: Objective) -> Found:
    """Every frame that could hold the best plan, refined."""
    found = Found()
    bounds = Bounds(estimator_of(space))
    refiner = Refiner(space, bounds)
    best = math.inf

    def rate_of(layout: Layout, mesh: Mesh) -> float:
        return RATES[objective](layout, mesh)

    for floor, frame in space.ordered(bounds, rate_of):
        if floor >= best:
            break
        beat_s = best / rate_of(frame.layout, frame.mesh)
        for estimate in refiner.estimates(frame, beat_s=beat_s):
            found.examined += 1
            keep_best(found.by_mesh, estimate, objective)
            if not estimate.fits:
                continue
            if found.best is None or rank_key(estimate, objective) < rank_key(found.best, objective):
                found.best, found.offer = estimate, frame.offer
                best = min(best, rank_key(estimate, objective)[0] * CLOSE)
    return found


def _settle(found: Found, space: Space) -> None:
    """Take what fits at all where the search, whose cuts are fast ones, has found nothing; refuse what cannot fit."""
    floor = smallest(space)
    if floor is not None and floor.estimate.fits:
        found.best, found.offer = floor.estimate, floor.offer
        return
    nearest = [each for each in (floor and floor.estimate, found.least()) if each is not None]
    if not nearest:
        raise indivisible_batch(space.config, space.ranks, space.hints)
    least = min(nearest, key=lacking)
    raise too_large(space.model, least, remedies(space, least))


def alternatives(space: Space, best: Mesh, objective: Objective) -> Iterator[Estimate]:
    """The best on meshes of as many ranks that a reader would have tried: each free axis given up for another."""
    tried = {best}
    for source, target in itertools.product(("pp", "tp", "cp", "ep", "fsdp", "dp"), ("dp", "fsdp", "tp", "pp")):
        degree: int = getattr(best, source)
        mesh = replace(best, **{source: 1, target: getattr(best, target) * degree}) if source != target else best
        wanted = all(getattr(space.hints, axis) in (0, getattr(mesh, axis)) for axis in AXES)
        if mesh in tried or not wanted or not space.limits.allows(mesh):
            continue
        tried.add(mesh)
        asked = _narrowed(space, mesh)
        found = search(asked, objective)
        if found.best is not None:
            yield found.best
        elif (floor := smallest(asked)) is not None:
            yield floor.estimate


def _narrowed(space: Space, mesh: Mesh) -> Space:
    """`space` with no other mesh than `mesh`."""
    hints = replace(space.hints, **{axis: getattr(mesh, axis) for axis in AXES})
    return Space(space.model, space.cluster, space.config, hints=hints, limits=space.limits, ranks=mesh.world)


def check(space: Space, objective: Objective) -> None:
    """Refuse a request that makes no sense, with its numbers."""
    model, cluster, config, ranks = space.model, space.cluster, space.config, space.ranks
    if objective not in get_args(Objective):
        raise SpecError(f"no objective {objective!r}", hint="known: " + ", ".join(get_args(Objective)))
    if not model.blocks or model.params < 1:
        raise SpecError(f"model {model.name!r} has no parameters to train")
    for block in model.blocks:
        if block.experts and not block.expert_params:
            raise SpecError(f"block {block.name!r} of {model.name!r} has {block.experts} experts without parameters")
    most = space.capacity()
    if not most:
        raise Unavailable(f"cluster {cluster.name!r} has no healthy device", hint=_sickness(cluster))
    if objective == "cost":
        free = {d.name for node in cluster.nodes for d in node.devices if not d.price_usd_per_hour}
        if free:
            raise SpecError(
                f"no price is known for {', '.join(sorted(free))}, so plans cannot be compared by cost",
                hint="give price_usd_per_hour in the cluster file, or choose by time or energy",
            )
    if ranks is not None:
        _check_ranks(cluster, config, ranks, most, alone=space.limits.axes <= {"dp", "fsdp"})
    _check_hints(space)


def _check_ranks(cluster: Cluster, config: TrainConfig, ranks: int, most: int, *, alone: bool) -> None:
    if ranks < 1:
        raise SpecError(f"ranks must be at least 1, got {ranks}")
    if ranks > most:
        raise DoesNotFit(
            f"{ranks} ranks were asked for, cluster {cluster.name!r} has room for {most}",
            hint="one rank needs one accelerator, or one core of a host without accelerators",
        )
    if alone and config.global_batch < ranks:
        raise SpecError(
            f"a global batch of {config.global_batch} sequences is smaller than {ranks} ranks",
            hint=f"raise global_batch to a multiple of {ranks}, or use {config.global_batch} ranks",
        )


def _check_hints(space: Space) -> None:
    """Refuse degrees that the model or what can be executed does not have."""
    hints, model, limits = space.hints, space.model, space.limits
    for axis in ("pp", "cp", "ep", "tp"):
        asked: int = getattr(hints, axis)
        if asked > 1 and axis not in limits.axes:
            raise SpecError(f"{axis} {asked} was asked for, and training cannot execute the axis {axis} yet")
    if hints.tp > 1 and tensor_parallel(model, hints.tp, hints) is None:
        raise indivisible(model, hints.tp)
    experts = sorted({block.experts for block in model.blocks if block.experts})
    if hints.ep > 1 and not space.divides_experts(hints.ep):
        said = f"{experts} experts" if experts else "no experts"
        raise SpecError(f"ep {hints.ep} was asked for, {model.name} has {said}", hint="ep must divide their number")
    if hints.pp > 1 and not model.chain:
        said = f": {model.unchained}" if model.unchained else ""
        raise SpecError(
            f"pp {hints.pp} was asked for, {model.name} is no chain of blocks that could be cut{said}",
            hint="leave pp out, or have the model hand one tensor on through a ModuleList, each entry called once",
        )
    if hints.cp > 1 and model.unshared:
        raise SpecError(
            f"cp {hints.cp} was asked for, and ranks cannot share a sequence of {model.name}: {model.unshared}",
            hint="leave cp out",
        )
    if hints.pp > space.unit_count:
        raise SpecError(f"pp {hints.pp} was asked for, {model.name} has {space.unit_count} blocks to cut between")
    replicas = math.prod(max(1, getattr(hints, axis)) for axis in ("dp", "fsdp", "ep"))
    if replicas > space.config.global_batch:
        raise SpecError(
            f"a global batch of {space.config.global_batch} sequences is smaller than {replicas} replicas",
            hint=f"raise global_batch to a multiple of {replicas}",
        )


def _sickness(cluster: Cluster) -> str:
    said = [f"{h.device}: {', '.join(h.reasons)}" for node in cluster.nodes for h in node.health if h.reasons]
    return "; ".join(said) or "describe machines in a cluster file to plan for them"
