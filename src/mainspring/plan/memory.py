"""How many bytes one rank needs: ZeRO's accounting (Rajbhandari et al. 2020, section 3) for how `train` executes it.

Parameters, gradients and Adam's two moments are kept in fp32 at either precision (bf16 is autocast), 16 bytes per
parameter over the sharding degree. ZeRO-3 holds the root's parameters and two blocks whole at a time and reduces
after each micro-batch; ZeRO-2 and plain replicas hold everything whole, gradients too once they accumulate over
micro-batches. Autocast saves a bf16 copy of each weight until its backward.
"""

from mainspring.plan.flops import activation_scale, logits_bytes
from mainspring.spec import MemoryEstimate, Mesh, ModelSpec, Precision, Recompute

WORD_BYTES = 4
ADAM_BYTES = 8
# The rest is the allocator's fragmentation, communication buffers and the runtime itself.
USABLE = 0.9


def rank_memory(
    model: ModelSpec,
    mesh: Mesh,
    *,
    tokens: int,
    microbatches: int,
    precision: Precision,
    recompute: Recompute,
    reshard_after_forward: bool,
) -> MemoryEstimate:
    """Bytes on the fullest rank for micro-batches of `tokens` tokens; `microbatches` is the most any rank runs."""
    shard = shard_params(model, mesh.fsdp)
    whole_gradients = mesh.fsdp == 1 or (not reshard_after_forward and microbatches > 1)
    return MemoryEstimate(
        params_bytes=WORD_BYTES * shard,
        grads_bytes=WORD_BYTES * (model.params if whole_gradients else shard),
        optimizer_bytes=ADAM_BYTES * shard,
        activations_bytes=_activations(model, tokens=tokens, precision=precision, recompute=recompute),
        logits_bytes=logits_bytes(model, tokens=tokens, precision=precision),
        gathered_bytes=_gathered(model, mesh, reshard_after_forward)
        + _autocast_copies(model, precision=precision, recompute=recompute),
    )


def shard_params(model: ModelSpec, degree: int) -> int:
    """Parameters on the fullest of `degree` ranks: each repeated block and the root are cut on their own.

    `fully_shard` pads every unit to a multiple of the degree, so the shards together never hold less than the model.
    """
    root, blocks = units(model)
    return _ceil(root, degree) + sum(count * _ceil(params, degree) for count, params in blocks)


def units(model: ModelSpec) -> tuple[int, tuple[tuple[int, int], ...]]:
    """The sharding units `train` makes: parameters of the root, and `(count, params)` of the repeated blocks."""
    root = sum(block.params for block in model.blocks if block.count == 1) - model.tied_params
    return root, tuple((block.count, block.params) for block in model.blocks if block.count > 1)


def _activations(model: ModelSpec, *, tokens: int, precision: Precision, recompute: Recompute) -> int:
    """What backward keeps of one micro-batch; with full recomputation a block keeps its input, and one block all."""
    kept = largest = 0.0
    for block in model.blocks:
        if recompute == "full" and block.count > 1:
            kept += block.count * block.output_bytes_per_token
            largest = max(largest, block.activation_bytes_per_token)
        else:
            kept += block.count * block.activation_bytes_per_token
    return round((kept + largest) * tokens * activation_scale(model, precision))


def _gathered(model: ModelSpec, mesh: Mesh, reshard_after_forward: bool) -> int:  # noqa: FBT001  the plan's own field
    """Parameters held whole next to the shard, and for ZeRO-3 the whole gradient of the block being reduced."""
    if mesh.fsdp == 1:
        return 0
    if not reshard_after_forward:
        return WORD_BYTES * model.params
    root, blocks = units(model)
    largest = max((params for _, params in blocks), default=0)
    return WORD_BYTES * (root + 3 * largest)


def _autocast_copies(model: ModelSpec, *, precision: Precision, recompute: Recompute) -> int:
    if precision == "fp32":
        return 0
    if recompute != "full":
        return 2 * model.params
    root, blocks = units(model)
    return 2 * (root + max((params for _, params in blocks), default=0))


def _ceil(count: int, parts: int) -> int:
    return -(-count // parts)
