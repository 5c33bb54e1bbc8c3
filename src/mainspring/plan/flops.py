"""How much arithmetic a training step is, and what a device can do of it.

A forward pass costs about 2 FLOP per parameter and token plus attention's quadratic term; backward twice that, so
6N + attention in all (Kaplan et al. 2020, appendix). Model FLOPs utilisation counts exactly this (PaLM, Chowdhery et
al. 2022, appendix B): recomputed work costs time and is never counted as useful.
"""

from mainspring.spec import Device, ModelSpec, Precision

ELEMENT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}


def model_flops(model: ModelSpec, *, tokens: int, seq_len: int) -> float:
    """Forward and backward FLOPs of `tokens` tokens in sequences of `seq_len`: the numerator of MFU."""
    per_token = sum(b.count * (b.flops_per_token + b.attention_flops_per_token2 * seq_len) for b in model.blocks)
    return 3 * tokens * per_token


def peak_flops_per_s(device: Device, precision: Precision) -> float:
    """The dense peak at the precision matrix products run in."""
    return device.bf16_flops_per_s if precision == "bf16" else device.fp32_flops_per_s
