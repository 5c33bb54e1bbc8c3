"""Why a plan takes the time and memory it does, from the plan alone: by stage, by collective, and where it waits.

What limits a step is the largest of computing, communication and waiting; the advice names what the plan itself shows
to help against it.
"""

from collections.abc import Iterator, Sequence

from mainspring.plan.pipeline import StageTimes
from mainspring.plan.simulate import Span, timeline
from mainspring.spec import MemoryEstimate, Plan, spec
from mainspring.spec.plan import readable_bytes

SHOWN_MICROBATCHES = 24  # of a timeline; a pipeline repeats itself long before


@spec
class StageShare:
    """One stage: seconds of its slowest replica's step, and bytes of its fullest rank."""

    stage: int
    pipeline_rank: int
    device: str
    blocks: int
    recompute: str
    forward_s: float
    backward_s: float
    send_s: float
    memory: MemoryEstimate
    device_memory_bytes: int


@spec
class AxisTraffic:
    """What one rank of the busiest stage sends along one axis in a step."""

    axis: str
    operation: str
    group_ranks: int
    messages: int
    payload_bytes: int
    seconds: float
    exposed_s: float


@spec
class Explanation:
    """A plan taken apart."""

    bottleneck: str
    advice: str
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
    usable = plan.device_memory_bytes
    return Explanation(
        bottleneck=bottleneck,
        advice=advice,
        stages=tuple(_stage_shares(plan)),
        traffic=tuple(_axis_traffic(plan)),
        spare_bytes=usable - plan.memory.total_bytes,
    )


def _stage_shares(plan: Plan) -> Iterator[StageShare]:
    for number, stage in enumerate(plan.stages):
        busiest = max(
            range(len(stage.forward_s)),
            key=lambda r: stage.microbatches[r] * (stage.forward_s[r] + stage.backward_s[r]),
            default=None,
        )
        count = 0 if busiest is None else stage.microbatches[busiest]
        yield StageShare(
            stage=number,
            pipeline_rank=plan.pipeline_rank(number),
            device=stage.device,
            blocks=stage.blocks,
            recompute=stage.recompute,
            forward_s=0.0 if busiest is None else count * stage.forward_s[busiest],
            backward_s=0.0 if busiest is None else count * stage.backward_s[busiest],
            send_s=count * stage.send_s,
            memory=stage.memory or plan.memory,
            device_memory_bytes=stage.device_memory_bytes or plan.device_memory_bytes,
        )


def _axis_traffic(plan: Plan) -> Iterator[AxisTraffic]:
    """The stage that spends most on each axis and operation."""
    busiest = {(each.axis, each.operation): each for each in sorted(plan.traffic, key=lambda each: each.seconds)}
    for each in sorted(busiest.values(), key=lambda each: -each.seconds):
        yield AxisTraffic(
            axis=each.axis,
            operation=each.operation,
            group_ranks=each.group_ranks,
            messages=each.messages,
            payload_bytes=each.payload_bytes,
            seconds=each.seconds,
            exposed_s=each.exposed_s,
        )


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
        heaviest = max(plan.traffic, key=lambda each: each.seconds, default=None)
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
        spare = plan.device_memory_bytes - plan.memory.total_bytes
        return said, f"{plan.recompute} recomputation is part of it; {readable_bytes(spare)} a rank are left"
    return said, f"the arithmetic itself; MFU is {plan.mfu:.1%}"


def steps_of(plan: Plan) -> tuple[Span, ...]:
    """The timeline of the first micro-batches of the plan's slowest replica; empty for a plan without times."""
    if any(not stage.forward_s for stage in plan.stages):
        return ()
    replica = max(range(len(plan.microbatches)), key=lambda r: _busy_s(plan, r))
    times = [
        StageTimes(
            forward_s=stage.forward_s[replica],
            backward_s=stage.backward_s[replica],
            weight_s=stage.weight_s[replica],
            send_s=stage.send_s,
        )
        for stage in plan.stages
    ]
    count = plan.microbatches[replica]
    shown = min(count, max(SHOWN_MICROBATCHES // plan.mesh.pp, 2) * plan.mesh.pp)
    return timeline(times, pp=plan.mesh.pp, schedule=plan.schedule, microbatches=shown)


def _busy_s(plan: Plan, replica: int) -> float:
    return plan.microbatches[replica] * max(s.forward_s[replica] + s.backward_s[replica] for s in plan.stages)


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
        ("schedule", f"{plan.schedule}, {plan.chunks} stages a rank" if plan.mesh.pp > 1 else "none"),
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
        ("tokens/s", f"{plan.tokens_per_s:,.0f}"),
        ("MFU", f"{plan.mfu:.1%}"),
        ("energy", f"{plan.energy_joules / 3.6e6:.3g} kWh"),
        ("price", f"{plan.price_usd:.2f} USD"),
    )
