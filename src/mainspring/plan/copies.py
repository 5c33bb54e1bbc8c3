"""Whether a micro-batch in two copies pays: while the sums of one travel, the other computes.

Against it: matrices half as high reach less of a device's peak, and twice as many messages have twice the latency. For
it: what travels hides behind the arithmetic of the other copy, but for the last sum of each pass, after which nothing
comes. On a host nothing hides, as its cores do both, and a micro-batch stays whole.
"""

from dataclasses import replace

from mainspring.plan import blocks
from mainspring.plan.estimate import Estimate, Estimator
from mainspring.plan.slices import Slice
from mainspring.spec import Hints, Plan, SpecError, Stage

COPIES = 2


def in_copies(plan: Plan, estimator: Estimator, best: Estimate, hints: Hints) -> Plan:
    """`plan` with its micro-batches in copies where that is faster, or where `hints` ask for it."""
    if hints.copies == 1:
        return plan
    hidden = estimator.hidden(best.layout)
    if not _possible(plan) or len(best.layout.columns) > 1:
        if hints.copies:
            raise SpecError(
                f"copies of a micro-batch need tp and dp alone, like devices, and rows in multiples of {COPIES}; the "
                f"plan is {plan.mesh.label} ({plan.sharding}) with {plan.microbatch} rows",
                hint="ask for tp, zero = 0 and an even microbatch too, or leave copies to the search",
            )
        return plan
    whole = estimator.slices(best.choice.cut, best.layout)[0][0]
    half = estimator.slices(replace(best.choice.cut, rows=plan.microbatch // COPIES), best.layout)[0][0]
    count = max(best.counts)
    computing = COPIES * (half.forward_s[-1] + half.backward_s[-1])
    exposed = _exposed_s(half, estimator, hidden=hidden)
    before = whole.forward_s[-1] + whole.backward_s[-1], whole.forward_network_s[-1] + whole.backward_network_s[-1]
    if computing + exposed >= sum(before) and not hints.copies:
        return plan
    time = replace(
        plan.time,
        compute_s=plan.time.compute_s + count * (computing - before[0]),
        communication_s=max(0.0, plan.time.communication_s + count * (exposed - before[1])),
    )
    sums_s = COPIES * (half.forward_network_s[-1] + half.backward_network_s[-1])
    traffic = tuple(
        replace(
            each,
            messages=COPIES * each.messages,
            seconds=each.seconds * sums_s / before[1],
            exposed_s=each.exposed_s * exposed / before[1],
        )
        if each.axis in ("tp", "cp")
        else each
        for each in plan.traffic
    )
    slower = (computing + exposed) / sum(before)
    stages = tuple(_scaled(stage, slower) for stage in plan.stages)
    faster = plan.time.step_s / time.step_s
    return replace(plan, copies=COPIES, time=time, stages=stages, traffic=traffic, mfu=plan.mfu * faster)


def _scaled(stage: Stage, factor: float) -> Stage:
    """`stage` with passes that take `factor` times as long."""
    forward, backward, weight = (
        tuple(factor * each for each in seconds) for seconds in (stage.forward_s, stage.backward_s, stage.weight_s)
    )
    return replace(stage, forward_s=forward, backward_s=backward, weight_s=weight)


def _possible(plan: Plan) -> bool:
    mesh = plan.mesh
    return mesh.tp > 1 and mesh.pp * mesh.ep == 1 and not plan.zero and plan.microbatch % COPIES == 0


def _exposed_s(half: Slice, estimator: Estimator, *, hidden: float) -> float:
    """Seconds of a micro-batch's sums that nothing hides, in both directions."""
    units = blocks.units(estimator.model)
    total = 0.0
    for way, computing, travelling in (
        (0, half.forward_s[-1], half.forward_network_s[-1]),
        (1, half.backward_s[-1], half.backward_network_s[-1]),
    ):
        sums = max(1, sum(unit.reductions[way] for unit in units))
        total += max(COPIES * (travelling - hidden * computing), travelling / sums)
    return total
