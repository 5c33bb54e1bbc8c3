"""Which rank a step waits for, and where its seconds go: that rank's parts add up to the step.

It is the busiest pipeline rank of the replica that ends last. What it waits for others counts as waiting.
"""

from collections.abc import Sequence

from mainspring.plan.pipeline import StageTimes, least_s
from mainspring.plan.simulate import simulated_s
from mainspring.spec import Plan, TimeEstimate

NOTHING = 1e-12  # of a step, below which a difference is rounding


def replica_times(plan: Plan, replica: int) -> list[StageTimes]:
    """Seconds of one micro-batch of `replica` in each stage."""
    return [
        StageTimes(
            forward_s=stage.forward_s[replica],
            backward_s=stage.backward_s[replica],
            weight_s=stage.weight_s[replica],
            send_s=stage.send_s,
        )
        for stage in plan.stages
    ]


def alike(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """The replicas of each kind: those that run every stage on the same device."""
    found: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for replica in range(len(plan.microbatches)):
        found.setdefault(tuple(stage.on(replica) for stage in plan.stages), []).append(replica)
    return tuple(map(tuple, found.values()))


def slowest_replica(plan: Plan, among: Sequence[int] = ()) -> int:
    """The first of the replicas, or of those in `among`, that end last."""
    ends: dict[tuple[int, tuple[StageTimes, ...]], float] = {}

    def end_s(replica: int) -> float:
        count, times = plan.microbatches[replica], tuple(replica_times(plan, replica))
        if (count, times) not in ends:
            ends[count, times] = _end_s(plan, times, count)
        return ends[count, times]

    return max(among or range(len(plan.microbatches)), key=end_s)


def _end_s(plan: Plan, times: tuple[StageTimes, ...], count: int) -> float:
    pp = plan.mesh.pp
    if pp == 1:
        return count * sum(each.forward_s + each.backward_s for each in times)
    bound_s = least_s(times, pp=pp, schedule=plan.schedule, microbatches=count)
    return max(bound_s, simulated_s(times, pp=pp, schedule=plan.schedule, microbatches=count))


def sends(plan: Plan, stage: int) -> int:
    """How often `stage` hands a micro-batch on: forward unless it is the last, back unless it is the first."""
    return (stage < len(plan.stages) - 1) + (stage > 0)


def busiest_rank(plan: Plan, replica: int) -> int:
    """The pipeline rank of `replica` with most to do for a micro-batch."""
    busy = [0.0] * plan.mesh.pp
    for number, each in enumerate(replica_times(plan, replica)):
        busy[plan.pipeline_rank(number)] += each.forward_s + each.backward_s + sends(plan, number) * each.send_s
    return busy.index(max(busy))


def parts(step_s: float, *, compute_s: float, communication_s: float, optimizer_s: float) -> TimeEstimate:
    """A step whose rest is waiting."""
    rest = step_s - compute_s - communication_s - optimizer_s
    return TimeEstimate(
        compute_s=compute_s,
        communication_s=communication_s,
        bubble_s=rest if rest > NOTHING * step_s else 0.0,
        optimizer_s=optimizer_s,
    )
