"""The closed forms against counted parameters, counted FLOPs and measured saved bytes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mainspring.models.profile import profile_decoder, profile_module
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig

SMALL = DecoderConfig(vocab=512, hidden=64, layers=3, heads=8, kv_heads=2, ffn=96, context=64)
KINDS = {
    "tied": SMALL,
    "untied": replace(SMALL, tied=False),
    "qwen2": replace(SMALL, qkv_bias=True),
    "qwen3": replace(SMALL, qk_norm=True, head_dim=16, tied=False),
    "multi-head": replace(SMALL, kv_heads=8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_those_of_the_model(kind: str) -> None:
    with torch.device("meta"):
        model = Decoder(KINDS[kind])
    profile = profile_decoder(KINDS[kind], seq_len=64, name=kind)
    assert profile.params == sum(parameter.numel() for parameter in model.parameters())
    assert profile.blocks[1].params == sum(parameter.numel() for parameter in model.blocks[0].parameters())


def test_figures_of_a_small_model_worked_by_hand() -> None:
    """H 64, N D 64, K D 16, F 96: q and o 4096 each, k and v 1024 each, three matrices of 6144; two norms of 64."""
    embedding, layer, head = profile_decoder(SMALL, seq_len=32, name="small").blocks
    assert layer.params == 2 * 4096 + 2 * 1024 + 3 * 6144 + 2 * 64 == 28_800
    assert layer.flops_per_token == 2 * 28_672
    assert layer.attention_flops_per_token2 == 128
    assert (embedding.params, head.params, head.flops_per_token) == (32_768, 32_832, 65_536)
    assert head.output_bytes_per_token == 2048


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_torch_counts(kind: str) -> None:
    """torch counts the whole attention square, the profile the causal half of it."""
    config, seq_len = KINDS[kind], 48
    with torch.device("meta"):
        counted = profile_module(Decoder(config), (torch.zeros(2, seq_len, dtype=torch.long),), name=kind)
    profile = profile_decoder(config, seq_len=seq_len, name=kind)
    half = sum(block.count * block.attention_flops_per_token2 * seq_len for block in profile.blocks)
    assert counted.flops_per_token == profile.flops_per_token + half
    assert counted.params == profile.params


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_the_bytes_backward_keeps(kind: str) -> None:
    config = KINDS[kind]
    ids = torch.zeros(4, 64, dtype=torch.long)
    measured = profile_module(Decoder(config), (ids,), name=kind)
    rest, first, layers = measured.blocks
    assert layers.count == config.layers - 1
    shared_angles = 2 * config.width * 4 / len(ids)
    assert first.activation_bytes_per_token - layers.activation_bytes_per_token <= shared_angles
    _, layer, head = profile_decoder(config, seq_len=64, name=kind).blocks
    assert layers.activation_bytes_per_token == pytest.approx(layer.activation_bytes_per_token)
    assert layers.output_bytes_per_token == layer.output_bytes_per_token
    assert rest.activation_bytes_per_token == pytest.approx(head.activation_bytes_per_token, abs=64)


def test_bf16_halves_what_the_layers_keep() -> None:
    full = profile_decoder(SMALL, seq_len=32, name="a").blocks[1]
    half = profile_decoder(SMALL, seq_len=32, name="a", precision="bf16").blocks[1]
    assert half.activation_bytes_per_token == pytest.approx(full.activation_bytes_per_token / 2, rel=0.02)
    assert half.output_bytes_per_token == full.output_bytes_per_token / 2


def test_any_module_is_profiled_on_meta() -> None:
    """Two convolutions of 3x3 and a classifier, by hand: 2 * 9 * in * out FLOPs per pixel."""
    with torch.device("meta"):
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
        model = nn.Sequential(stem, nn.Flatten(), nn.Linear(8 * 64, 10))
        profile = profile_module(model, (torch.zeros(5, 3, 8, 8),), name="vision")
    assert profile.params == 3 * 8 * 9 + 8 + 8 * 8 * 9 + 8 + 512 * 10 + 10
    assert profile.flops_per_token == 64 * 2 * 9 * (3 * 8 + 8 * 8) + 2 * 512 * 10
    assert profile.seq_len == 1


def test_a_module_without_repetition_is_one_block() -> None:
    with torch.device("meta"):
        profile = profile_module(nn.Linear(16, 4), (torch.zeros(3, 16),), name="linear")
    (only,) = profile.blocks
    assert (only.params, only.flops_per_token, only.output_bytes_per_token) == (68, 128, 16)
