"""Projections of one input as one product: the same numbers, names and memory."""

import copy
from dataclasses import replace

import pytest
import torch

from mainspring.models.joined import JoinedHeads, join_projections
from mainspring.models.linear import W8A8Linear, replace_linears
from mainspring.models.transformer import Block, Decoder
from mainspring.spec import DecoderConfig

TINY = DecoderConfig(vocab=64, hidden=48, layers=2, heads=4, kv_heads=2, ffn=80, context=64, tied=False)
KINDS = {"llama": TINY, "qwen2": replace(TINY, qkv_bias=True), "qwen3": replace(TINY, qk_norm=True, head_dim=16)}
IDS = torch.arange(24).view(2, 12)


def build(config: DecoderConfig, *, int8: bool) -> Decoder:
    model = Decoder(config, seed=2).requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    if int8:
        layers = {n: W8A8Linear.from_linear(m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        replace_linears(model)
        for name, layer in layers.items():
            model.set_submodule(name, layer)
    return model


def first(model: Decoder) -> Block:
    block = model.blocks[0]
    assert isinstance(block, Block)
    return block


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_joined_w8a8_gives_the_same_bits_and_float_the_same_numbers(kind: str) -> None:
    for int8 in (True, False):
        model = build(KINDS[kind], int8=int8)
        close = 0 if int8 else 1e-5
        expected, before = model(IDS), {name: tensor.clone() for name, tensor in model.state_dict().items()}
        join_projections(model)
        torch.testing.assert_close(model(IDS), expected, atol=close, rtol=close)
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)


@torch.no_grad()
def test_joined_layers_share_their_memory_with_the_whole() -> None:
    for int8 in (True, False):
        model = build(KINDS["qwen2"], int8=int8)
        join_projections(model)
        attention = first(model).self_attn
        assert isinstance(attention.joined, JoinedHeads)
        layers = (attention.joined.layer, attention.q_proj, attention.k_proj, attention.v_proj)
        for name in ("weight", "weight_scale", "bias") if int8 else ("weight", "bias"):
            tensors = [getattr(layer, name) for layer in layers]
            assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
            assert tensors[0].untyped_storage().nbytes() == tensors[0].nbytes


@torch.no_grad()
def test_weights_loaded_after_joining_are_used() -> None:
    for int8 in (True, False):
        model, other = (build(KINDS["qwen3"], int8=int8) for _ in range(2))
        join_projections(model)
        model(IDS)
        state = {
            n: t.flip(0) if "proj.weight" in n or "norm" in n else t
            for n, t in copy.deepcopy(other.state_dict()).items()
        }
        other.load_state_dict(state)
        model.load_state_dict(state)
        torch.testing.assert_close(model(IDS), other(IDS), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_layers_of_two_kinds_stay_apart() -> None:
    model = build(TINY, int8=False)
    attention, feed_forward = first(model).self_attn, first(model).mlp
    for place, layer in {"self_attn.k_proj": attention.k_proj, "mlp.gate_proj": feed_forward.gate_proj}.items():
        first(model).set_submodule(place, W8A8Linear.from_linear(layer))
    expected = model(IDS)
    join_projections(model)
    assert attention.joined is None
    assert feed_forward.joined is None
    torch.testing.assert_close(model(IDS), expected, atol=1e-5, rtol=1e-5)
