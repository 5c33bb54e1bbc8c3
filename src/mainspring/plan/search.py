"""The best plan for training a model on a cluster, and why not the others.

Every combination of devices, dp and fsdp degrees, ZeRO stage, micro-batch and recomputation is estimated in closed
form and the best that fits is chosen: a few thousand estimates, no measurement, the same answer every time. Tensor,
pipeline, context and expert parallelism are further axes of `Choice.mesh`; they enter in `choices` and `Estimator`.
"""

from collections.abc import Iterator, Sequence
from typing import get_args

from mainspring.plan import price
from mainspring.plan.estimate import Choice, Estimate, Estimator
from mainspring.plan.flops import model_flops, peak_flops_per_s
from mainspring.plan.layout import HOST, capacity, divisors, offers
from mainspring.plan.memory import USABLE, rank_memory
from mainspring.spec import (
    Cluster,
    DoesNotFit,
    Mesh,
    ModelSpec,
    Objective,
    Plan,
    Recompute,
    Rejected,
    SpecError,
    Stage,
    TrainConfig,
)
from mainspring.spec.plan import readable_bytes

RECOMPUTE: tuple[Recompute, ...] = ("none", "full")
REJECTED_SHOWN = 5
MOST_RANKS = 1 << 16


def plan_training(
    model: ModelSpec,
    cluster: Cluster,
    config: TrainConfig,
    *,
    ranks: int | None = None,
    objective: Objective = "time",
) -> Plan:
    """The plan that needs least of `objective`; with `ranks`, on exactly that many, else on any number.

    Raises `SpecError` for a batch that cannot be cut, and `DoesNotFit`, with what is missing and what would do, when
    nothing fits.
    """
    _check(model, cluster, config, ranks=ranks, objective=objective)
    found = estimates(model, cluster, config, ranks=ranks)
    if not found:
        raise _indivisible(config, ranks)
    fitting = [estimate for estimate in found if estimate.fits]
    if not fitting:
        raise _too_large(model, config, found)
    best = min(fitting, key=lambda estimate: rank_key(estimate, objective))
    return _plan(model, cluster, config, best, objective=objective, rejected=_rejected(best, found, objective))


def menu(model: ModelSpec, cluster: Cluster, config: TrainConfig, *, objective: Objective = "time") -> tuple[Plan, ...]:
    """One plan for each resource offer: 1, 2, 4 ... ranks and all of them, save those that nothing fits on."""
    _check(model, cluster, config, ranks=None, objective=objective)
    most = min(capacity(cluster), config.global_batch)
    sizes = sorted({1 << power for power in range(most.bit_length())} | {most})
    plans: list[Plan] = []
    last: SpecError | None = None
    for ranks in sizes:
        try:
            plans.append(plan_training(model, cluster, config, ranks=ranks, objective=objective))
        except SpecError as error:
            last = error
    if not plans and last is not None:
        raise last
    return tuple(plans)


def estimates(model: ModelSpec, cluster: Cluster, config: TrainConfig, *, ranks: int | None = None) -> list[Estimate]:
    """What every choice costs, those that do not fit included."""
    estimator = Estimator(model, cluster, config)
    found = (estimator(choice) for choice in choices(cluster, config, ranks=ranks))
    return [estimate for estimate in found if estimate is not None]


