"""A small language model of the handbook: single-device PyTorch, no word about ranks."""

import mainspring as ms
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig
from mainspring.train.muon import muon


def model(vocab: int, seq_len: int, eos_id: int) -> Decoder:
    shape = {"hidden": 256, "layers": 6, "heads": 2, "kv_heads": 1, "ffn": 704, "qk_norm": True}
    return Decoder(DecoderConfig(vocab=vocab, context=seq_len, eos_id=eos_id, **shape))


recipe = ms.Recipe(
    model=model,
    optimizer=muon,
    config=ms.TrainConfig(
        steps=420,
        global_batch=12,
        seq_len=256,
        lr=1.5e-3,
        warmup_steps=30,
        min_lr_ratio=0.05,
        precision="bf16",
        checkpoint_every=100,
    ),
)
