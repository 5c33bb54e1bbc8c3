"""How much arithmetic a training step is, and what a device can do of it.

A forward pass costs about 2 FLOP per parameter and token plus attention's quadratic term; backward twice that, so
6N + attention in all (Kaplan et al. 2020, appendix). Model FLOPs utilisation counts exactly this (PaLM, Chowdhery et
al. 2022, appendix B): recomputed work costs time and is never counted as useful.
"""

from mainspring.spec import Device, ModelSpec, Precision

ELEMENT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}


def model_flops(model: ModelSpec, *, tokens: int, seq_len: int) -> float:
    """Forward and backward FLOPs of `tokens` tokens in sequences of `seq_len`: the numerator of MFU.

    Nothing is differentiated by frozen weights.
    """
    total = 0.0
    for block in model.blocks:
        attention = block.attention_flops_per_token2 * seq_len
        both = (1 + block.trained_share) * block.flops_per_token + 2 * attention if model.differentiated(block) else 0
        total += block.count * (block.flops_per_token + attention + both)
    return tokens * total


def peak_flops_per_s(device: Device, precision: Precision) -> float:
    """The dense peak at the precision matrix products run in."""
    return device.bf16_flops_per_s if precision == "bf16" else device.fp32_flops_per_s
