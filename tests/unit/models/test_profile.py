"""The closed forms against counted parameters, counted FLOPs and measured saved bytes."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mainspring.models.moe import MoeDecoder
from mainspring.models.profile import profile_decoder, profile_module
from mainspring.models.structure import set_cache
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig, MoeConfig

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
def test_measured_figures_are_those_of_the_closed_form(kind: str) -> None:
    """All of them, but for the rotary angles and the words' numbers, which the embedding's part keeps."""
    config = KINDS[kind]
    shared = 2 * config.width * 4 / 2 + 8  # two rows have the same angles
    with torch.device("meta"):
        found = profile_module(Decoder(config), (torch.zeros(2, 48, dtype=torch.long),), name=kind)
    formula = profile_decoder(config, seq_len=48, name=kind)
    assert found.params == formula.params
    assert found.flops_per_token == formula.flops_per_token
    assert (found.chain, found.tied_params) == (formula.chain, formula.tied_params)
    for measured, closed in zip(found.blocks, formula.blocks, strict=True):
        kept = measured.activation_bytes_per_token - closed.activation_bytes_per_token
        assert kept == pytest.approx(0, abs=shared if closed.name == "embedding" else 1e-6)
        same = {"name": closed.name, "activation_bytes_per_token": closed.activation_bytes_per_token}
        if config.kv_heads == config.heads:
            same["divisions"] = closed.divisions
        assert replace(measured, **same) == closed


def test_torch_counts_the_same_matrix_products() -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        Decoder(SMALL)(torch.zeros(2, 48, dtype=torch.long))
    formula = profile_decoder(SMALL, seq_len=48, name="small")
    half = sum(block.count * block.attention_flops_per_token2 * 48 for block in formula.blocks)
    assert counter.get_total_flops() / (2 * 48) == formula.flops_per_token + half  # torch counts all of the square


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_the_bytes_backward_keeps(kind: str) -> None:
    """Measured on real tensors, with the CPU's own fused attention."""
    config = KINDS[kind]
    ids = torch.zeros(4, 64, dtype=torch.long)
    _, layers, head = profile_module(Decoder(config), (ids,), name=kind).blocks
    _, layer, last = profile_decoder(config, seq_len=64, name=kind).blocks
    assert layers.count == config.layers
    assert layers.activation_bytes_per_token == pytest.approx(layer.activation_bytes_per_token)
    assert layers.output_bytes_per_token == layer.output_bytes_per_token
    assert head.activation_bytes_per_token == pytest.approx(last.activation_bytes_per_token, abs=64)


