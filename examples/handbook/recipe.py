"""A small language model of the handbook: single-device PyTorch, no word about ranks."""

import mainspring as ms
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig


def model(vocab: int, eos_id: int) -> Decoder:
    return Decoder(
        DecoderConfig(
            vocab=vocab, hidden=256, layers=6, heads=4, kv_heads=2, ffn=704, context=512, qk_norm=True, eos_id=eos_id
        )
    )


recipe = ms.Recipe(
    model=model,
    config=ms.TrainConfig(
        steps=300,
        global_batch=16,
        seq_len=256,
        lr=3e-3,
        warmup_steps=30,
        min_lr_ratio=0.05,
        precision="bf16",
        checkpoint_every=100,
    ),
)
