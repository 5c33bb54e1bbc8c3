"""What one block costs one rank under one cut: seconds of its passes, bytes of its state.

Time is an additive roofline: arithmetic at the share of peak that the device reaches, plus the bytes that weights and
activations move through memory, which is what makes small models slow for their FLOPs. Tensor parallelism adds the
stream up over its ranks (Shoeybi et al. 2019; along the sequence, Korthikanti et al. 2022, at the same volume);
context parallelism gathers keys and values; experts cost two exchanges each way (GShard).
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

from mainspring.plan import network
from mainspring.plan.flops import ELEMENT_BYTES, peak_flops_per_s
from mainspring.plan.network import Fabric, Ring
from mainspring.plan.shards import divided as divided_rows
from mainspring.plan.stack import Stack
from mainspring.spec import BlockSpec, Device, Mesh, ModelSpec, Precision, Recompute

T = TypeVar("T")
FLASH_BACKWARD = 2.5  # its five matrix products to the forward's two (Dao 2023, section 3.2)


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """How a model is cut for one rank: micro-batches of `rows` sequences, and the axes that divide a block.

    One object for all that are alike, so that what is worked out for it is found again.
    """

    rows: int
    seq_len: int
    precision: Precision
    recompute: Recompute
    tp: int = 1
    sequence_parallel: bool = False
    cp: int = 1
    ep: int = 1
    replicate: tuple[str, ...] = ()

    @property
    def tokens(self) -> float:
        """Tokens of a micro-batch on one rank."""
        return self.rows * self.seq_len / self.cp

    def degree(self, block: BlockSpec) -> int:
        """Over how many ranks tensor parallelism divides `block`."""
        whole = not block.divisions or any(fnmatchcase(block.name, pattern) for pattern in self.replicate)
        return 1 if whole else self.tp


class Passes(NamedTuple):
    """Seconds of one micro-batch. `weight_s` of `backward_s` is what a zero-bubble schedule may put off."""

    forward_s: float
    backward_s: float
    weight_s: float
    forward_network_s: float
    backward_network_s: float


class State(NamedTuple):
    """What a block keeps on a rank: parameters before sharding, and bytes of one micro-batch that backward needs.

    `frozen` of `params`, and `frozen_experts` of `expert_params`, are not trained. `whole_bytes` is what it keeps while
    its backward runs, recomputed or not.
    """

    params: int
    expert_params: int
    frozen: int
    frozen_experts: int
    kept_bytes: float
    whole_bytes: float


def units(model: ModelSpec) -> tuple[BlockSpec, ...]:
    """The blocks one by one, in the model's order."""
    return tuple(itertools.chain.from_iterable(itertools.repeat(block, block.count) for block in model.blocks))


def logit_values(model: ModelSpec) -> float:
    """Scores per token. The widest output of any block is taken: a module's parts are not always listed in order."""
    return max(block.output_bytes_per_token for block in model.blocks) / model.element_bytes


def scorer(model: ModelSpec) -> int:
    """Which block makes the scores: the one with the widest output, the last of them if several."""
    widths = [block.output_bytes_per_token for block in model.blocks]
    return len(widths) - 1 - widths[::-1].index(max(widths))


