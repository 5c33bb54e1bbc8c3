"""Which collectives a plan's ranks take part in during a step, how often, and with how many bytes.

Counts are those of what `train` runs: per micro-batch for tensor, context and expert parallelism and for ZeRO-3, once
a step for the rest.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mainspring.plan import blocks, network
from mainspring.plan.estimate import Estimate, Estimator
from mainspring.plan.flops import ELEMENT_BYTES
from mainspring.plan.network import Ring
from mainspring.plan.pipeline import stage_ranks
from mainspring.plan.slices import Slice, Sync, sync_rings
from mainspring.spec import Operation, Traffic


def traffic_of(
    estimator: Estimator, best: Estimate, *, column: int, count: int
) -> tuple[tuple[Traffic, ...], tuple[float, ...]]:
    """The traffic of every stage of a replica of `column` that runs `count` micro-batches, in the order of the stages.

    What is not hidden adds up, over the stages of a rank, to what the step takes longer by. Also the seconds that each
    pipeline rank's update takes.
    """
    choice, cuts = best.choice, best.choice.cuts
    sync = sync_rings(best.layout.fabric, choice.mesh)
    hidden = estimator.hidden(best.layout)
    found: list[list[Traffic]] = [[] for _ in cuts[1:]]
    updates: list[float] = []
    places = stage_ranks(len(cuts) - 1, choice.mesh.pp, choice.schedule)
    for place, part in enumerate(estimator.slices(choice.cut, best.layout)[column]):
        mine = [stage for stage in range(len(found)) if places[stage] == place]
        load = part.load([(cuts[stage], cuts[stage + 1]) for stage in mine])
        shards = choice.mesh.shards if choice.zero else 1
        updates.append(part.update_s((load.trained + load.trained_experts) / shards))
        once_s = part.step_sync_s(load, zero=choice.zero, sync=sync, hidden=hidden, count=count)
        state: list[Traffic] = []
        for stage in mine:
            spent, first, end = best.spent[column][stage], cuts[stage], cuts[stage + 1]
            network_s = part.forward_network_s[end] - part.forward_network_s[first]
            network_s += part.backward_network_s[end] - part.backward_network_s[first]
            inside = list(_inside(estimator, best, stage, part, count))
            found[stage] += _shared_out(inside, count * network_s, seconds=count * network_s)
            found[stage] += _sent(best, stage, part, count, spent.send_s)
            exchanged = list(_sharding(best, stage, part, sync, count))
            if choice.zero == 3:  # in every micro-batch
                more_s = spent.forward_network_s + spent.backward_network_s - network_s
                exchanged = _shared_out(exchanged, count * max(0.0, more_s))
            state += exchanged
        for each in state if choice.zero == 3 else _shared_out(state, once_s):
            found[each.stage].append(each)
    return tuple(itertools.chain.from_iterable(found)), tuple(updates)


def _shared_out(found: Sequence[Traffic], exposed_s: float, *, seconds: float | None = None) -> list[Traffic]:
    """`found` with `exposed_s` shared out by the seconds of each; and `seconds` too, if they are known."""
    total = sum(each.seconds for each in found)
    shared: list[Traffic] = []
    for each in found:
        share = each.seconds / total if total else 1 / len(found)
        mine = exposed_s * share
        took = max(each.seconds if seconds is None else seconds * share, mine)  # packing and calls count as well
        shared.append(replace(each, seconds=took, exposed_s=mine))
    return shared


def _inside(estimator: Estimator, best: Estimate, stage: int, part: Slice, count: int) -> Iterator[Traffic]:
    """Tensor, context and expert parallelism."""
    choice, model = best.choice, estimator.model
    cut, mesh = choice.cut, choice.mesh
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
            again = repeats if block.inner else 0
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


def _sent(best: Estimate, stage: int, part: Slice, count: int, send_s: float) -> Iterator[Traffic]:
    """Handing micro-batches on, and their gradients back."""
    choice = best.choice
    if choice.mesh.pp == 1:
        return
    messages = count * ((stage < len(choice.cuts) - 2) + (stage > 0))
    divided = choice.mesh.tp if choice.cut.sequence_parallel else 1
    each = blocks.widening(choice.cut, part.stack) * part.stream_bytes / divided
    yield Traffic(
        stage=stage,
        axis="pp",
        operation="send",
        group_ranks=2,
        messages=messages,
        payload_bytes=round(messages * each),
        seconds=messages * send_s,
        exposed_s=messages * send_s,
    )


def _sharding(best: Estimate, stage: int, part: Slice, sync: Sync, count: int) -> Iterator[Traffic]:
    """What replicas and shards exchange of parameters and gradients."""
    choice = best.choice
    first, end = choice.cuts[stage], choice.cuts[stage + 1]
    params, trained = sum(part.held(first, end)), part.trained_part(first, end)
    stack = part.stack
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
            whole = stack.reduce_bytes * trained
            yield one("dp", "all_reduce", sync.whole, units, whole, network.reduce_s(sync.whole, whole))
        return
    padding = part.padding(sync.shards.ranks)
    gathered, reduced = stack.gather_bytes * padding * params, stack.reduce_bytes * padding * trained
    each = network.gather_s(sync.shards, gathered, messages=units)
    yield one("fsdp", "all_gather", sync.shards, gathers * units, gathers * gathered, gathers * each)
    each = network.scatter_s(sync.shards, reduced, messages=units)
    yield one("fsdp", "reduce_scatter", sync.shards, times * units, times * reduced, times * each)
    if sync.outside.ranks > 1:
        part_bytes = reduced / sync.shards.ranks
        seconds = times * network.reduce_s(sync.outside, part_bytes, messages=units)
        yield one("dp", "all_reduce", sync.outside, times * units, times * part_bytes, seconds)
