"""What a search says: the plan with its figures, why others lost, or what is missing for any."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from mainspring.plan import price
from mainspring.plan.blocks import Rank
from mainspring.plan.critical import busiest_rank, parts, slowest_replica
from mainspring.plan.estimate import Estimate, Estimator
from mainspring.plan.flops import model_flops, peak_flops_per_s
from mainspring.plan.layout import HOST
from mainspring.plan.offers import Offer
from mainspring.plan.pipeline import rank_of
from mainspring.plan.traffic import traffic_of
from mainspring.spec import (
    Cluster,
    DoesNotFit,
    Mesh,
    ModelSpec,
    Objective,
    Plan,
    Rejected,
    Stage,
    TrainConfig,
)
from mainspring.spec.plan import readable_bytes

T = TypeVar("T")
REJECTED_SHOWN = 5


def rate(estimate: Estimate, objective: Objective) -> float:
    """What a second of it costs, in the objective's unit."""
    spend = {"time": price.nothing, "cost": price.usd_per_hour, "energy": price.watts}[objective]
    return spend(estimate.layout, estimate.choice.mesh)


def rank_key(estimate: Estimate, objective: Objective) -> tuple[float, ...]:
    """What is minimised; ties go to the faster, then to fewer ranks, less memory and the simpler plan."""
    choice, step_s = estimate.choice, estimate.time.step_s
    mesh = choice.mesh
    axes = (mesh.pp, mesh.tp, mesh.cp, mesh.ep, mesh.fsdp)
    bytes_held = estimate.memory[estimate.tightest].total_bytes
    return (step_s * rate(estimate, objective), step_s, mesh.world, bytes_held, *axes, choice.cut.rows)


def lacking(estimate: Estimate) -> int:
    """Bytes that the fullest rank has too few; negative where it has some to spare."""
    at = estimate.tightest
    return estimate.memory[at].total_bytes - estimate.usable_bytes[at]


def plan_of(
    estimator: Estimator, cluster: Cluster, config: TrainConfig, best: Estimate, *, offer: Offer, objective: Objective
) -> Plan:
    """The plan that `best` is on `offer`, without what it was chosen over."""
    choice, layout, model = best.choice, best.layout, estimator.model
    mesh = choice.mesh
    inner = mesh.tp * mesh.cp
    peak = inner * sum(
        column.replicas * sum(peak_flops_per_s(rank.device, config.precision) * rank.share for rank in column.ranks)
        for column in layout.columns
    )
    useful = model_flops(model, tokens=config.global_batch * config.seq_len, seq_len=config.seq_len)
    at = best.tightest
    nodes = offer.nodes(pp=mesh.pp, inner=inner)
    on_host = any(rank.device.vendor == HOST for column in layout.columns for rank in column.ranks)
    plan = Plan(
        model=model.name,
        cluster=cluster.name,
        mesh=mesh,
        stages=_stages(best),
        global_batch=config.global_batch,
        microbatch=choice.cut.rows,
        seq_len=config.seq_len,
        precision=config.precision,
        memory=best.memory[at],
        device_memory_bytes=min(column.ranks[at].memory_bytes for column in layout.columns),
        time=best.time,
        steps=config.steps,
        watts=price.watts(layout, mesh),
        price_usd_per_hour=price.usd_per_hour(layout, mesh),
        mfu=useful / best.time.step_s / peak,
        objective=objective,
        zero=choice.zero,
        schedule=choice.schedule,
        sequence_parallel=choice.cut.sequence_parallel,
        replicate=choice.cut.replicate,
        nodes=tuple(cluster.nodes[node].name for node in nodes),
        accelerators=0 if on_host else 1,
        memory_share=estimator.memory_share,
    )
    return _timed(plan, estimator, best)


def _timed(plan: Plan, estimator: Estimator, best: Estimate) -> Plan:
    """`plan` with the traffic, and the parts of the step, of the rank that the step waits for."""
    replica = slowest_replica(plan)
    ends = itertools.accumulate(column.replicas for column in best.layout.columns)
    column = next(number for number, end in enumerate(ends) if replica < end)
    rank, count = busiest_rank(plan, replica), plan.microbatches[replica]
    traffic, updates_s = traffic_of(estimator, best, column=column, count=count)
    mine = [number for number in range(len(plan.stages)) if plan.pipeline_rank(number) == rank]
    spent = best.spent[column]
    time = parts(
        best.time.step_s,
        compute_s=count * sum(spent[stage].forward_s + spent[stage].backward_s for stage in mine),
        communication_s=sum(each.exposed_s for each in traffic if each.stage in mine),
        optimizer_s=updates_s[rank],
    )
    return replace(plan, time=time, traffic=traffic)