def state(model: ModelSpec, block: BlockSpec, cut: Cut, stack: Stack) -> State:
    """What `block` keeps on a rank."""
    degree = cut.degree(block)
    dense = block.params - block.expert_params
    divided = max(0, block.split_params - block.expert_params) if block.experts else block.split_params
    params = dense - divided + -(-divided // degree)
    experts = -(-block.expert_params // (cut.ep * degree)) if block.experts else 0
    scale = cut.tokens * ELEMENT_BYTES[cut.precision] / model.element_bytes
    if cut.precision == "bf16":
        scale *= stack.saved_scale
    whole = _split(block.activation_bytes_per_token, block.split_activation_bytes_per_token, cut, degree)
    kept = whole
    if block.inner and cut.recompute == "full":
        kept = block.output_bytes_per_token / (degree if cut.sequence_parallel else 1)
    elif block.inner and cut.recompute == "selective" and block.selective_bytes_per_token:
        kept = whole * block.selective_bytes_per_token / block.activation_bytes_per_token
    frozen = {"dense": 0, "experts": 0}
    for rows in divided_rows(block.rows, tp=degree, ep=cut.ep) if block.trained_share < 1 else ():
        if not rows.trained:
            frozen["experts" if rows.kind == "experts" else "dense"] += rows.params
    return State(
        params=params,
        expert_params=experts,
        frozen=min(params, frozen["dense"]),
        frozen_experts=min(experts, frozen["experts"]),
        kept_bytes=kept * scale,
        whole_bytes=whole * scale,
    )


def _split(all_bytes: float, split_bytes: float, cut: Cut, degree: int) -> float:
    rest = all_bytes - split_bytes
    return split_bytes / degree + (rest / degree if cut.sequence_parallel else rest)


@dataclass(frozen=True, slots=True, eq=False)
class Rank:
    """The device of a rank: the share of it that is the rank's own, and its memory. One object for all alike."""

    device: Device
    share: float
    memory_bytes: int


def passes(model: ModelSpec, block: BlockSpec, cut: Cut, *, rank: Rank, rings: "Rings", stack: Stack) -> Passes:
    """Seconds of one micro-batch's passes through `block` on `rank`."""
    degree, tokens, precision = cut.degree(block), cut.tokens, cut.precision
    here, kept = rank.device, state(model, block, cut, stack)
    divided = block.split_params / block.params if block.params else 0.0
    peak = peak_flops_per_s(here, precision) * rank.share
    matmul_s = tokens * block.flops_per_token * (divided / degree + 1 - divided) / (peak * here.matmul_share)
    attention_share = here.attention_share * stack.attention_scale if stack.fused_attention else here.matmul_share
    # Parts of a causal sequence are unequal: the last of n ranks looks along (2 n - 1) / n^2 of all pairs.
    attention_flops = (2 - 1 / cut.cp) * tokens * cut.seq_len * block.attention_flops_per_token2 / degree
    attention_s = attention_flops / (peak * attention_share)
    width = here.memory_bytes_per_s * rank.share
    active = _active_params(block, kept, cut)
    weights_s = ELEMENT_BYTES[precision] * active / width
    saved_s = stack.saved_passes * kept.whole_bytes / (width * here.activation_share)
    overhead_s = (here.block_overhead_s or stack.block_overhead_s) / 3
    forward_s = matmul_s + attention_s + weights_s + saved_s + overhead_s
    back = FLASH_BACKWARD if stack.fused_attention else 2.0
    # What is frozen has no gradient of its own, and hands that of what follows it on.
    trained = block.trained_share
    backward_s = (1 + trained) * (matmul_s + weights_s) + 2 * (saved_s + overhead_s) + back * attention_s
    if block is model.blocks[scorer(model)] and block.output_bytes_per_token > 0:
        values = logit_values(model) * tokens / (1 if stack.joins_scores else degree)
        passing = 2 * stack.logit_bytes * values / (width * here.activation_share)
        forward_s, backward_s = forward_s + passing / 3, backward_s + passing * 2 / 3
    sent_f, sent_b = _exchanged(model, block, cut, rank=rank, rings=rings, stack=stack)
    if not model.differentiated(block):
        backward_s = sent_b = 0.0
    repeats = block.inner and cut.recompute != "none"
    if repeats and cut.recompute == "full":
        backward_s, sent_b = backward_s + forward_s, sent_b + sent_f
    elif repeats and kept.whole_bytes:
        dropped = 1 - kept.kept_bytes / kept.whole_bytes
        backward_s += saved_s * dropped + stack.selective_matmuls * matmul_s
        backward_s += 0.0 if stack.fused_attention else attention_s
    return Passes(
        forward_s=forward_s,
        backward_s=backward_s,
        weight_s=trained * (matmul_s + weights_s),
        forward_network_s=sent_f,
        backward_network_s=sent_b,
    )


def _active_params(block: BlockSpec, kept: State, cut: Cut) -> float:
    """Parameters a pass reads: of the experts here, those that some token of a large micro-batch needs."""
    if not block.experts:
        return kept.params
    reached = min(1.0, cut.tokens * block.experts_per_token / block.experts)
    return kept.params + kept.expert_params * reached


@dataclass(frozen=True, slots=True)
class Rings:
    """The groups within a stage."""

    tp: Ring
    cp: Ring
    ep: Ring


def inner_rings(fabric: Fabric, mesh: Mesh) -> Rings:
    """Those groups on a mesh."""
    return Rings(
        tp=network.ring_of(fabric, mesh, ("tp",)),
        cp=network.ring_of(fabric, mesh, ("cp",)),
        ep=network.ring_of(fabric, mesh, ("ep",)),
    )


def widening(cut: Cut, stack: Stack) -> float:
    """How much wider the residual stream is than what matrices give."""
    return max(1.0, stack.stream_bytes / ELEMENT_BYTES[cut.precision])


def _exchanged(
    model: ModelSpec, block: BlockSpec, cut: Cut, *, rank: Rank, rings: "Rings", stack: Stack
) -> tuple[float, float]:
    """Seconds of communication inside the block, forward and backward, that arithmetic does not hide.

    Sums of what matrices give are narrow forward and scattered so; what enters a region, and its gradient, is wide.
    """
    width = ELEMENT_BYTES[cut.precision] / model.element_bytes
    stream = stream_bytes(model) * width * cut.tokens
    here = rank.device
    byte_s = stack.packed / (here.memory_bytes_per_s * rank.share * here.activation_share)

    def host_s(sent: float) -> float:
        return (here.message_s or stack.message_s) + byte_s * sent

    forward_s = backward_s = 0.0
    if cut.degree(block) > 1:
        wide = widening(cut, stack)
        along = block.reductions[0] and block.reductions[1]
        out = (1 + wide) / 2 if along and cut.sequence_parallel else 1.0 if along else wide
        back = (1 + wide) / 2 if along and cut.sequence_parallel else wide
        summed, messages = (_split_sum_s, 2) if along and cut.sequence_parallel else (network.reduce_s, 1)
        forward_s += block.reductions[0] * (summed(rings.tp, out * stream) + messages * host_s(out * stream))
        backward_s += block.reductions[1] * (summed(rings.tp, back * stream) + messages * host_s(back * stream))
        if stack.joins_scores and block is model.blocks[scorer(model)]:
            scores = block.output_bytes_per_token * width * cut.tokens
            forward_s += network.gather_s(rings.tp, scores) + host_s(scores)
    if cut.cp > 1 and block.kv_bytes_per_token:
        held = cut.cp * block.kv_bytes_per_token * width * cut.tokens / cut.degree(block)
        forward_s += network.gather_s(rings.cp, held) + host_s(held)
        backward_s += network.scatter_s(rings.cp, held) + host_s(held)
    if cut.ep > 1 and block.experts:
        each = stream * block.experts_per_token
        each_s = network.exchange_s(rings.ep, each) + host_s(each)
        forward_s += 2 * each_s
        backward_s += 2 * each_s
    return forward_s, backward_s


def _split_sum_s(ring: Ring, whole_bytes: float) -> float:
    """A sum in its two halves: along the sequence one comes after a region, the other before the next."""
    return network.gather_s(ring, whole_bytes) + network.scatter_s(ring, whole_bytes)


def stream_bytes(model: ModelSpec) -> float:
    """Bytes per token of the residual stream: what the blocks, or failing them the first part, hand on."""
    inner = [block for block in model.blocks if block.inner] or list(model.blocks[:1])
    return max(block.output_bytes_per_token for block in inner)


def prefix(values: Iterable[float]) -> list[float]:
    """Running sums, from nothing to all."""
    return [0.0, *itertools.accumulate(values)]


def by_unit(model: ModelSpec, figures: Sequence[T]) -> Iterator[T]:
    """One figure per block of the model, repeated for each of its units."""
    pairs = zip(figures, (block.count for block in model.blocks), strict=True)
    return itertools.chain.from_iterable(itertools.starmap(itertools.repeat, pairs))
