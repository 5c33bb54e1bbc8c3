"""What is wrong with a recipe's code is said before anything is planned, with the user's file and line."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig, SpecError, TrainConfig
from mainspring.train.parallel import LossModule
from mainspring.train.profile import profile_recipe
from mainspring.train.recipe import Recipe, load_recipe
from mainspring.train.trial import try_recipe

FACTS = {"vocab": 48, "eos_id": None, "bos_id": None}
CONFIG = TrainConfig(steps=1, global_batch=2, seq_len=32)
RECIPE = """
import torch, mainspring as ms
from torch import nn
from torch.nn.functional import cross_entropy
class Model(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(vocab, 8), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, vocab)
    def forward(self, ids):
        hidden = self.inner(self.embed(ids))
        return self.head(hidden)
def loss(model, batch):
    scores = model(batch[:, :-1])
    return cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())
CONFIG = ms.TrainConfig(steps=1, global_batch=2, seq_len=9)
recipe = ms.Recipe(model=lambda vocab: Model(vocab), loss=loss, config=CONFIG)
"""
DEFAULT = RECIPE.replace("loss=loss, ", "")


@pytest.mark.parametrize(
    ("source", "said", "hint"),
    [
        (
            DEFAULT.replace("(self, ids)", "(self, ids, mask)"),
            "recipe.py:9: the recipe fails on a row of made-up tokens in Model: TypeError: .* argument: 'mask'",
            "model(ids)",
        ),
        (RECIPE.replace("(self, ids)", "(self, ids, mask)"), "recipe.py:13: .* argument: 'mask'", "loss(model, batch)"),
        (DEFAULT.replace("self.embed(ids)", "self.embed(ids.tokens)"), "recipe.py:10: .* AttributeError", "model(ids)"),
        (
            DEFAULT.replace("nn.Linear(8, 8)", "nn.Linear(9, 8)"),
            r"recipe.py:10: .* in inner\.0 \(Linear\): RuntimeError",
            "model(ids)",
        ),
        (
            DEFAULT.replace("return self.head(hidden)", "return {'scores': self.head(hidden)}"),
            "recipe.py:9: the model returns a dict, next-token cross-entropy wants its scores",
            "loss(model, batch)",
        ),
        (RECIPE.replace("return cross", "cross"), "recipe.py:12: the recipe's loss returned None", "(sum, count)"),
        (
            RECIPE.replace("return cross", "return 0.5 or "),
            "recipe.py:12: the recipe's loss returned 0.5",
            "one number",
        ),
        (
            RECIPE.replace("flatten())", "flatten(), reduction='none')"),
            r"recipe.py:12: the recipe's loss returned a tensor of shape \(9,\)",
            "the mean over the rows",
        ),
        (
            RECIPE.replace("return cross", "return scores.sum(), scores, cross"),
            r"the recipe's loss returned \(a tensor of shape \(\), a tensor of shape \(1, 9, 48\), a tensor",
            "(sum, count)",
        ),
        (
            RECIPE.replace("flatten())", "flatten()).detach()"),
            "recipe.py:12: the recipe's loss does not depend on any parameter",
            "gradients go back",
        ),
        (
            DEFAULT.replace("        return self", "        if hidden.mean() > 0: pass\n        return self"),
            "recipe.py:11: the recipe's model cannot be profiled without computing in Model: Tensor.item",
            "tensor values",
        ),
        (
            DEFAULT.replace("        return self", "        ids.numpy()\n        return self"),
            r"recipe.py:11: .* without computing in Model: can't convert meta device type tensor to numpy\.\n",
            "tensor values",
        ),
        (
            DEFAULT.replace("        return self", "        hidden[ids > 3]\n        return self"),
            r"recipe.py:11: .* without computing in Model: [^.]*torch.nonzero\(\)[^.]*\.\n",
            "tensor values",
        ),
        (
            RECIPE.replace("Model(vocab),", "'Model',"),
            "recipe.py:16: .* is 'Model', which is no torch.nn.Module",
            "one",
        ),
        (RECIPE.replace("Model(vocab),", "None,"), "recipe.py:16: the recipe's model is None", "return one"),
        (RECIPE.replace("super().", "1 / 0; super()."), "recipe.py:7: .* be built: ZeroDivisionError", ""),
        (
            RECIPE.replace("nn.Linear(8, 8)", "nn.Linear(8, 0), nn.Linear(0, 8)"),
            r"recipe.py:16: parameter inner.0.weight of the model has nothing in it: its shape is \(0, 8\)",
            "is 0",
        ),
        (
            RECIPE.replace("nn.Linear(8, vocab)", "nn.LazyLinear(vocab)"),
            "parameter head.weight has no size",
            "nn.Linear",
        ),
        (
            RECIPE.replace("Model(vocab),", "Model(vocab).requires_grad_(False),"),
            "recipe.py:16: there is nothing to train: Model has no parameter",
            "requires_grad",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_fault_in_a_recipes_code_names_its_file_and_its_line(tmp_path: Path, source: str, said: str, hint: str):
    path = tmp_path / "recipe.py"
    path.write_text(source)
    with pytest.raises(SpecError, match=said) as caught:
        profile_recipe(load_recipe(path).recipe, FACTS, name="m")
    assert hint in caught.value.hint


@pytest.mark.parametrize("source", [RECIPE, DEFAULT])
def test_a_recipe_without_a_fault_is_left_alone(tmp_path: Path, source: str):
    path = tmp_path / "recipe.py"
    path.write_text(source)
    assert {p.device.type for p in try_recipe(load_recipe(path).recipe, FACTS).parameters()} == {"meta"}


def decoder(vocab: int) -> Decoder:
    return Decoder(DecoderConfig(vocab=vocab, hidden=8, layers=1, heads=2, kv_heads=2, ffn=8, context=64))


def test_a_loss_of_ones_own_is_tried_with_a_decoder_too():
    with pytest.raises(SpecError, match="the recipe's loss returned None"):
        try_recipe(Recipe(model=decoder, config=CONFIG, loss=lambda model, batch: None), FACTS)


def test_a_loss_may_look_at_the_scores_of_a_decoder_whose_figures_are_known():
    def loss(model, batch):
        scores = model(batch[:, :-1])
        return scores.sum(), int((batch > 3).sum())

    assert isinstance(try_recipe(Recipe(model=decoder, config=CONFIG, loss=loss), FACTS), nn.Module)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_number_may_have_dimensions_and_is_handed_on_without(shape: tuple[int, ...]):
    weight = nn.Parameter(torch.ones(1))
    batch = torch.zeros((3, 2), dtype=torch.int64)
    for loss in (
        lambda model, batch: (weight * 6).reshape(shape) / 3,
        lambda model, batch: ((weight * 6).reshape(shape), torch.tensor(3).reshape(shape)),
        lambda model, batch: ((weight * 6).reshape(shape), 3),
    ):
        total, count = LossModule(nn.Identity(), loss)(batch)
        assert (total.shape, count.shape) == ((), ())
        assert (total.item(), count.item()) == (6, 3)
        total.detach_()  # as a pipeline does, which a view does not stand


class Counting(nn.Module):
    """A model with a learned table of 32 positions, looked up as `positions` says."""

    def __init__(self, vocab: int, positions) -> None:
        super().__init__()
        self.embed, self.places, self.head = nn.Embedding(vocab, 8), nn.Embedding(32, 8), nn.Linear(8, vocab)
        self.positions = positions

    def forward(self, ids):
        return self.head(self.embed(ids) + self.places(self.positions(ids)))


def counted(positions, *, seq_len: int, vocab: int = 48) -> None:
    config = TrainConfig(steps=1, global_batch=2, seq_len=seq_len)
    recipe = Recipe(model=lambda vocab: Counting(vocab, positions), config=config)
    assert isinstance(try_recipe(recipe, FACTS | {"vocab": vocab}), Counting)


@pytest.mark.parametrize(
    "positions",
    [
        lambda ids: torch.arange(ids.shape[1]),
        lambda ids: torch.arange(ids.shape[1])[None].expand(len(ids), -1),
        lambda ids: torch.arange(0, 512).unsqueeze(0)[:, : ids.shape[1]].to(torch.int64),
        lambda ids: (torch.arange(ids.shape[1]) + 0).view(1, -1).repeat(len(ids), 1),
    ],
)
def test_positions_beyond_a_table_are_refused_before_a_rank_looks_them_up(positions):
    counted(positions, seq_len=32)
    with pytest.raises(SpecError, match="seq_len is 33, the model has 32 positions in places"):
        counted(positions, seq_len=33)


@pytest.mark.parametrize(
    "positions",
    [
        lambda ids: torch.arange(ids.shape[1]).clamp(max=31),
        lambda ids: torch.arange(ids.shape[1]) % 32,
        lambda ids: (torch.arange(ids.shape[1])[:, None] - torch.arange(ids.shape[1])[None])[0].abs().clamp(max=31),
        lambda ids: torch.arange(ids.shape[1])[:1].expand(ids.shape[1]),
        lambda ids: torch.arange(4).repeat(ids.shape[1])[: ids.shape[1]],
        torch.zeros_like,
        lambda ids: ids % 32,
    ],
)
def test_a_small_table_is_no_fault_where_what_is_looked_up_in_it_may_be_small(positions):
    counted(positions, seq_len=64)


def test_a_vocabulary_smaller_than_a_sequence_is_no_table_of_positions():
    counted(lambda ids: ids % 32, seq_len=64, vocab=16)


@pytest.mark.parametrize(("family", "table"), [("gpt2", "transformer.wpe"), ("opt", "model.decoder.embed_positions")])
def test_a_model_of_transformers_is_not_given_more_positions_than_it_has(family: str, table: str):
    from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

    def model(vocab: int) -> nn.Module:
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        if family == "gpt2":
            return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_embd=8, n_layer=1, n_head=2, n_positions=32, **ends))
        sizes = {"hidden_size": 8, "ffn_dim": 8, "word_embed_proj_dim": 8, "num_attention_heads": 2}
        sizes |= ends | {"pad_token_id": 0}
        config = OPTConfig(vocab_size=vocab, num_hidden_layers=1, max_position_embeddings=32, **sizes)
        return OPTForCausalLM(config)

    assert isinstance(try_recipe(Recipe(model=model, config=CONFIG), FACTS), nn.Module)
    with pytest.raises(SpecError, match=f"seq_len is 40, the model has 32 positions in {table}"):
        try_recipe(Recipe(model=model, config=TrainConfig(steps=1, global_batch=2, seq_len=40)), FACTS)


def test_rotations_go_on_beyond_what_a_model_was_configured_for():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}

    def model(vocab: int) -> nn.Module:
        return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, max_position_embeddings=16, **sizes))

    assert isinstance(try_recipe(Recipe(model=model, config=CONFIG), FACTS), nn.Module)