def hugging_face(kind: str) -> nn.Module:
    if kind == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        return GPT2LMHeadModel(
            GPT2Config(vocab_size=512, n_embd=64, n_layer=3, n_head=8, n_positions=64, bos_token_id=0, eos_token_id=0)
        )
    if kind == "t5":
        from transformers import T5Config, T5ForConditionalGeneration

        return T5ForConditionalGeneration(
            T5Config(vocab_size=512, d_model=64, num_layers=2, num_heads=8, d_ff=96, d_kv=8)
        )
    import transformers

    family = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    sizes = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96, "head_dim": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, tie_word_embeddings=False)
    return getattr(transformers, f"{family}ForCausalLM")(config)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_decoder_of_transformers_costs_what_ours_costs(kind: str) -> None:
    """But for what backward keeps of a norm: theirs is composed of operators, ours is written out."""
    with torch.device("meta"):
        found = profile_module(hugging_face(kind), (torch.zeros(1, 48, dtype=torch.long),), name=kind)
    config = replace(SMALL, tied=False, qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3")
    ours = profile_decoder(config, seq_len=48, name="ours")
    assert found.chain
    assert found.params == ours.params
    assert [block.count for block in found.blocks] == [1, 3, 1]
    layer, own = found.blocks[1], ours.blocks[1]
    assert layer.name.endswith("DecoderLayer")
    assert 1 <= layer.activation_bytes_per_token / own.activation_bytes_per_token < 1.5
    kept = {
        "activation_bytes_per_token": own.activation_bytes_per_token,
        "split_activation_bytes_per_token": own.split_activation_bytes_per_token,
    }
    assert replace(layer, name=own.name, **kept) == own


def test_experts_of_transformers_cost_what_two_of_four_do() -> None:
    """Attention 2 * (2 * 64 * 64 + 2 * 64 * 16), the choice 2 * 64 * 4, two experts 2 * 2 * 3 * 64 * 32."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96, "head_dim": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 64}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    with torch.device("meta"):
        model = set_cache(Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads, **experts)), used=True)
        found = profile_module(model, (torch.zeros(1, 48, dtype=torch.long),), name="experts")
    assert found.chain
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.blocks[1].flops_per_token == 2 * 10240 + 2 * 64 * 4 + 2 * 2 * 3 * 64 * 32


def test_gpt2_of_transformers_is_a_chain_whose_words_are_tied() -> None:
    """A layer's matrices: 4 H^2 of attention, 8 H^2 of feed-forward."""
    with torch.device("meta"):
        model = hugging_face("gpt2")
        found = profile_module(model, (torch.zeros(1, 48, dtype=torch.long),), name="gpt2")
    embedding, layer, head = found.blocks
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.tied_params == 512 * 64
    assert (layer.count, layer.flops_per_token, layer.attention_flops_per_token2) == (3, 2 * 12 * 64**2, 128)
    assert layer.divisions == (("heads", 8), ("ffn", 256))
    assert (embedding.reductions, layer.reductions, head.reductions) == ((1, 0), (2, 2), (0, 1))


def test_a_mixture_of_experts_costs_what_its_tokens_meet() -> None:
    """Attention 2 * (2 * 64 * 64 + 2 * 64 * 16), the choice 2 * 64 * 4, two of four experts 2 * 2 * 3 * 64 * 32."""
    config = MoeConfig(decoder=SMALL, experts=4, experts_per_token=2, expert_ffn=32)
    with torch.device("meta"):
        found = profile_module(MoeDecoder(config), (torch.zeros(1, 64, dtype=torch.long),), name="moe")
    layer = found.blocks[1]
    assert (layer.experts, layer.experts_per_token, layer.expert_params) == (4, 2, 4 * 3 * 64 * 32)
    assert layer.flops_per_token == 2 * 10240 + 2 * 64 * 4 + 2 * 2 * 3 * 64 * 32
    assert layer.divisions == (("heads", 8), ("kv_heads", 2))
    assert found.chain


def test_an_encoder_and_a_decoder_are_no_chain_but_are_counted() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t5 = hugging_face("t5")

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.t5(input_ids=ids, decoder_input_ids=ids).logits

    with torch.device("meta"):
        model = Both()
        found = profile_module(model, (torch.zeros(1, 16, dtype=torch.long),), name="t5")
    assert not found.chain
    assert found.params == sum(p.numel() for p in model.parameters())
    assert sum(block.count for block in found.blocks if block.name == "T5Block") == 4


def test_a_resnet_is_a_chain_of_its_stages() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    with torch.device("meta"):
        model = ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic")
        )
        found = profile_module(model, (torch.zeros(5, 3, 32, 32),), name="resnet")
    assert found.chain
    assert found.params == sum(p.numel() for p in model.parameters())
    assert [block.name for block in found.blocks] == ["stem", "ResNetStage", "ResNetStage", "head"]
    assert found.flops_per_token > 2 * 8 * 8 * 9 * 64


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


def test_a_decoder_of_one_layer_is_not_cut_whether_it_is_counted_or_measured() -> None:
    config = replace(SMALL, layers=1)
    with torch.device("meta"):
        measured = profile_module(Decoder(config), (torch.zeros(1, 8, dtype=torch.long),), name="one")
    assert not profile_decoder(config, seq_len=8, name="one").chain
    assert not measured.chain
