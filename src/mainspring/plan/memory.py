"""How many bytes one rank needs: ZeRO's accounting (Rajbhandari et al. 2020, section 3) for how `train` executes it.

Parameters, gradients and Adam's two moments are kept in fp32 at either precision (bf16 is autocast), 16 bytes per
trained parameter and 4 of a frozen one, each divided over the shards from its ZeRO stage on. ZeRO-3 holds the root's
parameters and two blocks whole at a time and reduces after each micro-batch; ZeRO-2 and plain replicas hold everything
whole, gradients too once they accumulate over micro-batches. Autocast saves a copy of each weight until its backward. A
pipeline rank holds the activations of as many micro-batches as its schedule has in flight there (Narayanan et al. 2021,
section 2.2).
"""

from collections.abc import Sequence

from mainspring.plan import blocks
from mainspring.plan.slices import Slice
from mainspring.spec import MemoryEstimate, ModelSpec, Zero

# The rest is the allocator's fragmentation, communication buffers and the runtime itself.
USABLE = 0.9


def stage_memory(
    model: ModelSpec, part: Slice, *, first: int, end: int, zero: Zero, shards: int, microbatches: int, held: int
) -> MemoryEstimate:
    """Bytes of units `first` to `end` on one rank, with the activations of `held` micro-batches at most."""
    stack, cut = part.stack, part.cut
    whole = sum(part.held(first, end))
    whole_model = end - first == len(part.states)
    sharded = part.sharded(shards)
    shard = sharded[end] - sharded[first] - (part.tied / shards if whole_model else 0)
    trained, sharded = part.trained_part(first, end), part.sharded(shards, trained=True)
    trained_shard = sharded[end] - sharded[first] - (part.tied_trained / shards if whole_model else 0)
    present = part.present(first, end)
    sizes = [(held.params + held.expert_params, count) for block, held, count in present if block.inner]
    root = whole - sum(size * count for size, count in sizes)
    largest = max((size for size, _ in sizes), default=0)
    gathered = 0.0
    if zero == 2:
        gathered = stack.gather_bytes * whole
    elif zero == 3:
        gathered = stack.gather_bytes * (root + 2 * largest) + stack.reduce_bytes * largest
    if cut.precision == "bf16":
        copied = whole if cut.recompute != "full" else root + largest
        gathered += stack.copy_bytes * copied
    whole_gradients = zero < 2 or (zero == 2 and microbatches > 1)
    scores = any(block is model.blocks[blocks.scorer(model)] for block, _, _ in present)
    peak = max((held.whole_bytes - held.kept_bytes for _, held, _ in present), default=0.0)
    activations = held * (part.kept_bytes[end] - part.kept_bytes[first]) + peak
    return MemoryEstimate(
        params_bytes=round(stack.weight_bytes * (shard if zero >= 2 else whole)),
        grads_bytes=round(stack.gradient_bytes * (trained if whole_gradients else trained_shard)),
        optimizer_bytes=round((stack.master_bytes + model.optimizer_bytes) * (trained_shard if zero else trained)),
        activations_bytes=round(activations),
        logits_bytes=logits_bytes(model, part) if scores else 0,
        gathered_bytes=round(gathered),
    )


def rank_memory(stages: Sequence[MemoryEstimate], *, runtime_bytes: int) -> MemoryEstimate:
    """All stages of one rank together."""
    return MemoryEstimate(
        params_bytes=sum(s.params_bytes for s in stages),
        grads_bytes=sum(s.grads_bytes for s in stages),
        optimizer_bytes=sum(s.optimizer_bytes for s in stages),
        activations_bytes=sum(s.activations_bytes for s in stages),
        logits_bytes=sum(s.logits_bytes for s in stages),
        gathered_bytes=sum(s.gathered_bytes for s in stages),
        runtime_bytes=runtime_bytes,
    )


def logits_bytes(model: ModelSpec, part: Slice) -> int:
    """Bytes of scores and of their loss at its peak: fp32 scores and their log-softmax, and a bf16 copy if narrow."""
    index = blocks.scorer(model)
    each = 8 if part.cut.precision == "fp32" else part.stack.logit_bytes
    return round(blocks.logit_values(model) * part.cut.tokens * each / part.cut.degree(model.blocks[index]))
