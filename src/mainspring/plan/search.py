"""The best plan for training a model on a cluster, and why not the others.

Branch and bound over `space`: frames in the order of the least they could cost, refined until no frame left could be
better than what was found. Stages are cut by `partition`, schedules are run event by event by `simulate`. Nothing is
measured, nothing is left to chance: the same question gets the same answer.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mainspring.plan import price
from mainspring.plan.bounds import Bounds
from mainspring.plan.copies import in_copies
from mainspring.plan.estimate import Estimate
from mainspring.plan.floor import estimator_of, remedies, smallest
from mainspring.plan.layout import Layout
from mainspring.plan.limits import EXECUTABLE, Limits
from mainspring.plan.offers import Offer
from mainspring.plan.outcome import (
    keep_best,
    lacking,
    plan_of,
    rank_key,
    rejected,
    too_large,
)
from mainspring.plan.refine import CLOSE, Refiner
from mainspring.plan.space import Space
from mainspring.plan.wishes import check, impossible
from mainspring.spec import (
    AXES,
    Cluster,
    Hints,
    Mesh,
    ModelSpec,
    Objective,
    Plan,
    SpecError,
    TrainConfig,
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
        raise impossible(space)
    least = min(nearest, key=lacking)
    raise too_large(space.model, least, remedies(space, least))


def alternatives(space: Space, best: Mesh, objective: Objective) -> Iterator[Estimate]:
    """The best on meshes of as many ranks that a reader would have tried: each free axis given up for another."""
    tried = {best}
    for source, target in itertools.product(("pp", "tp", "cp", "ep", "fsdp", "dp"), ("dp", "fsdp", "tp", "pp")):
        degree: int = getattr(best, source)
        mesh = replace(best, **{source: 1, target: getattr(best, target) * degree}) if source != target else best
        wanted = all(getattr(space.hints, axis) in (0, getattr(mesh, axis)) for axis in AXES)
        if mesh in tried or not wanted or not space.limits.allows(mesh) or space.needs(mesh):
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
