"""How much arithmetic a training step is, and how long a device takes over it.

A forward pass costs about 2 FLOP per parameter and token plus attention's quadratic term; backward twice that, so
6N + attention in all (Kaplan et al. 2020, appendix). Model FLOPs utilisation counts exactly this (PaLM, Chowdhery et
al. 2022, appendix B): recomputed work costs time and is never counted as useful.

Time is an additive roofline: arithmetic at the share of peak that large matrix products reach, plus the bytes that
weights and activations move through memory, which is what makes small models slow for their FLOPs.
"""

from dataclasses import dataclass

from mainspring.spec import Device, ModelSpec, Precision, Recompute

# Fitted on published FSDP runs on A100 and H100 (llm-foundry, fms-fsdp); tests/unit/plan holds the rows and the error.
MATMUL_SHARE = 0.80
ATTENTION_SHARE = 0.30
# Forward and backward of one block launch some 100 kernels or operators of about 2 us that nothing hides.
BLOCK_OVERHEAD_S = 2e-4
ELEMENT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}
# How often the saved bytes pass through memory: fitted with the shares above, for operators that are not fused.
FORWARD_TRAFFIC = 3.0
BACKWARD_TRAFFIC = 6.0
AUTOCAST_SHARE = 0.69


@dataclass(frozen=True, slots=True)
class Work:
    """What one micro-batch asks of one rank, forward and backward and what is recomputed."""

    matmul_flops: float
    attention_flops: float
    moved_bytes: float
    blocks: int


def model_flops(model: ModelSpec, *, tokens: int, seq_len: int) -> float:
    """Forward and backward FLOPs of `tokens` tokens in sequences of `seq_len`: the numerator of MFU."""
    per_token = sum(b.count * (b.flops_per_token + b.attention_flops_per_token2 * seq_len) for b in model.blocks)
    return 3 * tokens * per_token


def microbatch_work(model: ModelSpec, *, rows: int, seq_len: int, precision: Precision, recompute: Recompute) -> Work:
    """The work of one micro-batch of `rows` sequences. Full recomputation repeats each repeated block's forward."""
    tokens = rows * seq_len
    scale = activation_scale(model, precision)
    matmul = attention = moved = 0.0
    for block in model.blocks:
        forwards = 2 if recompute == "full" and block.count > 1 else 1
        each = block.count * tokens
        matmul += (forwards + 2) * each * block.flops_per_token
        attention += (forwards + 2) * each * block.attention_flops_per_token2 * seq_len
        weights = block.count * block.params * ELEMENT_BYTES[precision]
        saved = each * block.activation_bytes_per_token * scale
        moved += (forwards + 2) * weights + (forwards * FORWARD_TRAFFIC + BACKWARD_TRAFFIC) * saved
    moved += 2 * logits_bytes(model, tokens=tokens, precision=precision)
    return Work(
        matmul_flops=matmul,
        attention_flops=attention,
        moved_bytes=moved,
        blocks=sum(block.count for block in model.blocks),
    )


def work_s(work: Work, device: Device, *, precision: Precision, share: float) -> float:
    """Seconds `device` takes over `work` when the rank owns `share` of it."""
    peak = peak_flops_per_s(device, precision)
    arithmetic = work.matmul_flops / MATMUL_SHARE + work.attention_flops / ATTENTION_SHARE
    on_whole_device = arithmetic / peak + work.moved_bytes / device.memory_bytes_per_s
    return on_whole_device / share + work.blocks * BLOCK_OVERHEAD_S


def peak_flops_per_s(device: Device, precision: Precision) -> float:
    """The dense peak at the precision matrix products run in."""
    return device.bf16_flops_per_s if precision == "bf16" else device.fp32_flops_per_s


def activation_scale(model: ModelSpec, precision: Precision) -> float:
    """Saved bytes at `precision` over the bytes the profile counted.

    Autocast keeps the residual stream and the norms in fp32 and casts a norm's result once more: counted on the
    decoder of `models`, bf16 saves 0.69 of the fp32 bytes (29.8 of 43.0 kB per token of a 512-wide layer), not a half.
    """
    width = 4 if precision == "fp32" else AUTOCAST_SHARE * 4
    return width / model.element_bytes


def logits_bytes(model: ModelSpec, *, tokens: int, precision: Precision) -> int:
    """Bytes of scores and of their loss at its peak: fp32 scores and their log-softmax, and a bf16 copy if narrow.

    The widest output of any block is taken for the scores: a module's parts are not always listed in order.
    """
    vocab = max(block.output_bytes_per_token for block in model.blocks) / model.element_bytes
    return round(vocab * tokens * (8 if precision == "fp32" else 10))
