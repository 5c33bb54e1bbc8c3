"""Models that tensor parallelism was not made for: they train as on one device, or the plan is refused.

What a planner reads of a model on meta and what training finds when it starts must be the same.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parallel_pool import (
    CONFIG,
    MODELS,
    SEQ_LEN,
    VOCAB,
    Mixing,
    Order,
    Outcome,
    masked_loss,
    plain_pytorch,
    plan_of,
    train,
)
from torch import Tensor, nn

from mainspring.models.profile import profile_module
from mainspring.models.structure import set_cache
from mainspring.plan.search import plan_training
from mainspring.spec import Hints, Mesh, ModelSpec, SpecError, Task
from mainspring.testing.gangs import Pool
from mainspring.testing.machines import build_cluster, build_device
from mainspring.train.parallel.loss import LossModule
from mainspring.train.parallel.read import read_model

THREE = replace(CONFIG, steps=3)
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "pad_token_id": None}
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64} | HEADS
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def of(family: str, **changes: object) -> Callable[[int], nn.Module]:
    def make(vocab: int) -> nn.Module:
        import transformers

        config = getattr(transformers, f"{family}Config")(**{**SIZES, **changes})
        return getattr(transformers, f"{family}ForCausalLM")(config)

    return make


def bigcode(vocab: int) -> nn.Module:
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    sizes = {"vocab_size": vocab, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return GPTBigCodeForCausalLM(GPTBigCodeConfig(**sizes, bos_token_id=0, eos_token_id=0))


class Bart(nn.Module):
    """Its decoder looks at what its encoder found, which needs a gradient."""

    def __init__(self, vocab: int) -> None:
        from transformers import BartConfig, BartForConditionalGeneration

        super().__init__()
        each = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
        sizes = {f"{side}_{key}": size for side in ("encoder", "decoder") for key, size in each.items()}
        tokens = {"pad_token_id": vocab - 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
        config = BartConfig(vocab_size=vocab, d_model=32, dropout=0.0, forced_eos_token_id=None, **sizes, **tokens)
        self.bart = BartForConditionalGeneration(config)

    def forward(self, ids: Tensor) -> Tensor:
        seen = torch.ones_like(ids)
        told = {"attention_mask": seen, "decoder_attention_mask": seen}
        return self.bart(input_ids=ids, decoder_input_ids=ids, **told).logits


class Feed(nn.Module):
    """A norm and a feed-forward in one: a region in which a parameter comes before the matrix that is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.relu(self.wide(self.norm(x))))


