"""Why a plan takes the time and memory it does, from the plan alone: by stage, by collective, and where it waits.

What limits a step is the largest of computing, communication and waiting; the advice names what the plan itself shows
to help against it.
"""

import itertools
from collections.abc import Iterator, Sequence

from mainspring.plan.critical import NOTHING, alike, busiest_rank, replica_times, sends, slowest_replica
from mainspring.plan.simulate import Span, timeline
from mainspring.spec import MemoryEstimate, Plan, Traffic, spec
from mainspring.spec.plan import readable_bytes, readable_usd

SHOWN_MICROBATCHES = 24  # of a timeline; a pipeline repeats itself long before


@spec
class StageShare:
    """One stage on one kind of replica: seconds of the slowest one's step, and bytes of its fullest rank."""

    stage: int
    pipeline_rank: int
    device: str
    replica: int
    replicas: int
    microbatches: int
    blocks: int
    recompute: str
    forward_s: float
    backward_s: float
    send_s: float
    memory: MemoryEstimate
    device_memory_bytes: int


@spec
class StepPart:
    """Some of the seconds of a step."""

    what: str
    seconds: float


@spec
class AxisTraffic:
    """What the busiest rank sends along one axis in a step."""

    axis: str
    operation: str
    group_ranks: int
    messages: int
    payload_bytes: int
    seconds: float
    exposed_s: float


@spec
class Explanation:
    """A plan taken apart. `parts` are the seconds of `busiest_rank` of `slowest_replica`, and add up to the step."""

    bottleneck: str
    advice: str
    slowest_replica: int
    busiest_rank: int
    parts: tuple[StepPart, ...]
    notes: tuple[str, ...]
    stages: tuple[StageShare, ...]
    traffic: tuple[AxisTraffic, ...]
    spare_bytes: int


@spec
class Difference:
    """One line of a comparison: what, and the two values as text."""

    what: str
    first: str
    second: str


def explain(plan: Plan) -> Explanation:
    """Where the time and the memory of `plan` go."""
    bottleneck, advice = _bottleneck(plan)
    replica, rank = _waited_for(plan) or (0, 0)
    shares = tuple(_stage_shares(plan))
    mine = [share for share in shares if share.replica == replica and share.pipeline_rank == rank]
    return Explanation(
        bottleneck=bottleneck,
        advice=advice,
        slowest_replica=replica,
        busiest_rank=rank,
        parts=tuple(_parts(plan, mine)),
        notes=tuple(_notes(plan)),
        stages=shares,
        traffic=tuple(_axis_traffic(plan, rank)),
        spare_bytes=plan.spare_bytes,
    )


def _waited_for(plan: Plan) -> tuple[int, int] | None:
    """The replica and the pipeline rank that a step waits for; None for a plan without times."""
    if not _timed(plan):
        return None
    replica = slowest_replica(plan)
    return replica, busiest_rank(plan, replica)


def _timed(plan: Plan) -> bool:
    return all(stage.forward_s for stage in plan.stages)


def _stage_shares(plan: Plan) -> Iterator[StageShare]:
    timed = _timed(plan)
    kinds = [(slowest_replica(plan, kind) if timed else kind[0], len(kind)) for kind in alike(plan)]
    for (number, stage), (replica, replicas) in itertools.product(enumerate(plan.stages), kinds):
        device, memory_bytes = stage.on(replica)
        count = stage.microbatches[replica] if timed else 0
        yield StageShare(
            stage=number,
            pipeline_rank=plan.pipeline_rank(number),
            device=device,
            replica=replica,
            replicas=replicas,
            microbatches=stage.microbatches[replica],
            blocks=stage.blocks,
            recompute=stage.recompute,
            forward_s=count * stage.forward_s[replica] if count else 0.0,
            backward_s=count * stage.backward_s[replica] if count else 0.0,
            send_s=count * sends(plan, number) * stage.send_s,
            memory=stage.memory or plan.memory,
            device_memory_bytes=memory_bytes or plan.device_memory_bytes,
        )


def _parts(plan: Plan, mine: Sequence[StageShare]) -> Iterator[StepPart]:
    """The step of one rank whose stages are `mine`."""
    found = {
        "forward": sum(share.forward_s for share in mine),
        "backward": sum(share.backward_s for share in mine),
        "sending": sum(share.send_s for share in mine),
        "exchanging state": 0.0,
        "optimiser": plan.time.optimizer_s,
        "waiting": plan.time.bubble_s,
    }
    left = plan.time.step_s - sum(found.values())
    found["exchanging state"] = left if left > NOTHING * plan.time.step_s else 0.0
    yield from (StepPart(what=what, seconds=seconds) for what, seconds in found.items())


def _notes(plan: Plan) -> Iterator[str]:
    """What figures say that could surprise."""
    if plan.zero == 2:
        gradients = (
            f"gradients are whole while {max(plan.microbatches)} micro-batches add up"
            if max(plan.microbatches) > 1
            else "gradients are spread with them"
        )
        yield (
            f"ZeRO-2: parameters and the optimiser's state are spread over {plan.mesh.shards} ranks, and parameters "
            f"gathered once a step; {gradients}"
        )