def choices(cluster: Cluster, config: TrainConfig, *, ranks: int | None = None) -> Iterator[Choice]:
    """The search space, in a fixed order."""
    all_rows = (config.microbatch,) if config.microbatch else divisors(config.global_batch)
    for offer in offers(cluster, global_batch=config.global_batch, ranks=ranks):
        world = len(offer.ranks)
        for fsdp in divisors(world):
            for regather in (False,) if fsdp == 1 else (False, True):
                for rows in all_rows:
                    if rows * world > config.global_batch:
                        continue
                    for recompute in RECOMPUTE:
                        yield Choice(
                            offer=offer,
                            mesh=Mesh(dp=world // fsdp, fsdp=fsdp),
                            rows=rows,
                            recompute=recompute,
                            reshard_after_forward=regather,
                        )


def rank_key(estimate: Estimate, objective: Objective) -> tuple[float, ...]:
    """What is minimised; ties go to the faster, then to fewer ranks, less memory and the simpler plan."""
    choice, step_s = estimate.choice, estimate.time.step_s
    spent = {
        "time": step_s,
        "cost": step_s * price.usd_per_hour(choice.offer),
        "energy": step_s * price.watts(choice.offer),
    }
    mesh = choice.mesh
    return (spent[objective], step_s, mesh.world, estimate.memory.total_bytes, mesh.fsdp, choice.rows)


def _check(model: ModelSpec, cluster: Cluster, config: TrainConfig, *, ranks: int | None, objective: Objective) -> None:
    if objective not in get_args(Objective):
        raise SpecError(f"no objective {objective!r}", hint="known: " + ", ".join(get_args(Objective)))
    if not model.blocks or model.params < 1:
        raise SpecError(f"model {model.name!r} has no parameters to train")
    most = capacity(cluster)
    if not most:
        raise DoesNotFit(f"cluster {cluster.name!r} has no healthy device", hint=_sickness(cluster))
    if objective == "cost":
        free = {d.name for node in cluster.nodes for d in node.devices if not d.price_usd_per_hour}
        if free:
            raise SpecError(
                f"no price is known for {', '.join(sorted(free))}, so plans cannot be compared by cost",
                hint="give price_usd_per_hour in the cluster file, or choose by time or energy",
            )
    if ranks is None:
        return
    if ranks < 1:
        raise SpecError(f"ranks must be at least 1, got {ranks}")
    if ranks > most:
        raise DoesNotFit(
            f"{ranks} ranks were asked for, cluster {cluster.name!r} has room for {most}",
            hint="one rank needs one accelerator, or one core of a host without accelerators",
        )
    if config.global_batch < ranks:
        raise SpecError(
            f"a global batch of {config.global_batch} sequences is smaller than {ranks} ranks",
            hint=f"raise global_batch to a multiple of {ranks}, or use {config.global_batch} ranks",
        )


def _indivisible(config: TrainConfig, ranks: int | None) -> SpecError:
    """No choice at all: the batch has no even cut."""
    batch = config.global_batch
    unit = (ranks or 1) * max(1, config.microbatch)
    said = f"{ranks or 1} ranks" + (f" x micro-batches of {config.microbatch}" if config.microbatch else "")
    below, above = batch // unit * unit, -(-batch // unit) * unit
    near = f"{below} or {above}" if below else str(above)
    return SpecError(
        f"a global batch of {batch} sequences is not a multiple of {said} = {unit}",
        hint=f"set global_batch to {near}, or let the plan choose microbatch and ranks",
    )


def _too_large(model: ModelSpec, config: TrainConfig, found: Sequence[Estimate]) -> DoesNotFit:
    """By how much the smallest choice misses, and what would hold it."""
    least = min(found, key=lambda e: (e.memory.total_bytes - e.usable_bytes, e.choice.mesh.world))
    rank = min(least.choice.offer.ranks, key=lambda rank: rank.memory_bytes)
    need, usable = least.memory.total_bytes, least.usable_bytes
    message = (
        f"{model.name} needs {readable_bytes(need)} a rank at the least ({least.choice.mesh.label}), "
        f"{rank.device.name} has {readable_bytes(rank.memory_bytes)}, {USABLE:.0%} of it usable: "
        f"{readable_bytes(need - usable)} short"
    )
    return DoesNotFit(message, hint=_remedy(model, config, usable, tried=max(e.choice.mesh.world for e in found)))


def _remedy(model: ModelSpec, config: TrainConfig, usable_bytes: int, *, tried: int) -> str:
    """The fewest such devices that would hold the model fully sharded, or that no number would."""
    rows = config.microbatch or 1
    degree, need = tried, 0
    while degree < MOST_RANKS:
        degree *= 2
        memory = rank_memory(
            model,
            Mesh(fsdp=degree),
            tokens=rows * config.seq_len,
            microbatches=1,
            precision=config.precision,
            recompute="full",
            reshard_after_forward=True,
        )
        need = memory.total_bytes
        if need <= usable_bytes:
            batch = "" if degree * rows <= config.global_batch else f" (and a global_batch of {degree * rows})"
            return f"{degree} such devices{batch}, or devices with {readable_bytes(need / USABLE)}, would hold it"
    smaller = f"a microbatch below {rows}" if rows > 1 else f"a seq_len below {config.seq_len}"
    return (
        f"sharding further does not help: what cannot be sharded needs {readable_bytes(need)}; "
        f"{smaller} or devices with {readable_bytes(need / USABLE)} would"
    )


def _rejected(best: Estimate, found: Sequence[Estimate], objective: Objective) -> tuple[Rejected, ...]:
    """The best of every other mesh, nearest first, and what is wrong with it."""
    by_mesh: dict[Mesh, Estimate] = {}
    for estimate in sorted(found, key=lambda e: (not e.fits, rank_key(e, objective))):
        by_mesh.setdefault(estimate.choice.mesh, estimate)
    by_mesh.pop(best.choice.mesh, None)
    least: dict[Mesh, Estimate] = {}
    for estimate in found:
        mesh = estimate.choice.mesh
        if mesh not in least or estimate.memory.total_bytes < least[mesh].memory.total_bytes:
            least[mesh] = estimate
    # Those that use as many ranks come first: they are what a reader would have tried.
    order = sorted(by_mesh.values(), key=lambda e: (e.choice.mesh.world != best.choice.mesh.world, not e.fits))
    return tuple(_reject(e if e.fits else least[e.choice.mesh], best, objective) for e in order[:REJECTED_SHOWN])


def _reject(estimate: Estimate, best: Estimate, objective: Objective) -> Rejected:
    mesh = estimate.choice.mesh
    if not estimate.fits:
        need, usable = readable_bytes(estimate.memory.total_bytes), readable_bytes(estimate.usable_bytes)
        return Rejected(mesh=mesh, reason=f"needs {need} a rank, {usable} are usable")
    ratio = rank_key(estimate, objective)[0] / rank_key(best, objective)[0]
    word = {"time": "time", "cost": "price", "energy": "energy"}[objective]
    step_s = estimate.time.step_s
    reason = f"{step_s:.3g} s a step, {ratio:.2f} times the {word}" if ratio >= 1.005 else "no better, and less simple"
    return Rejected(mesh=mesh, reason=reason, step_s=step_s)


def _plan(
    model: ModelSpec,
    cluster: Cluster,
    config: TrainConfig,
    best: Estimate,
    *,
    objective: Objective,
    rejected: tuple[Rejected, ...],
) -> Plan:
    choice, offer = best.choice, best.choice.offer
    ranks = offer.ranks
    peak = sum(peak_flops_per_s(rank.device, config.precision) * rank.share for rank in ranks)
    useful = model_flops(model, tokens=config.global_batch * config.seq_len, seq_len=config.seq_len)
    stage = Stage(
        blocks=sum(block.count for block in model.blocks),
        device=" + ".join(dict.fromkeys(rank.device.name for rank in ranks)),
        ranks=tuple(range(len(ranks))),
        microbatches=best.counts,
        recompute=choice.recompute,
    )
    return Plan(
        model=model.name,
        cluster=cluster.name,
        mesh=choice.mesh,
        stages=(stage,),
        global_batch=config.global_batch,
        microbatch=choice.rows,
        seq_len=config.seq_len,
        precision=config.precision,
        zero=0 if choice.mesh.fsdp == 1 else 3 if choice.reshard_after_forward else 2,
        memory=best.memory,
        device_memory_bytes=min(rank.memory_bytes for rank in ranks),
        time=best.time,
        steps=config.steps,
        watts=price.watts(offer),
        price_usd_per_hour=price.usd_per_hour(offer),
        mfu=useful / best.time.step_s / peak,
        objective=objective,
        rejected=rejected,
        nodes=tuple(cluster.nodes[rank.node].name for rank in ranks),
        accelerators=0 if any(rank.device.vendor == HOST for rank in ranks) else 1,
    )


def _sickness(cluster: Cluster) -> str:
    said = [f"{h.device}: {', '.join(h.reasons)}" for node in cluster.nodes for h in node.health if h.reasons]
    return "; ".join(said) or "describe machines in a cluster file to plan for them"
