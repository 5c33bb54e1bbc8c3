"""A decoder-only transformer of the Llama/Qwen family, for training and for serving alike.

Grouped-query attention (Ainslie et al. 2023), rotary positions (Su et al. 2021, in the half-split layout of the
Hugging Face checkpoints), RMSNorm before each sub-layer and SwiGLU (Shazeer 2020). Parameter names are those of the
Hugging Face Llama, Qwen2 and Qwen3 checkpoints, so weights move in both directions without a mapping.

Deliberately absent: the KV cache. Whoever wants one passes `attend`, which receives every layer's queries, keys and
values after the rotation and returns what attention gives. Recomputation and sharding belong to the trainer.

Shapes: B batch, T tokens, H hidden, N query heads, K key/value heads, D head width, F feed-forward, V vocabulary.
"""

import hashlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mainspring.models.norm import RMSNorm
from mainspring.spec import DecoderConfig, RopeScaling

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`attend(layer, q_BTND, k_BTKD, v_BTKD) -> o_BTND`."""
Angles = tuple[Tensor, Tensor]
"""The factors of `rotate`."""

INIT_STD = 0.02


def attend_causally(layer: int, q_BTND: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:  # noqa: ARG001
    """Causal attention of a whole sequence over itself; query heads share key/value heads in groups."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTND, k_BTKD, v_BTKD))
    o_BNTD = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return o_BNTD.transpose(1, 2)


def rotary_angles(positions_BT: Tensor, *, width: int, theta: float, scaling: RopeScaling | None = None) -> Angles:
    """Factors of `rotate`, float32 (B, T, 1, D): each position's cosine in each plane, twice, and its sine, signed.

    Computed on every call instead of kept in a buffer: a buffer would have to survive meta-device construction.
    """
    planes = torch.arange(0, width, 2, device=positions_BT.device, dtype=torch.float32)
    speeds = theta ** (-planes / width)
    if scaling is not None:
        turns = scaling.original_context * speeds / (2 * math.pi)
        kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
        speeds = speeds * (kept + (1 - kept) / scaling.factor)
    angles = (positions_BT[..., None].float() * speeds)[:, :, None]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x_BTND: Tensor, angles: Angles) -> Tensor:
    """Rotate each head in the planes (i, i + D/2) by the angles of its position."""
    cos, sin = (part.to(x_BTND.dtype) for part in angles)
    return torch.addcmul(x_BTND * cos, x_BTND.roll(x_BTND.shape[-1] // 2, -1), sin)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions. `joined` computes `project` faster where set."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.width = layer, config.width
        self.joined: Callable[[Tensor, Angles], tuple[Tensor, Tensor, Tensor]] | None = None
        inner, shared = config.heads * config.width, config.kv_heads * config.width
        self.q_proj = nn.Linear(config.hidden, inner, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden, shared, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden, shared, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.hidden, bias=False)
        self.q_norm = RMSNorm(config.width, eps=config.rms_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.width, eps=config.rms_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BTH: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """Mix the tokens of each sequence."""
        q_BTND, k_BTKD, v_BTKD = (self.joined or self.project)(x_BTH, angles)
        return self.o_proj(attend(self.layer, q_BTND, k_BTKD, v_BTKD).flatten(2))

    def project(self, x_BTH: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values of each token."""
        heads = (*x_BTH.shape[:2], -1, self.width)
        q_BTND = rotate(self.q_norm(self.q_proj(x_BTH).view(heads)), angles)
        k_BTKD = rotate(self.k_norm(self.k_proj(x_BTH).view(heads)), angles)
        return q_BTND, k_BTKD, self.v_proj(x_BTH).view(heads)


class FeedForward(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`. `joined` computes `project` faster where set."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.joined: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
        self.gate_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """Transform each token on its own."""
        gate, up = (self.joined or self.project)(x_BTH)
        return self.down_proj(F.silu(gate) * up)

    def project(self, x_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and up of each token."""
        return self.gate_proj(x_BTH), self.up_proj(x_BTH)


class Block(nn.Module):
    """One layer: attention and feed-forward, each on a normalised copy of the residual stream."""

    def __init__(self, config: DecoderConfig, layer: int, feed_forward: nn.Module | None = None) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, eps=config.rms_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden, eps=config.rms_eps)
        self.mlp = feed_forward or FeedForward(config)

    def forward(self, x_BTH: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """Add both sub-layers to the residual stream."""
        x_BTH = x_BTH + self.self_attn(self.input_layernorm(x_BTH), angles, attend)
        return x_BTH + self.mlp(self.post_attention_layernorm(x_BTH))


class Trunk(nn.Module):
    """Everything below the head; exists so that parameter names begin with `model.`."""

    def __init__(self, config: DecoderConfig, feed_forward: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(
            Block(config, layer, feed_forward() if feed_forward else None) for layer in range(config.layers)
        )
        self.norm = RMSNorm(config.hidden, eps=config.rms_eps)


class TiedHead(nn.Module):
    """The head that multiplies by the embedding table. It owns no parameter.

    The table is looked up at each call, through a tuple so that torch does not register the embedding twice: the
    tie then survives `to_empty`, sharding (which replaces parameters) and copying, and no optimiser sees it twice.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = (embedding,)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """Logits of each token."""
        return F.linear(x_BTH, self._embedding[0].weight)


class Decoder(nn.Module):
    """The language model. Built under `torch.device("meta")` it costs nothing; call `init_weights` later.

    `feed_forward` makes what stands in the place of each layer's `FeedForward`.
    """

    def __init__(
        self, config: DecoderConfig, *, seed: int = 0, feed_forward: Callable[[], nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config, feed_forward)
        self.lm_head: nn.Module = (
            TiedHead(self.model.embed_tokens) if config.tied else nn.Linear(config.hidden, config.vocab, bias=False)
        )
        if not self.model.embed_tokens.weight.is_meta:
            self.init_weights(seed)

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers in order: the units of sharding, recomputation and pipelining."""
        return self.model.layers

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Set every parameter to its value for `seed`, whatever the device, the data type or the rank."""
        for name, parameter in self.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, layers=self.config.layers, seed=seed))

    def forward(self, ids_BT: Tensor, *, positions_BT: Tensor | None = None, attend: Attend | None = None) -> Tensor:
        """Logits (B, T, V). `positions_BT` default to 0, 1, 2, ...; `attend` to causal self-attention."""
        return self.lm_head(self.hidden(ids_BT, positions_BT=positions_BT, attend=attend))

    def hidden(self, ids_BT: Tensor, *, positions_BT: Tensor | None = None, attend: Attend | None = None) -> Tensor:
        """The normalised residual stream (B, T, H) that the head reads."""
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        config = self.config
        angles = rotary_angles(positions_BT, width=config.width, theta=config.rope_theta, scaling=config.rope_scaling)
        x_BTH = self.model.embed_tokens(ids_BT)
        for block in self.blocks:
            x_BTH = block(x_BTH, angles, attend or attend_causally)
        return self.model.norm(x_BTH)


def initial_weight(name: str, shape: torch.Size, *, layers: int, seed: int) -> Tensor:
    """The float32 start value of the parameter `name`: a function of name, shape and seed alone.

    Norms are one and biases zero. Matrices are normal with deviation 0.02; those that write into the residual
    stream are divided by sqrt(2 * layers), which keeps its variance flat in depth (Radford et al. 2019, 2.3).
    Each name has its own generator, so a rank may draw only what it holds and still agree with the others.
    """
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith(".bias"):
        return torch.zeros(shape)
    scale = (2 * layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randn(shape, generator=generator) * (INIT_STD * scale)
