"""Which models may be given a part of each sequence: those in which nothing but attention looks along it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mainspring.models.moe import MoeDecoder
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig, MoeConfig
from mainspring.train.parallel.along import ATTENTION, why_whole
from mainspring.train.recipe import next_token_loss

VOCAB, WIDTH, CONTEXT = 48, 24, 64
SIZES = DecoderConfig(vocab=VOCAB, hidden=WIDTH, layers=2, heads=4, kv_heads=2, ffn=48, context=CONTEXT)


class Mixing(nn.Module):
    """A block that looks along the sequence in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.give = nn.Linear(WIDTH, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if self.way == "torch's attention":
            heads = x.unflatten(-1, (4, -1)).transpose(1, 2)
            found = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).flatten(2)
        elif self.way == "a mask":
            mask = torch.ones(length, length, dtype=torch.bool).tril()
            found = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], mask)[:, 0]
        elif self.way == "multi-head attention":
            mask = torch.full((length, length), -torch.inf).triu(1)
            found = self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
        elif self.way == "written out":
            scores = x @ x.transpose(1, 2) + torch.full((length, length), -torch.inf).triu(1)
            found = scores.softmax(-1) @ x
        elif self.way == "a convolution":
            found = self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
        else:
            found = x.roll(1, 1)
        return x + self.give(found)


class Model(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.tower = nn.ModuleList([Mixing(way), Mixing(way)])
        self.score = nn.Linear(WIDTH, VOCAB)

    def forward(self, ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]) if position_ids is None else position_ids)
        for block in self.tower:
            x = block(x)
        return self.score(x)


def llama(attention: str) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            attn_implementation=attention,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def gpt2() -> GPT2LMHeadModel:
    sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, bos_token_id=None, eos_token_id=None, **sizes))


MOE = MoeConfig(decoder=SIZES, experts=4, experts_per_token=2, expert_ffn=16)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Decoder(SIZES),
        lambda: MoeDecoder(MOE),
        lambda: llama("sdpa"),
        gpt2,
        lambda: Model("torch's attention"),
    ],
    ids=["decoder", "moe", "llama", "gpt2", "own"],
)
def test_attention_of_torch_may_reach_over_parts(make, device: str) -> None:
    with torch.device(device):
        model = make()
    before = {name: tensor.data_ptr() for name, tensor in model.named_parameters() if device == "cpu"}
    assert why_whole(model, next_token_loss) == ""
    assert before == {name: tensor.data_ptr() for name, tensor in model.named_parameters() if device == "cpu"}


@pytest.mark.parametrize(
    ("way", "where"),
    [
        ("multi-head attention", "tower.0.attention"),
        ("written out", "tower.0.give"),
        ("a convolution", "tower.0.give"),
        ("a step aside", "tower.0.give"),
    ],
)
def test_what_else_looks_along_the_sequence_is_found(way: str, where: str) -> None:
    assert why_whole(Model(way), next_token_loss) == f"{where} looks along the sequence, and not by {ATTENTION}"


def test_attention_that_transformers_writes_out_is_found() -> None:
    found = why_whole(llama("eager"), next_token_loss)
    assert found == f"model.layers.0.self_attn.o_proj looks along the sequence, and not by {ATTENTION}"


def test_a_mask_and_positions_of_the_recipes_own_are_found() -> None:
    assert "this model passes a mask" in why_whole(Model("a mask"), next_token_loss)

    def packed(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        places = torch.arange(batch.shape[1] - 1) % 8
        scores = model(batch[:, :-1], position_ids=places.expand(len(batch), -1))
        return F.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"), batch[:, 1:].numel()

    assert "the recipe passes position_ids" in why_whole(Model("torch's attention"), packed)


def test_a_model_that_does_not_answer_for_each_token_is_no_model_to_be_sure_of() -> None:
    class Pooled(Model):
        def forward(self, ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
            return super().forward(ids, position_ids).mean(1)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    assert why_whole(Pooled("torch's attention"), loss) == "it gives nothing for each token"
    assert "cannot be tried" in why_whole(Model("torch's attention"), lambda model, batch: model(batch, 1, 2))