def _axis_traffic(plan: Plan, rank: int) -> Iterator[AxisTraffic]:
    """What the stages of `rank` spend together on each axis and operation."""
    found: dict[tuple[str, str, int], list[Traffic]] = {}
    for each in plan.traffic:
        if plan.pipeline_rank(each.stage) == rank:
            found.setdefault((each.axis, each.operation, each.group_ranks), []).append(each)
    sums = [
        AxisTraffic(
            axis=axis,
            operation=operation,
            group_ranks=group_ranks,
            messages=sum(each.messages for each in alike),
            payload_bytes=sum(each.payload_bytes for each in alike),
            seconds=sum(each.seconds for each in alike),
            exposed_s=sum(each.exposed_s for each in alike),
        )
        for (axis, operation, group_ranks), alike in found.items()
    ]
    yield from sorted(sums, key=lambda each: -each.seconds)


def _bottleneck(plan: Plan) -> tuple[str, str]:
    time, mesh = plan.time, plan.mesh
    parts = {
        "computing": time.compute_s,
        "communication": time.communication_s,
        "waiting": time.bubble_s,
        "the optimiser": time.optimizer_s,
    }
    name = max(parts, key=parts.__getitem__)
    said = f"{name}: {parts[name]:.3g} of {time.step_s:.3g} s"
    if name == "communication":
        heaviest = max(plan.traffic, key=lambda each: each.exposed_s, default=None)
        where = f" ({heaviest.operation} over {heaviest.axis})" if heaviest else ""
        return said + where, "a faster network, a larger micro-batch, or fewer ranks on that axis would help"
    if name == "waiting":
        if mesh.pp > 1:
            return (
                said,
                f"more micro-batches than {min(plan.microbatches)}, or more stages a rank, would fill the pipeline",
            )
        return said, "replicas differ in speed; more micro-batches could be shared out more finely"
    if name == "computing" and plan.recompute != "none":
        return said, f"{plan.recompute} recomputation is part of it; {readable_bytes(plan.spare_bytes)} a rank are left"
    return said, f"the arithmetic itself; MFU is {plan.mfu:.1%}"


def steps_of(plan: Plan, replica: int | None = None) -> tuple[Span, ...]:
    """The timeline of the first micro-batches of `replica`, or the slowest one; empty for a plan without times."""
    if not _timed(plan):
        return ()
    replica = slowest_replica(plan) if replica is None else replica
    count = plan.microbatches[replica]
    shown = min(count, max(SHOWN_MICROBATCHES // plan.mesh.pp, 2) * plan.mesh.pp)
    return timeline(replica_times(plan, replica), pp=plan.mesh.pp, schedule=plan.schedule, microbatches=shown)


def difference(first: Plan, second: Plan) -> tuple[Difference, ...]:
    """What distinguishes two plans, figures of equal value left out."""
    rows = zip(_facts(first), _facts(second), strict=True)
    return tuple(Difference(what=what, first=a, second=b) for (what, a), (_, b) in rows if a != b)


def _facts(plan: Plan) -> Sequence[tuple[str, str]]:
    time, memory = plan.time, plan.memory
    return (
        ("model", plan.model),
        ("cluster", plan.cluster),
        ("mesh", plan.mesh.label),
        ("sharding", plan.sharding),
        ("schedule", _schedule(plan)),
        ("stages", " ".join(f"{stage.blocks}" for stage in plan.stages)),
        ("devices", " | ".join(dict.fromkeys(stage.device for stage in plan.stages))),
        ("micro-batch", f"{plan.microbatch} x {plan.seq_len} tokens"),
        ("micro-batches", " ".join(f"{n}" for n in sorted(set(plan.microbatches)))),
        ("recompute", plan.recompute),
        ("sequence parallel", "yes" if plan.sequence_parallel else "no"),
        ("precision", plan.precision),
        ("step", f"{time.step_s:.4g} s"),
        ("  computing", f"{time.compute_s:.4g} s"),
        ("  communication", f"{time.communication_s:.4g} s"),
        ("  waiting", f"{time.bubble_s:.4g} s"),
        ("  optimiser", f"{time.optimizer_s:.4g} s"),
        ("memory a rank", readable_bytes(memory.total_bytes)),
        ("  activations", readable_bytes(memory.activations_bytes)),
        ("  state", readable_bytes(memory.params_bytes + memory.grads_bytes + memory.optimizer_bytes)),
        ("  logits", readable_bytes(memory.logits_bytes)),
        ("  gathered", readable_bytes(memory.gathered_bytes)),
        ("  runtime", readable_bytes(memory.runtime_bytes)),
        ("tokens/s", f"{plan.tokens_per_s:,.0f}"),
        ("MFU", f"{plan.mfu:.1%}"),
        ("energy", f"{plan.energy_joules / 3.6e6:.3g} kWh"),
        ("price", readable_usd(plan.price_usd) if plan.price_usd_per_hour else "unknown"),
    )


def _schedule(plan: Plan) -> str:
    if plan.mesh.pp == 1:
        return "no pipeline"
    return f"{plan.schedule}, {plan.chunks} stage{'s' if plan.chunks > 1 else ''} a rank"
