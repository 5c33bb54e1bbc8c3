"""A model under one cut, with running sums over its units, so that any stage's figures are two subtractions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mainspring.plan import blocks, network
from mainspring.plan.blocks import Cut, Rank, Rings, State
from mainspring.plan.flops import ELEMENT_BYTES
from mainspring.plan.network import Fabric, Ring
from mainspring.plan.pipeline import StageTimes
from mainspring.plan.shards import divided, padded, rows_of
from mainspring.plan.shards import trained as trained_rows
from mainspring.plan.stack import Stack
from mainspring.spec import BlockSpec, Mesh, ModelSpec, Zero

DATA = ("dp", "fsdp", "ep")  # axes that the batch is shared over
SHARDS = ("fsdp", "cp")
UPDATE_TRAFFIC_BYTES = 12  # of a parameter: reads it and its gradient, writes it; its optimiser state goes both ways
ADAM_TRAFFIC_BYTES = UPDATE_TRAFFIC_BYTES + 2 * 8


@dataclass(frozen=True, slots=True)
class Sync:
    """The groups that gradients and shards travel in; expert parameters are whole on every rank of `ep`."""

    shards: Ring
    whole: Ring
    outside: Ring
    experts: Ring
    experts_outside: Ring


def sync_rings(fabric: Fabric, mesh: Mesh) -> Sync:
    """Those groups on a mesh."""
    return Sync(
        shards=network.ring_of(fabric, mesh, SHARDS),
        whole=network.ring_of(fabric, mesh, (*DATA, "cp")),
        outside=network.ring_of(fabric, mesh, ("dp", "ep")),
        experts=network.ring_of(fabric, mesh, ("dp", "fsdp", "cp")),
        experts_outside=network.ring_of(fabric, mesh, ("dp",)),
    )


class Spent(NamedTuple):
    """Seconds of one micro-batch in one stage: what computes, what the network adds to it, and handing on."""

    forward_s: float
    backward_s: float
    weight_s: float
    forward_network_s: float
    backward_network_s: float
    send_s: float

    @property
    def times(self) -> StageTimes:
        """What a schedule sees of it."""
        return StageTimes(
            self.forward_s + self.forward_network_s,
            self.backward_s + self.backward_network_s,
            self.weight_s,
            self.send_s,
        )


class Load(NamedTuple):
    """What a pipeline rank holds, its stages together: parameters before sharding, and seconds of one micro-batch.

    `trained` of `params`, and `trained_experts` of `expert_params`, have gradients.
    """

    params: float
    expert_params: float
    trained: float
    trained_experts: float
    forward_s: float
    backward_s: float
    units: int


class Slice:
    """One cut of `model` on one kind of rank."""

    def __init__(self, model: ModelSpec, cut: Cut, *, rank: Rank, rings: Rings, stack: Stack) -> None:
        passes = [blocks.passes(model, b, cut, rank=rank, rings=rings, stack=stack) for b in model.blocks]
        states = [blocks.state(model, block, cut, stack) for block in model.blocks]

        def summed(figures: Sequence[float]) -> list[float]:
            return blocks.prefix(blocks.by_unit(model, figures))

        self.cut, self.rank, self.stack = cut, rank, stack
        self.width = rank.device.memory_bytes_per_s * rank.share
        self.packing = self.width * rank.device.activation_share
        self.forward_s = summed([p.forward_s for p in passes])
        self.backward_s = summed([p.backward_s for p in passes])
        self.weight_s = summed([p.weight_s for p in passes])
        self.forward_network_s = summed([p.forward_network_s for p in passes])
        self.backward_network_s = summed([p.backward_network_s for p in passes])
        self.blocks_s = [p.forward_s + p.backward_s + p.forward_network_s + p.backward_network_s for p in passes]
        self.both_s = summed(self.blocks_s)
        self.all_s = self.both_s[-1]
        self.params = summed([s.params for s in states])
        self.expert_params = summed([s.expert_params for s in states])
        # As many trained parameters as take no more room than those here: see `Estimator.state_bytes`.
        more = stack.gradient_bytes + stack.master_bytes + model.optimizer_bytes
        self._light = stack.weight_bytes / (stack.weight_bytes + more)
        self.weighed = [dense + experts for dense, experts in zip(self.params, self.expert_params, strict=True)]
        self.trained, self.trained_experts = self.params, self.expert_params
        if any(s.frozen or s.frozen_experts for s in states):
            self.trained = summed([s.params - s.frozen for s in states])
            self.trained_experts = summed([s.expert_params - s.frozen_experts for s in states])
            light = summed([(1 - self._light) * (s.frozen + s.frozen_experts) for s in states])
            self.weighed = [every - less for every, less in zip(self.weighed, light, strict=True)]
        self.kept_bytes = summed([s.kept_bytes for s in states])
        self.states = tuple(blocks.by_unit(model, states))
        # Parameters that a rank with the whole model keeps once; the two ends of a pipeline both have them.
        self.tied = model.tied_params / cut.degree(model.blocks[blocks.scorer(model)])
        self.tied_trained = self.tied if all(rows.trained for rows in model.tied_rows) else 0.0
        self._kinds = tuple(zip(model.blocks, states, strict=True))
        self._model, self._sharded = model, dict[tuple[int, bool], list[float]]()
        self._rows = [divided(rows_of(block), tp=cut.degree(block), ep=cut.ep) for block in model.blocks]
        self.stream_bytes = blocks.stream_bytes(model) * ELEMENT_BYTES[cut.precision] / model.element_bytes * cut.tokens

    def stage(
        self, first: int, end: int, *, sync: Sync | None, hidden: float, send_s: float, handover_s: float = 0.0
    ) -> Spent:
        """Units `first` to `end` as a stage. With `sync` each pass gathers them and backward scatters: ZeRO-3."""
        forward = self.forward_s[end] - self.forward_s[first] + handover_s / 3
        backward = self.backward_s[end] - self.backward_s[first] + 2 * handover_s / 3
        forward_net = self.forward_network_s[end] - self.forward_network_s[first]
        backward_net = self.backward_network_s[end] - self.backward_network_s[first]
        if sync is not None:
            gather, reduce = self.sharding_s(self.load([(first, end)]), sync=sync)
            forward_net += max(0.0, gather - hidden * forward)
            backward_net += max(0.0, gather + reduce - hidden * backward)
        weight = self.weight_s[end] - self.weight_s[first]
        return Spent(forward, backward, weight, forward_net, backward_net, send_s)

    def load(self, ranges: Sequence[tuple[int, int]]) -> Load:
        """The units of several stages together."""
        params = experts = trained = trained_experts = forward = backward = 0.0
        units = 0
        for first, end in ranges:
            units += end - first
            params += self.params[end] - self.params[first]
            experts += self.expert_params[end] - self.expert_params[first]
            if self.trained is not self.params:
                trained += self.trained[end] - self.trained[first]
                trained_experts += self.trained_experts[end] - self.trained_experts[first]
            forward += self.forward_s[end] - self.forward_s[first]
            backward += self.backward_s[end] - self.backward_s[first]
        if self.trained is self.params:
            trained, trained_experts = params, experts
        if units == len(self.states):
            params -= self.tied
            trained -= self.tied_trained
        return Load(params, experts, trained, trained_experts, forward, backward, units)

    def mean_load(self, ranks: int) -> Load:
        """A `ranks`-th of the model's parameters, and all of its seconds."""
        whole = self.load([(0, len(self.states))])
        return whole._replace(
            params=whole.params / ranks,
            expert_params=whole.expert_params / ranks,
            trained=whole.trained / ranks,
            trained_experts=whole.trained_experts / ranks,
            units=1,
        )

    def held(self, first: int, end: int) -> tuple[float, float]:
        """Dense and expert parameters of units `first` to `end` on this rank, before sharding."""
        dense = self.params[end] - self.params[first] - (self.tied if end - first == len(self.states) else 0)
        return dense, self.expert_params[end] - self.expert_params[first]

    def trained_part(self, first: int, end: int) -> float:
        """Those parameters of units `first` to `end` on this rank that have gradients, before sharding."""
        tied = self.tied_trained if end - first == len(self.states) else 0
        return self.trained[end] - self.trained[first] + self.trained_experts[end] - self.trained_experts[first] - tied

    def weighed_part(self, first: int, end: int) -> float:
        """`weighed` of units `first` to `end`."""
        tied = self.tied_trained + self._light * (self.tied - self.tied_trained)
        return self.weighed[end] - self.weighed[first] - (tied if end - first == len(self.states) else 0)

    def sharded(self, shards: int, *, trained: bool = False) -> list[float]:
        """Running sums of parameters that each of `shards` ranks has room for: all are cut alike, and filled up."""
        key = (shards, trained)
        if key not in self._sharded:
            sizes = [padded(trained_rows(rows) if trained else rows, shards) for rows in self._rows]
            self._sharded[key] = blocks.prefix(blocks.by_unit(self._model, sizes))
        return self._sharded[key]

    def padding(self, shards: int) -> float:
        """How much larger the shards together are than what they hold."""
        return self.sharded(shards)[-1] * shards / max(1.0, self.params[-1] + self.expert_params[-1])

    def present(self, first: int, end: int) -> list[tuple[BlockSpec, State, int]]:
        """The blocks among units `first` to `end`, with what they keep and how many there are."""
        found: list[tuple[BlockSpec, State, int]] = []
        at = 0
        for block, held in self._kinds:
            count = min(end, at + block.count) - max(first, at)
            if count > 0:
                found.append((block, held, count))
            at += block.count
        return found

    def sharding_s(self, load: Load, *, sync: Sync) -> tuple[float, float]:
        """Seconds of gathering the parameters once, and of scattering and summing their gradients once."""
        padding = self.padding(sync.shards.ranks)
        dense, experts = padding * load.params, padding * load.expert_params
        trained, trained_experts = padding * load.trained, padding * load.trained_experts
        stack, messages = self.stack, load.units * self.stack.tensors_per_block
        # Units travel through a flat buffer: packed on one side, unpacked on the other.
        packing = (stack.packed or 1.0) * stack.gather_bytes * (dense + experts) / self.packing
        here = self.rank.device
        each = here.message_s or stack.message_s
        gather = network.gather_s(sync.shards, stack.gather_bytes * (dense + experts), messages=messages)
        gather += packing + messages * each
        share = (trained + trained_experts) / max(1.0, dense + experts)
        reduce = network.scatter_s(sync.shards, stack.reduce_bytes * (trained + trained_experts), messages=messages)
        reduce += share * packing + messages * (each + (here.unit_s or stack.unit_s))
        part = stack.reduce_bytes / sync.shards.ranks
        outside = network.reduce_s(sync.outside, trained * part, messages=messages)
        if trained_experts:
            outside += network.reduce_s(sync.experts_outside, trained_experts * part, messages=messages)
        return gather, reduce + outside

    def step_sync_s(self, load: Load, *, zero: Zero, sync: Sync, hidden: float, count: int = 1) -> float:
        """Seconds of what is exchanged once a step and not hidden behind the step's last backward or first forward.

        ZeRO-2 scatters in each of `count` micro-batches, where that is not hidden.
        """
        if zero == 3:
            return 0.0
        if zero:
            gather, reduce = self.sharding_s(load, sync=sync)
            reduce *= count if zero == 2 and self.stack.rescatters else 1
            return self.once_s(load, zero=zero, exchanged=(gather, reduce), hidden=hidden)
        backward = hidden * load.backward_s if self.stack.hides_gradients else 0.0
        seconds = self._reduced_s(sync.whole, load.trained) + self._reduced_s(sync.experts, load.trained_experts)
        return max(0.0, seconds - backward)

    def once_s(self, load: Load, *, zero: Zero, exchanged: tuple[float, float], hidden: float) -> float:
        """Seconds of gathering parameters and of scattering gradients once a step that nothing hides: ZeRO-1 and 2."""
        gather, reduce = exchanged
        forward, backward = hidden * load.forward_s, hidden * load.backward_s
        if not self.stack.hides_gradients:
            forward = backward = 0.0
        if zero == 1:
            return gather + max(0.0, reduce - backward)
        return max(0.0, gather - forward) + max(0.0, reduce - backward)

    def update_s(self, states: float) -> float:
        """Seconds of clipping the gradients of `states` parameters and of their update."""
        moved = UPDATE_TRAFFIC_BYTES + 2 * self._model.optimizer_bytes
        return (moved + self.stack.clip_bytes) * states / self.width

    def handover_s(self) -> float:
        """What the host takes to have a micro-batch pass through a stage, forward and backward."""
        return self.rank.device.handover_s or self.stack.handover_s

    def _reduced_s(self, ring: Ring, params: float) -> float:
        whole = self.stack.reduce_bytes * params
        if not params or ring.ranks == 1:
            return 0.0
        packing = 2 * self.stack.packed * whole / self.packing
        return network.reduce_s(ring, whole, messages=max(1, round(whole / BUCKET_BYTES))) + packing


BUCKET_BYTES = 25 * 1024**2  # DistributedDataParallel's own
