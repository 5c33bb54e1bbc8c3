"""A decoder with mixtures of experts: Qwen3-MoE's architecture and, in checkpoints, its names.

Each token goes to the experts whose scores are highest (Shazeer et al. 2017) and gets the sum of what they make of it,
weighted by the softmax of the scores over the chosen. No token is dropped. Scores may carry a bias that evens the load
out, which takes part in the choice alone (Wang et al. 2024).

An expert's number says nothing of where its weights lie: `Experts.slots` maps one to the other, so experts can be
moved without any change to what is computed, to the last bit.

Shapes: S tokens, H hidden, E experts, K experts per token, F an expert's feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mainspring.models.config import describe_config
from mainspring.models.transformer import Decoder, initial_weight
from mainspring.spec import MoeConfig, SpecError

Compute = Callable[[Tensor, Tensor], Tensor]
Spread = Callable[[Tensor, Tensor, Compute], Tensor]
"""`spread(x_SH, counts_E, compute)`: like `compute(x_SH, counts_E)`, which it may do elsewhere."""

BIAS, HUB_BIAS = ".mlp.bias", ".mlp.gate.e_score_correction_bias"
MATRICES = ("gate_proj", "up_proj", "down_proj")


class Experts(nn.Module):
    """The feed-forwards of one layer, or those of its slots that are held here."""

    slots: Tensor

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.count = config.experts
        hidden, ffn = config.decoder.hidden, config.expert_ffn
        self.gate_proj = nn.Parameter(torch.empty(config.experts, ffn, hidden))
        self.up_proj = nn.Parameter(torch.empty(config.experts, ffn, hidden))
        self.down_proj = nn.Parameter(torch.empty(config.experts, hidden, ffn))
        self.register_buffer("slots", torch.arange(config.experts), persistent=False)
        self.spread: Spread | None = None

    def forward(self, x_SH: Tensor, chosen_SK: Tensor, weights_SK: Tensor) -> Tensor:
        """The weighted sum of what the chosen experts make of each token."""
        where = self.slots[chosen_SK.flatten()]
        order = where.argsort(stable=True)
        counts_E = torch.zeros(self.count, dtype=torch.int64, device=where.device).scatter_add_(
            0, where, torch.ones_like(where)
        )
        sent = x_SH[order // chosen_SK.shape[1]]
        made = self.compute(sent, counts_E) if self.spread is None else self.spread(sent, counts_E, self.compute)
        back = made[order.argsort()].view(*chosen_SK.shape, -1)
        # Added up in the order of the choice, wherever the experts are.
        return (back * weights_SK[..., None].to(back.dtype)).sum(1)

    def compute(self, x_SH: Tensor, counts: Tensor) -> Tensor:
        """Rows ordered by slot, `counts` of them for each slot that is held here."""
        parts = x_SH.split(_sizes(x_SH, counts))
        each = zip(parts, self.gate_proj.unbind(), self.up_proj.unbind(), self.down_proj.unbind(), strict=True)
        return torch.cat([F.linear(F.silu(F.linear(x, g)) * F.linear(x, u), d) for x, g, u, d in each])


class Mixture(nn.Module):
    """A feed-forward layer of experts. `load` counts the tokens each has seen while training, since it was reset."""

    load: Tensor
    bias: Tensor

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.decoder.hidden, config.experts, bias=False)
        self.experts = Experts(config)
        self.register_buffer("bias", torch.zeros(config.experts))
        self.register_buffer("load", torch.zeros(config.experts, dtype=torch.int64), persistent=False)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """Transform each token on its own."""
        x_SH = x_BTH.flatten(0, 1)
        scores_SE = self.gate(x_SH).float().softmax(-1)
        chosen_SK = (scores_SE.detach() + self.bias).topk(self.config.experts_per_token).indices
        weights_SK = scores_SE.gather(1, chosen_SK)
        weights_SK = weights_SK / weights_SK.sum(-1, keepdim=True)
        if self.training:
            with torch.no_grad():
                seen = chosen_SK.flatten()
                self.load.scatter_add_(0, seen, torch.ones_like(seen))
        return self.experts(x_SH, chosen_SK, weights_SK).view_as(x_BTH)

    @torch.no_grad()
    def balance(self, load: Tensor) -> None:
        """Make experts that saw more than the mean of `load` a little less likely, and the others more."""
        self.bias += self.config.balance_rate * (load.double().mean() - load).sign().to(self.bias.dtype)


class MoeDecoder(Decoder):
    """A `Decoder` with a `Mixture` for each feed-forward. Built on meta it costs nothing."""

    def __init__(self, config: MoeConfig, *, seed: int = 0) -> None:
        super().__init__(config.decoder, seed=seed, feed_forward=lambda: Mixture(config))
        self.moe = config

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Set every parameter to its value for `seed`; each expert draws on its own."""
        layers = self.config.layers
        for name, parameter in self.named_parameters():
            if parameter.ndim == 3:
                for number, expert in enumerate(parameter):
                    expert.copy_(initial_weight(_hub_name(name, number), expert.shape, layers=layers, seed=seed))
            else:
                parameter.copy_(initial_weight(name, parameter.shape, layers=layers, seed=seed))


