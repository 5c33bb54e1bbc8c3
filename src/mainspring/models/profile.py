"""What a model costs, block by block, for the planner: parameters, FLOPs, and the bytes backward keeps.

`profile_decoder` is closed form, so a 100-billion-parameter plan takes microseconds. A multiply-add is two FLOPs;
norms, rotations and activations are not counted (they are bound by bytes, not by arithmetic). Attention counts the
causal half that is computed: 2 N D per token and token of context, half of what PaLM's convention
(Chowdhery et al. 2022, appendix B) counts. `profile_module` measures any other module instead.

Letters as in `transformer`: H hidden, N query heads, K key/value heads, D head width, F feed-forward, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mainspring.spec import BlockSpec, DecoderConfig, ModelSpec, Precision

VALUE_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}


def profile_decoder(config: DecoderConfig, *, seq_len: int, name: str, precision: Precision = "fp32") -> ModelSpec:
    """The embedding, the layers and the head of `config`; activations are counted at `precision`.

    What backward keeps of a layer, in values per token: 4 H (of each norm its input and the result), 2 N D + 2 K D
    (queries, keys, values and attention's output), 4 F (gate, its activation, up, their product), with query/key
    norms another N D + K D; and one float32 per norm and head. The head keeps its norm's two; what the loss keeps of
    the logits is the planner's to add, from `output_bytes_per_token`.
    """
    hidden, ffn, vocab = config.hidden, config.ffn, config.vocab
    inner, shared = config.heads * config.width, config.kv_heads * config.width
    matrices = hidden * (2 * inner + 2 * shared) + 3 * hidden * ffn
    vectors = 2 * hidden + config.qkv_bias * (inner + 2 * shared) + config.qk_norm * 2 * config.width
    kept = 4 * hidden + 4 * ffn + (2 + config.qk_norm) * (inner + shared)
    scales = 2 + config.heads + config.qk_norm * (config.heads + config.kv_heads)
    value_bytes = VALUE_BYTES[precision]
    stream_bytes = float(hidden * value_bytes)
    embedding = BlockSpec(
        name="embedding",
        count=1,
        params=vocab * hidden,
        flops_per_token=0.0,
        attention_flops_per_token2=0.0,
        activation_bytes_per_token=0.0,
        output_bytes_per_token=stream_bytes,
    )
    layer = BlockSpec(
        name="layer",
        count=config.layers,
        params=matrices + vectors,
        flops_per_token=2.0 * matrices,
        attention_flops_per_token2=2.0 * inner,
        activation_bytes_per_token=float(kept * value_bytes + 4 * scales),
        output_bytes_per_token=stream_bytes,
    )
    head = BlockSpec(
        name="head",
        count=1,
        params=vocab * hidden + hidden,
        flops_per_token=2.0 * vocab * hidden,
        attention_flops_per_token2=0.0,
        activation_bytes_per_token=2 * stream_bytes + 4,
        output_bytes_per_token=float(vocab * value_bytes),
    )
    return ModelSpec(
        name=name,
        blocks=(embedding, layer, head),
        seq_len=seq_len,
        tied_params=vocab * hidden if config.tied else 0,
        element_bytes=value_bytes,
    )


def profile_module(module: nn.Module, batch: tuple[Tensor, ...], *, name: str) -> ModelSpec:
    """Any module, measured on one forward pass of `batch`, both best on the meta device, where it costs nothing.

    The entries of its largest `ModuleList` or `Sequential` become blocks, equal neighbours counted together; the
    rest of the module is the first block. A token is an entry of the leading two sizes of an integer batch (B, T),
    else a sample; FLOPs are as executed at this length, attention included. On meta, attention runs unfused and
    keeps its T x T weights.
    """
    lead = batch[0]
    by_token = lead.dim() > 1 and not lead.is_floating_point()
    tokens, seq_len = (lead.numel(), lead.shape[1]) if by_token else (lead.shape[0], 1)
    whole, parts = _Part(module), [_Part(child) for child in _repeated(module)]
    with _measured([whole, *parts]):
        module(*batch)
    seen: set[int] = set()
    inside = [(type(part.module).__name__, part.figures(tokens, seen)) for part in parts]
    rest = _Part(module, flops=whole.flops - sum(part.flops for part in parts), kept_bytes=whole.kept_bytes)
    rest.output_bytes = whole.output_bytes
    blocks = [BlockSpec(name="rest", count=1, **rest.figures(tokens, seen))]
    for (kind, figures), same in groupby(inside):
        blocks.append(BlockSpec(name=kind, count=len(list(same)), **figures))
    return ModelSpec(name=name, blocks=tuple(blocks), seq_len=seq_len)


@dataclass(slots=True)
class _Part:
    """A module and what one forward pass of it cost; what its measured parts cost is not in `kept_bytes`."""

    module: nn.Module
    flops: int = 0
    kept_bytes: int = 0
    output_bytes: int = 0

    def figures(self, tokens: int, seen: set[int]) -> dict[str, Any]:
        """The fields of a `BlockSpec`. Parameters in `seen` belong to another block; ours are added to it."""
        own = {id(p): p.numel() for p in self.module.parameters() if id(p) not in seen}
        seen.update(own)
        return {
            "params": sum(own.values()),
            "flops_per_token": self.flops / tokens,
            "attention_flops_per_token2": 0.0,
            "activation_bytes_per_token": self.kept_bytes / tokens,
            "output_bytes_per_token": self.output_bytes / tokens,
        }


def _repeated(module: nn.Module) -> list[nn.Module]:
    """The entries of the list of modules that holds most parameters; none when there is no list of two."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1]
    return list(max(lists, key=lambda each: sum(p.numel() for p in each.parameters()), default=nn.ModuleList()))


@contextmanager
def _measured(parts: Sequence[_Part]) -> Iterator[None]:
    """While open, add to each part the FLOPs of its forward pass and the bytes backward keeps of it.

    A tensor kept twice counts once, for the innermost part that kept it first; parameters do not count.
    """
    counter = FlopCounterMode(display=False)
    running: list[_Part] = []
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {_storage(p) for part in parts for p in part.module.parameters()}

    def enter(part: _Part, *_: object) -> None:
        running.append(part)
        part.flops -= counter.get_total_flops()

    def leave(part: _Part, _module: nn.Module, _inputs: object, output: Any) -> None:
        running.pop()
        part.flops += counter.get_total_flops()
        tensors = output if isinstance(output, tuple | list) else [output]
        part.output_bytes += sum(t.nbytes for t in tensors if isinstance(t, Tensor))

    def keep(tensor: Tensor) -> Tensor:
        at = _storage(tensor)
        if running and at not in weights and at not in kept:
            kept[at] = tensor.untyped_storage()  # held, so that its identity is not used again
            running[-1].kept_bytes += tensor.untyped_storage().nbytes()
        return tensor

    hooks = []
    for part in parts:
        hooks.append(part.module.register_forward_pre_hook(partial(enter, part)))
        hooks.append(part.module.register_forward_hook(partial(leave, part)))
    try:
        with torch.enable_grad(), counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # noqa: SLF001 meta tensors have no address to tell them apart
