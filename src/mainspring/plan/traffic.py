"""Which collectives a plan's ranks take part in during a step, how often, and with how many bytes.

Counts are those of what `train` runs: per micro-batch for tensor, context and expert parallelism and for ZeRO-3, once
a step for the rest.
"""

from collections.abc import Iterator

from mainspring.plan import blocks, network
from mainspring.plan.estimate import Estimate, Estimator
from mainspring.plan.flops import ELEMENT_BYTES
from mainspring.plan.network import Ring
from mainspring.plan.pipeline import rank_of
from mainspring.plan.slices import Slice, Sync, sync_rings
from mainspring.spec import Operation, Traffic


def traffic_of(estimator: Estimator, best: Estimate) -> tuple[Traffic, ...]:
    """The traffic of every stage, in the order of the stages."""
    found: list[Traffic] = []
    choice = best.choice
    sync = sync_rings(best.layout.fabric, choice.mesh)
    for stage in range(len(choice.cuts) - 1):
        place = rank_of(stage, pp=choice.mesh.pp, schedule=choice.schedule)
        part = estimator.slices(choice.cut, best.layout)[0][place]
        found += _inside(estimator, best, stage, part)
        found += _sharding(best, stage, part, sync)
    return tuple(found)


def _inside(estimator: Estimator, best: Estimate, stage: int, part: Slice) -> Iterator[Traffic]:
    """Tensor, context and expert parallelism, and handing on."""
    choice, model = best.choice, estimator.model
    cut, mesh, count = choice.cut, choice.mesh, max(best.counts)
    here = blocks.units(model)[choice.cuts[stage] : choice.cuts[stage + 1]]
    rings = blocks.inner_rings(best.layout.fabric, mesh)
    width = ELEMENT_BYTES[cut.precision] / model.element_bytes
    repeats = {"none": 0, "selective": 0, "full": 1}[cut.recompute]

    def one(axis: str, operation: Operation, ring: Ring, messages: int, each_bytes: float, seconds: float) -> Traffic:
        return Traffic(
            stage=stage,
            axis=axis,
            operation=operation,
            group_ranks=ring.ranks,
            messages=messages,
            payload_bytes=round(messages * each_bytes),
            seconds=seconds,
            exposed_s=seconds,
        )

    reductions = 0
    for block in here:
        if cut.degree(block) > 1:
            again = repeats if block.count > 1 else 0
            reductions += block.reductions[0] * (1 + again) + block.reductions[1]
    if reductions:
        # Half of what is sent is as wide as the residual stream, half as narrow as what matrices give.
        messages = reductions * count
        stream = part.stream_bytes * (1 + blocks.widening(cut, part.stack)) / 2
        if cut.sequence_parallel:
            yield one("tp", "all_gather", rings.tp, messages, stream, messages * network.gather_s(rings.tp, stream))
            yield one(
                "tp", "reduce_scatter", rings.tp, messages, stream, messages * network.scatter_s(rings.tp, stream)
            )
        else:
            yield one("tp", "all_reduce", rings.tp, messages, stream, messages * network.reduce_s(rings.tp, stream))
    looking = [block for block in here if block.kv_bytes_per_token]
    if cut.cp > 1 and looking:
        held = looking[0].kv_bytes_per_token * width * cut.tokens / cut.degree(looking[0])
        whole, messages = held * cut.cp, len(looking) * count
        gathers = messages * (1 + repeats)
        yield one("cp", "all_gather", rings.cp, gathers, whole, gathers * network.gather_s(rings.cp, whole))
        yield one("cp", "reduce_scatter", rings.cp, messages, whole, messages * network.scatter_s(rings.cp, whole))
    choosing = [block for block in here if block.experts]
    if cut.ep > 1 and choosing:
        each = part.stream_bytes * choosing[0].experts_per_token
        messages = len(choosing) * (4 + 2 * repeats) * count
        yield one("ep", "all_to_all", rings.ep, messages, each, messages * network.exchange_s(rings.ep, each))
    stages = len(choice.cuts) - 1
    if mesh.pp > 1:
        messages = count * ((stage < stages - 1) + (stage > 0))
        pair = Ring(ranks=2, per_node=2, nodes=1, inner=None, outer=None)
        send_s = best.spent[0][stage].send_s
        divided = mesh.tp if cut.sequence_parallel else 1
        each = blocks.widening(cut, part.stack) * part.stream_bytes / divided
        yield one("pp", "send", pair, messages, each, messages * send_s)


def _sharding(best: Estimate, stage: int, part: Slice, sync: Sync) -> Iterator[Traffic]:
    """What replicas and shards exchange of parameters and gradients."""
    choice = best.choice
    first, end = choice.cuts[stage], choice.cuts[stage + 1]
    params = sum(part.held(first, end))
    count, stack = max(best.counts), part.stack
    times = count if choice.zero == 3 else 1
    gathers = 2 * times if choice.zero == 3 else times

    def one(axis: str, operation: Operation, ring: Ring, messages: int, whole: float, seconds: float) -> Traffic:
        return Traffic(
            stage=stage,
            axis=axis,
            operation=operation,
            group_ranks=ring.ranks,
            messages=messages,
            payload_bytes=round(whole),
            seconds=seconds,
            exposed_s=0.0,
        )

    units = end - first
    if choice.zero == 0:
        if sync.whole.ranks > 1:
            whole = stack.reduce_bytes * params
            yield one("dp", "all_reduce", sync.whole, units, whole, network.reduce_s(sync.whole, whole))
        return
    params *= part.padding(sync.shards.ranks)
    gathered, reduced = stack.gather_bytes * params, stack.reduce_bytes * params
    each = network.gather_s(sync.shards, gathered, messages=units)
    yield one("fsdp", "all_gather", sync.shards, gathers * units, gathers * gathered, gathers * each)
    each = network.scatter_s(sync.shards, reduced, messages=units)
    yield one("fsdp", "reduce_scatter", sync.shards, times * units, times * reduced, times * each)
    if sync.outside.ranks > 1:
        part_bytes = reduced / sync.shards.ranks
        seconds = times * network.reduce_s(sync.outside, part_bytes, messages=units)
        yield one("dp", "all_reduce", sync.outside, times * units, times * part_bytes, seconds)