class Padded(nn.Module):
    """A word of padding learns nothing."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, 32, padding_idx=3)
        self.tower = nn.ModuleList(nn.ModuleList([Mixing(), Feed()]) for _ in range(2))
        self.head = nn.Linear(32, vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for mix, feed in self.tower:
            x = x + mix(x)
            x = x + feed(x)
        return self.head(x)


class Residual(nn.Module):
    """Hands its region the residual too, which nothing in it multiplies."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab, 32)
        self.tower = nn.ModuleList(Adding() for _ in range(2))
        self.score = nn.Linear(32, vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.tower:
            x = block(torch.tanh(x), x)
        return self.score(x)


class Adding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(32, 64), nn.Linear(32, 64)
        self.down_proj = nn.Linear(64, 32)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + self.down_proj(torch.sigmoid(self.gate_proj(x)) * self.up_proj(x))


class Biased(Residual):
    """Hands its region what is mixed into each feature."""

    def __init__(self, vocab: int) -> None:
        super().__init__(vocab)
        self.tower = nn.ModuleList(Mixed() for _ in range(2))


class Mixed(Adding):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        mixed = torch.sigmoid(self.gate_proj(x)) * self.up_proj(x)
        return x + self.down_proj(mixed * other.mean(-1, keepdim=True))


class Inner(Residual):
    """Its region, which cannot be tried without what else it takes, adds the residual itself."""

    def __init__(self, vocab: int) -> None:
        super().__init__(vocab)
        self.tower = nn.ModuleList(AddingInside() for _ in range(2))


class AddingInside(Adding):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x + super().forward(x, other.detach())


class Convolving(nn.Module):
    """Each token sees two before it through a convolution over time."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(32), Mixing()
        self.over_time = nn.Conv1d(32, 32, 3, padding=2, groups=32)

    def forward(self, x: Tensor) -> Tensor:
        h = self.over_time(self.norm(x).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return x + self.mix(h)


class Convolved(nn.Module):
    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab, 32)
        self.tower = nn.Sequential(*(Convolving() for _ in range(2)))
        self.score = nn.Linear(32, vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.score(self.tower(self.words(ids)))


MODELS |= {
    "gemma": of("Gemma", head_dim=8),
    "bart": Bart,
    "padded": Padded,
    "residual": Residual,
    "biased": Biased,
    "inner": Inner,
    "convolved": Convolved,
    "bigcode": bigcode,
    "mistral": of("Mistral", sliding_window=8),
    "olmo2": of("Olmo2"),
    "qwen2 moe": of("Qwen2Moe", **EXPERTS, shared_expert_intermediate_size=32),
    "qwen3 moe": of("Qwen3Moe", **EXPERTS, head_dim=8),
}


def train_foreign(task: Task, order: Order) -> Outcome:  # house: its place is what matters
    """`train`, by a function of this file, so that a rank knows its models."""
    return train(task, order)


@pytest.mark.parametrize("model", ["gemma", "bart", "t5", "padded", "residual"])
def test_what_is_no_plain_decoder_trains_under_tensor_parallelism(pool: Pool, model: str, tmp_path: Path) -> None:
    """Scaled words, cross-attention, words of three modules, padding beside an inner norm, a residual handed on."""
    expected = plain_pytorch(model, THREE)
    found = pool.run(2, train_foreign, Order(plan_of(Mesh(tp=2)), tmp_path, model=model, config=THREE))[0]
    np.testing.assert_allclose(found.losses, expected.losses, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-5)
    for name, value in expected.state.items():
        np.testing.assert_allclose(found.state[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("biased", "is handed a second tensor that needs a gradient"),
        ("inner", "goes on with its input or its weights after down_proj"),
    ],
)
def test_what_would_find_parts_of_gradients_stops_in_the_first_step(
    pool: Pool, model: str, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=rf"tower\.0 {complaint}"):
        pool.run(2, train_foreign, Order(plan_of(Mesh(tp=2)), tmp_path, model=model, config=THREE))


def profile_of(name: str, whole: tuple[str, ...]) -> ModelSpec:
    with torch.device("meta"):
        module = LossModule(set_cache(MODELS[name](VOCAB), used=True), masked_loss)
        row = torch.zeros((1, SEQ_LEN + 1), dtype=torch.int64)
        return profile_module(module, (row,), name=name, seq_len=SEQ_LEN, whole=whole)


@pytest.mark.parametrize(
    ("model", "whole", "reason"),
    [
        ("homemade", (), ""),
        ("mistral", (), ""),
        ("qwen3 moe", (), ""),
        ("moe", (), ""),
        ("homemade", ("Mixing",), "what widen is handed depends on other tokens"),
        ("llama", ("LlamaAttention",), "it does not run on half of a sequence"),
        ("olmo2", (), "it does not run on half of a sequence"),
        ("convolved", (), "what mix is handed depends on other tokens"),
        ("bigcode", (), "what mlp is handed depends on other tokens"),
        ("qwen2 moe", (), r"what mlp\.shared_expert is handed .* is not in rows"),
    ],
)
def test_the_planner_cuts_a_sequence_where_training_does_and_nowhere_else(
    model: str, whole: tuple[str, ...], reason: str
) -> None:
    hints = Hints(tp=2, pp=1, dp=1, replicate=whole)
    plan = plan_training(profile_of(model, whole), build_cluster((build_device(), 2, 1)), CONFIG, hints=hints, ranks=2)
    assert plan.mesh.tp == 2
    assert plan.sequence_parallel == (not reason)
    asked = plan_of(Mesh(tp=2), sequence_parallel=True, replicate=whole)
    if reason:
        with pytest.raises(SpecError, match=f"must not see a part of it: {reason}"):
            read_model(MODELS[model](VOCAB), masked_loss, asked)
    else:
        assert read_model(MODELS[model](VOCAB), masked_loss, asked).regions


def test_a_parameter_without_a_dimension_cannot_be_shared_out() -> None:
    class Tempered(Residual):
        def __init__(self, vocab: int) -> None:
            super().__init__(vocab)
            self.temperature = nn.Parameter(torch.tensor(1.0))

    with pytest.raises(SpecError, match="temperature is a single number without a dimension"):
        read_model(Tempered(VOCAB), masked_loss, plan_of(Mesh(fsdp=2)))
    read_model(Tempered(VOCAB), masked_loss, plan_of(Mesh(dp=2)))
