"""How one generation of training software does its work: what it keeps, what it sends, what it hides.

The same model on the same device runs at different speeds under different software, and a published run is only
comparable with a prediction for its own. `TORCH` is what `train` runs; the others are what published runs were made
with. Byte figures are facts of the software. The few shares were fitted to published runs; `validate` measures them.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Stack:
    """Bytes are per parameter, `master_bytes` those of a wider copy beside the optimiser's own state. Shares are of the
    device's own.

    `saved_scale` is what bf16 really keeps over what two bytes for each saved value would be. `saved_passes` is how
    often the bytes that backward keeps pass through memory in forward (twice that in backward), `compiled_passes` where
    a compiler fuses them. `fused_attention` never writes the scores; `attention_scale` is its speed in shares of the
    device's. Collectives hide behind `hidden` of the arithmetic beside them; `hides_gradients` says that the last
    exchange of a step is one of them, `rescatters` that ZeRO-2's of each micro-batch counts, `divides_sends` that each
    tensor-parallel rank hands its part of the stream to the next stage. The residual stream has `stream_bytes` a value
    where products have two. `tensors_per_block` messages gather a block. Selective recomputation repeats
    `selective_matmuls` of the matrix products. `logit_bytes` are those of one score and its loss at their peak;
    `runtime_bytes` are taken by the runtime itself where a published figure counts them. `joins_scores` says that
    tensor-parallel ranks gather all scores before the loss, and each computes it whole. `clip_bytes` of a parameter's
    gradient pass through memory for its norm and its scaling. `message_s`, `unit_s` and `handover_s` are the host's, as
    in `Device`, where that has none.
    """

    name: str
    weight_bytes: int = 4
    gradient_bytes: int = 4
    master_bytes: int = 0
    copy_bytes: int = 2
    gather_bytes: int = 4
    reduce_bytes: int = 4
    fused_attention: bool = True
    attention_scale: float = 1.0
    saved_scale: float = 1.3
    saved_passes: float = 2.7
    compiled_passes: float = 1.0
    block_overhead_s: float = 5e-4
    hidden: float = 0.4
    hides_gradients: bool = True
    rescatters: bool = False
    divides_sends: bool = False
    stream_bytes: int = 2
    tensors_per_block: int = 1
    logit_bytes: int = 10
    selective_matmuls: float = 0.0
    runtime_bytes: int = 0
    joins_scores: bool = False
    clip_bytes: int = 0
    packed: float = 0.0
    message_s: float = 0.0
    unit_s: float = 0.0
    handover_s: float = 0.0


# Autocast keeps the residual stream and the norms in fp32 and casts a norm's result once more: counted on the decoder
# of `models`, bf16 saves 0.61 to 0.65 of the fp32 bytes (46.4 of 71.8 kB per token of a 1024-wide layer), not a half.
TORCH = Stack(name="torch", stream_bytes=4)
# The same on a host's own cores. They do what elsewhere a host does while its accelerator computes, so that nothing
# hides behind anything; the seconds are those of one core of a Xeon of 2023.
HOSTED = replace(
    TORCH,
    name="torch on hosts",
    hidden=0.0,
    rescatters=True,
    joins_scores=True,
    clip_bytes=12,
    packed=2.0,
    message_s=2e-4,
    unit_s=1e-3,
    handover_s=3e-3,
)
MEGATRON_2021 = Stack(
    name="Megatron 2021",
    weight_bytes=2,
    master_bytes=4,
    copy_bytes=0,
    reduce_bytes=2,
    fused_attention=False,
    saved_scale=1.0,
    hides_gradients=False,
    divides_sends=True,
    logit_bytes=14,  # an fp16 score, its fp32 copy, exponential and gradient
)
# Softmax, mask and dropout one operator at a time: 10.5 passes follow from per-layer times on A100 and RTX 3090 (16.5,
# 8.4 and 7.0 ms for a 1024-wide layer of 2048 tokens).
MEGATRON_DEEPSPEED = replace(MEGATRON_2021, name="Megatron-DeepSpeed", saved_passes=10.5, runtime_bytes=4_800_000_000)
MEGATRON_2024 = Stack(
    name="Megatron 2024",
    weight_bytes=2,
    master_bytes=4,
    copy_bytes=0,
    gather_bytes=2,
    saved_scale=1.0,
    divides_sends=True,
)
DEEPSPEED_2021 = Stack(
    name="DeepSpeed 2021",
    weight_bytes=2,
    gradient_bytes=2,
    master_bytes=4,
    copy_bytes=0,
    gather_bytes=2,
    reduce_bytes=2,
    fused_attention=False,
    saved_scale=1.0,
    hidden=0.0,
    tensors_per_block=16,
)
FSDP_2023 = Stack(name="FSDP 2023", copy_bytes=0, gather_bytes=2, reduce_bytes=2, saved_scale=1.0, attention_scale=0.55)
FSDP_2024 = Stack(
    name="FSDP 2024",
    copy_bytes=0,
    gather_bytes=2,
    reduce_bytes=2,
    saved_scale=1.0,
    selective_matmuls=0.5,  # torchtitan's policy keeps the result of every second one
    logit_bytes=16,
)