def to_hub(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a `MoeDecoder` under the names of a Qwen3-MoE checkpoint, each expert's matrices by themselves.

    Biases of the choice, where training has moved them, have the name that DeepSeek-V3's have.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.ndim == 3:
            found |= {_hub_name(name, number): expert for number, expert in enumerate(tensor)}
        elif name.endswith(BIAS):
            if bool(tensor.any()):
                found[name.removesuffix(BIAS) + HUB_BIAS] = tensor
        else:
            found[name] = tensor
    return found


def from_hub(tensors: Mapping[str, Tensor], config: MoeConfig) -> dict[str, Tensor]:
    """The reverse of `to_hub`."""
    found = {
        name: tensor for name, tensor in tensors.items() if ".mlp.experts." not in name and not name.endswith(HUB_BIAS)
    }
    for layer in range(config.decoder.layers):
        for matrix in MATRICES:
            name = f"model.layers.{layer}.mlp.experts.{matrix}"
            found[name] = torch.stack([tensors[_hub_name(name, number)] for number in range(config.experts)])
        bias = tensors.get(f"model.layers.{layer}{HUB_BIAS}")
        found[f"model.layers.{layer}{BIAS}"] = torch.zeros(config.experts) if bias is None else bias
    return found


def describe_moe(config: MoeConfig, *, dtype: str, biased: bool = False) -> dict[str, Any]:
    """The `config.json` of a Qwen3-MoE checkpoint; of another kind, which transformers refuses, where it has biases.

    Transformers would leave them out with a warning and choose other experts than training did.
    """
    if not config.decoder.qk_norm or config.decoder.qkv_bias:
        raise SpecError("Qwen3-MoE normalises queries and keys and has no biases", hint="set qk_norm in the recipe")
    return describe_config(config.decoder, dtype=dtype) | {
        "architectures": ["MoeDecoder" if biased else "Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe_biased" if biased else "qwen3_moe",
        "num_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "moe_intermediate_size": config.expert_ffn,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _hub_name(name: str, expert: int) -> str:
    """`...experts.down_proj` of one expert is `...experts.3.down_proj.weight` in checkpoints."""
    owner, _, matrix = name.rpartition(".")
    return f"{owner}.{expert}.{matrix}.weight"


def _sizes(x_SH: Tensor, counts: Tensor) -> list[int]:
    """How many rows each slot has; on meta nobody knows, so evenly many."""
    if not counts.is_meta:
        return counts.tolist()
    each, more = divmod(x_SH.shape[0], counts.numel())
    return [each + (number < more) for number in range(counts.numel())]
