"""Models of transformers as users train them: what a run on meta says of them is what torch does."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import transformers
from torch import Tensor, nn

from mainspring.models.profile import profile_module
from mainspring.models.structure import set_cache
from mainspring.plan.search import plan_training
from mainspring.spec import Hints, ModelSpec, TrainConfig
from mainspring.testing.machines import build_cluster, build_device

VOCAB, LENGTH, ROWS = 512, 48, 2
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 64}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SEEN = {"hidden_sizes": [8, 16], "depths": [2, 2], "embedding_size": 8, "layer_type": "basic"}


class Wrapped(nn.Module):
    """A model of transformers inside one of the user's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(input_ids=ids).logits


class Both(Wrapped):
    """An encoder and a decoder that read the same."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(input_ids=ids, decoder_input_ids=ids).logits


def of(family: str, **changes: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = getattr(transformers, f"{family}Config")(**{**SIZES, **HEADS, **changes})
        return getattr(transformers, f"{family}ForCausalLM")(config)

    return make


def gpt2(**tokens: int) -> nn.Module:
    silent = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    sizes = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 8, "n_positions": 64}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **silent, **tokens))


def t5() -> nn.Module:
    sizes = {"vocab_size": VOCAB, "d_model": 64, "num_layers": 2, "num_heads": 8, "d_ff": 96, "d_kv": 8}
    return Both(transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, dropout_rate=0.0)))


def resnet() -> nn.Module:
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**SEEN))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": of("Llama", tie_word_embeddings=False),
    "llama, tied": of("Llama", tie_word_embeddings=True),
    "llama inside a user's module": lambda: Wrapped(of("Llama")()),
    "mistral": of("Mistral", head_dim=8),
    "qwen2": of("Qwen2"),
    "qwen3": of("Qwen3", head_dim=8),
    "gpt2": gpt2,
    "gpt2 that pads": partial(gpt2, pad_token_id=0),
    "mixtral": of("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen2 moe": of("Qwen2Moe", **EXPERTS, num_experts=4, shared_expert_intermediate_size=32),
    "qwen3 moe": of("Qwen3Moe", **EXPERTS, num_experts=4, head_dim=8),
    "t5": t5,
    "resnet": resnet,
}


def batch_of(kind: str) -> Tensor:
    return torch.zeros(5, 3, 32, 32) if kind == "resnet" else torch.zeros(ROWS, LENGTH, dtype=torch.long)


def profiled(kind: str) -> ModelSpec:
    with torch.device("meta"):
        return profile_module(set_cache(FAMILIES[kind](), used=True), (batch_of(kind),), name=kind)


def kept_bytes(model: nn.Module, batch: Tensor) -> int:
    """What backward keeps of a real forward, parameters and scores aside, each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


# On a host T5's learned bias keeps torch from a fused kernel, which is what is profiled.
@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "t5"])
def test_what_is_profiled_on_meta_is_what_a_real_forward_keeps(kind: str) -> None:
    found = profiled(kind)
    model = set_cache(FAMILIES[kind](), used=False)
    assert found.params == sum(parameter.numel() for parameter in model.parameters())
    tokens = batch_of(kind).shape[0] * found.seq_len
    real = kept_bytes(model, batch_of(kind))
    assert sum(b.count * b.activation_bytes_per_token for b in found.blocks) * tokens == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_parameter_is_counted_by_how_it_can_be_cut(kind: str) -> None:
    found = profiled(kind)
    for block in found.blocks:
        assert sum(rows.count * rows.width for rows in block.rows) == block.params
        divided = sum(rows.count * rows.width for rows in block.rows if rows.kind in ("rows", "width"))
        assert divided >= block.split_params - block.expert_params
    assert sum(rows.count * rows.width for rows in found.tied_rows) == found.tied_params


def test_a_model_that_warns_of_padding_does_so_in_training_and_not_when_it_is_profiled() -> None:
    model = gpt2(pad_token_id=0)
    asked = type(model.transformer).warn_if_padding_and_no_attention_mask
    assert set_cache(model, used=True).transformer.warn_if_padding_and_no_attention_mask(None, None) is None
    assert set_cache(model, used=False).transformer.warn_if_padding_and_no_attention_mask.__func__ is asked


def test_tied_words_are_counted_once_and_untied_ones_twice() -> None:
    tied, untied = profiled("llama, tied"), profiled("llama")
    assert untied.params - tied.params == tied.tied_params == VOCAB * 64
    assert untied.tied_params == 0


def test_two_of_four_experts_of_mixtral_are_computed() -> None:
    """q and o 64 x 64, k and v 64 x 16, the choice 64 x 4, two experts of three matrices 64 x 96; two FLOPs each."""
    layer = profiled("mixtral").blocks[1]
    assert layer.flops_per_token == 2 * (2 * 64 * 64 + 2 * 64 * 16 + 64 * 4 + 2 * 3 * 64 * 96)
    assert layer.attention_flops_per_token2 == 2 * 64


def test_convolutions_are_counted_by_their_places() -> None:
    """32 x 32 pixels become 16 x 16 behind 7 x 7 filters, 8 x 8 behind the pool; stages of two blocks of two 3 x 3."""
    stem, first, second, head = profiled("resnet").blocks
    assert stem.flops_per_token == 2 * 16 * 16 * 7 * 7 * 3 * 8
    assert first.flops_per_token == 2 * 8 * 8 * 9 * 4 * 8 * 8
    narrow = 4 * 4 * (9 * 8 * 16 + 8 * 16 + 3 * 9 * 16 * 16)  # halved in size, with a shortcut of 1 x 1
    assert second.flops_per_token == 2 * narrow
    assert head.flops_per_token == 2 * 16 * 2


@pytest.mark.parametrize(
    ("kind", "hints"),
    [
        ("llama inside a user's module", Hints(tp=2, pp=2)),
        ("gpt2", Hints(tp=2, pp=2)),
        ("mixtral", Hints(pp=2, fsdp=2)),
        ("qwen2 moe", Hints(fsdp=4)),
        ("t5", Hints(fsdp=4)),
        ("t5", Hints(dp=4)),
        ("resnet", Hints(pp=2, dp=2)),
    ],
)
def test_what_is_asked_for_can_be_planned(kind: str, hints: Hints) -> None:
    config = TrainConfig(steps=1, global_batch=16, seq_len=LENGTH)
    cluster = build_cluster((build_device(), 4, 1))
    plan = plan_training(profiled(kind), cluster, config, ranks=4, hints=hints)
    assert plan.mesh.world == 4
    for axis in ("dp", "fsdp", "tp", "pp"):
        assert getattr(plan.mesh, axis) == max(1, getattr(hints, axis))
