"""One forward pass of the model over whatever a step computes: decodes and prompt chunks in one flat row of tokens.

Flattening means one matrix product per linear layer for the whole step and no padding anywhere but in the masks of
attention. Only rows whose logits somebody reads go through the head, a quarter of a small model's weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mainspring.models.transformer import Decoder
from mainspring.serve.engine.attention import Span, StepAttention
from mainspring.serve.engine.kv import KVCache


def compute(
    model: Decoder, cache: KVCache, spans: Sequence[Span], *, ids: Sequence[int], wanted: Sequence[int]
) -> Tensor:
    """Float32 logits of the rows `wanted`, after writing every span's keys and values to the cache.

    `ids` are the tokens of all spans in order; `spans` are decodes in slot order, then chunks.
    """
    device = cache.slab.device
    positions = [at for span in spans for at in range(span.start, span.start + span.count)]
    positions_R = torch.tensor(positions, device=device)
    groups = model.config.heads // model.config.kv_heads
    attend = StepAttention(cache, spans, positions_R=positions_R, groups=groups)
    ids_1R = torch.tensor([ids], device=device)
    hidden_RH = model.hidden(ids_1R, positions_BT=positions_R[None], attend=attend)[0]
    if len(wanted) < len(positions):
        hidden_RH = hidden_RH[list(wanted)]
    return model.lm_head(hidden_RH).float()