def _stages(best: Estimate) -> tuple[Stage, ...]:
    choice, columns = best.choice, best.layout.columns
    per_stage = choice.mesh.world // choice.mesh.pp
    found: list[Stage] = []
    for stage, memory in enumerate(best.stage_memory):
        place = rank_of(stage, pp=choice.mesh.pp, schedule=choice.schedule)
        times = [spent[stage].times for spent in best.spent]
        ranks = [column.ranks[place] for column in columns]
        mixed = len({(rank.device.name, rank.memory_bytes) for rank in ranks}) > 1
        found.append(
            Stage(
                blocks=choice.cuts[stage + 1] - choice.cuts[stage],
                first=choice.cuts[stage],
                device=device_names(ranks),
                ranks=tuple(range(place * per_stage, (place + 1) * per_stage)),
                microbatches=best.counts,
                recompute=choice.cut.recompute,
                forward_s=_each(best, [each.forward_s for each in times]),
                backward_s=_each(best, [each.backward_s for each in times]),
                weight_s=_each(best, [each.weight_s for each in times]),
                send_s=max(each.send_s for each in times),
                memory=memory,
                device_memory_bytes=min(rank.memory_bytes for rank in ranks),
                devices=_each(best, [rank.device.name for rank in ranks]) if mixed else (),
                memories_bytes=_each(best, [rank.memory_bytes for rank in ranks]) if mixed else (),
            )
        )
    return tuple(found)


def _each(best: Estimate, by_column: list[T]) -> tuple[T, ...]:
    """One figure for each replica."""
    found: list[T] = []
    for column, figure in zip(best.layout.columns, by_column, strict=True):
        found += [figure] * column.replicas
    return tuple(found)


def device_names(ranks: Iterable[Rank]) -> str:
    """The kinds of `ranks`, e.g. `A + B`."""
    return " + ".join(dict.fromkeys(rank.device.name for rank in ranks))


def rejected(best: Estimate, others: Iterable[Estimate], objective: Objective) -> tuple[Rejected, ...]:
    """The best of every other mesh, nearest first, and what is wrong with it."""
    mesh = best.choice.mesh
    by_mesh: dict[Mesh, Estimate] = {}
    for other in others:
        keep_best(by_mesh, other, objective)
    by_mesh.pop(mesh, None)
    # Those that use as many ranks come first: they are what a reader would have tried.
    rest = sorted(by_mesh.values(), key=lambda e: (e.choice.mesh.world != mesh.world, _order(e, objective)))
    return tuple(_reject(other, best, objective) for other in rest[:REJECTED_SHOWN])


def keep_best(by_mesh: dict[Mesh, Estimate], estimate: Estimate, objective: Objective) -> None:
    """Keep the best of each mesh: one that fits before one that does not, and of those the one that lacks least."""
    seen = by_mesh.get(estimate.choice.mesh)
    if seen is None or _order(estimate, objective) < _order(seen, objective):
        by_mesh[estimate.choice.mesh] = estimate


def _order(estimate: Estimate, objective: Objective) -> tuple[float, ...]:
    return (0.0, *rank_key(estimate, objective)) if estimate.fits else (1.0, float(lacking(estimate)))


def _reject(estimate: Estimate, best: Estimate, objective: Objective) -> Rejected:
    mesh, at = estimate.choice.mesh, estimate.tightest
    if not estimate.fits:
        need, usable = readable_bytes(estimate.memory[at].total_bytes), readable_bytes(estimate.usable_bytes[at])
        return Rejected(mesh=mesh, reason=f"needs {need} a rank, {usable} are usable")
    ratio = rank_key(estimate, objective)[0] / rank_key(best, objective)[0]
    word = {"time": "time", "cost": "price", "energy": "energy"}[objective]
    step_s = estimate.time.step_s
    reason = f"{step_s:.3g} s a step, {ratio:.2f} times the {word}" if ratio >= 1.005 else "no better, and less simple"
    return Rejected(mesh=mesh, reason=reason, step_s=step_s)


def too_large(model: ModelSpec, least: Estimate, remedy: str) -> DoesNotFit:
    """By how much the smallest choice misses, and what would hold it."""
    at = least.tightest
    rank = min((column.ranks[at] for column in least.layout.columns), key=lambda rank: rank.memory_bytes)
    need, usable = least.memory[at].total_bytes, least.usable_bytes[at]
    message = (
        f"{model.name} needs {readable_bytes(need)} a rank at the least ({least.choice.mesh.label}), "
        f"{rank.device.name} has {readable_bytes(rank.memory_bytes)}, {usable / rank.memory_bytes:.0%} of it usable: "
        f"{readable_bytes(need - usable)} short"
    )
    return DoesNotFit(message, hint=remedy)
