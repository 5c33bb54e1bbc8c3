"""How much each layer suffers from quantisation, and the model as a whole.

A layer is judged on what it puts out, `|Q(x) - W x| / |W x|` over real tokens, each layer on the inputs it has in the
original model, so that one layer's error is not charged to the next. The model is judged by the KL divergence of its
next-token distribution and by how often the most likely token stays: perplexity barely moves where these do.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mainspring.models.linear import W8A8Linear
from mainspring.models.transformer import Decoder


@torch.no_grad()
def weight_error(weight_NK: Tensor, layer: W8A8Linear) -> float:
    """Relative error of the stored weights: `|Wq - W| / |W|`."""
    restored_NK = layer.weight.float() * layer.weight_scale
    return ((restored_NK - weight_NK.float()).norm() / weight_NK.float().norm().clamp(min=1e-12)).item()


@torch.no_grad()
def output_errors(model: nn.Module, layers: Mapping[str, W8A8Linear], texts: Sequence[Tensor]) -> dict[str, float]:
    """Relative output error of each quantised layer over `texts` of token ids.

    Each is held against the module of the same name in `model`.
    """
    wrong, whole = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)

    def compare(name: str, _module: nn.Module, inputs: tuple[Tensor, ...], exact: Tensor) -> None:
        wrong[name] += (layers[name](inputs[0]) - exact).square().sum().item()
        whole[name] += exact.square().sum().item()

    hooks = [model.get_submodule(name).register_forward_hook(partial(compare, name)) for name in layers]
    try:
        for ids_T in texts:
            model(ids_T[None])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (wrong[name] / max(whole[name], 1e-24)) ** 0.5 for name in layers}


@torch.no_grad()
def divergence(model: Decoder, quantised: Decoder, texts: Sequence[Tensor]) -> tuple[float, float]:
    """Mean KL(model || quantised) per token in nats, and the share of tokens whose most likely successor stays."""
    nats, same, tokens = 0.0, 0, 0
    for ids_T in texts:
        p_TV, q_TV = (each(ids_T[None])[0].float().log_softmax(-1) for each in (model, quantised))
        nats += F.kl_div(q_TV, p_TV, log_target=True, reduction="sum").item()
        same += int((p_TV.argmax(-1) == q_TV.argmax(-1)).sum())
        tokens += len(ids_T)
    return nats / tokens, same / tokens
