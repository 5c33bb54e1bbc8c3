"""Recipes: what a user may write, and what is said to one who wrote something else."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from mainspring.spec import SpecError, TrainConfig
from mainspring.train.recipe import Recipe, adamw, load_recipe, next_token_loss

GOOD = """
from torch import nn
import mainspring as ms

class Model(nn.Module):
    def __init__(self, vocab, width):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab, width), nn.Linear(width, vocab)
    def forward(self, ids):
        return self.head(self.embed(ids))

def model(vocab, eos_id, width=4):
    return Model(vocab + (eos_id or 0), width)

recipe = ms.Recipe(model=model, config=ms.TrainConfig(steps=7, global_batch=4, seq_len=8))
"""
FACTS = {"vocab": 10, "eos_id": 2, "bos_id": None, "seq_len": 8, "seed": 0}


def recipe_file(folder: Path, source: str) -> Path:
    path = folder / "recipe.py"
    path.write_text(source)
    return path


def test_a_recipe_is_the_file_a_user_writes_and_gets_the_facts_it_asks_for(tmp_path):
    loaded = load_recipe(recipe_file(tmp_path, GOOD))
    model = loaded.recipe.build(FACTS)
    assert model.embed.weight.shape == (12, 4)
    assert loaded.recipe.config.steps == 7
    total, count = loaded.recipe.loss(model, torch.zeros((2, 9), dtype=torch.int64))
    assert count == 16
    assert total.item() == pytest.approx(16 * next_token_loss(model, torch.zeros((1, 2), dtype=torch.int64))[0].item())


def test_a_model_of_transformers_needs_no_loss_of_its_own():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes))
    batch = torch.arange(18).reshape(2, 9) % 11
    total, count = next_token_loss(model, batch)
    assert count == 16
    assert total.item() / count == pytest.approx(model(batch, labels=batch).loss.item(), rel=1e-5)


def test_the_digest_follows_the_content_and_not_the_place(tmp_path):
    (tmp_path / "other").mkdir()
    first = load_recipe(recipe_file(tmp_path, GOOD)).digest
    assert load_recipe(recipe_file(tmp_path / "other", GOOD)).digest == first
    assert load_recipe(recipe_file(tmp_path, GOOD + "\n# more")).digest != first


def test_an_edit_of_the_same_length_within_a_second_is_seen(tmp_path):
    path = recipe_file(tmp_path, GOOD)
    stat = path.stat()
    assert load_recipe(path).recipe.config.steps == 7
    recipe_file(tmp_path, GOOD.replace("steps=7", "steps=9"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load_recipe(path).recipe.config.steps == 9


def test_a_recipe_may_import_a_module_beside_it(tmp_path):
    (tmp_path / "sizes_of_this_test.py").write_text("WIDTH = 6")
    source = "from sizes_of_this_test import WIDTH\n" + GOOD.replace("width=4", "width=WIDTH")
    assert load_recipe(recipe_file(tmp_path, source)).recipe.build(FACTS).embed.weight.shape[1] == 6


def test_overrides_change_the_config_and_a_typo_names_the_nearest_field(tmp_path):
    path = recipe_file(tmp_path, GOOD)
    assert load_recipe(path, ("steps=100", "lr=3e-4")).recipe.config == TrainConfig(
        steps=100, global_batch=4, seq_len=8, lr=3e-4
    )
    with pytest.raises(SpecError) as caught:
        load_recipe(path, ("stpes=100",))
    assert "steps" in f"{caught.value} {caught.value.hint}"
    with pytest.raises(SpecError, match="steps"):
        load_recipe(path, ('steps="many"',))
    with pytest.raises(SpecError, match="at least 1"):
        load_recipe(path, ("steps=0",))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr=-1", "lr must be at least 0, got -1"),
        ("checkpoint_every=-5", "checkpoint_every must be at least 0, got -5"),
        ("warmup_steps=-1", "warmup_steps must be at least 0"),
        ("clip_norm=-0.5", "clip_norm must be at least 0"),
        ("beta2=1.0", "beta2 must be below 1"),
        ("lr=nan", "lr is nan, which is no finite number"),
    ],
)
def test_a_number_that_no_training_can_have_is_refused(tmp_path, override, said):
    with pytest.raises(SpecError, match=said):
        load_recipe(recipe_file(tmp_path, GOOD), (override,))


@pytest.mark.parametrize(
    ("source", "said", "hint"),
    [
        ("import mainspring as ms\n\nx = 1 / 0\n", "recipe.py:3: ZeroDivisionError: division by zero", ""),
        ("def model(:\n", "recipe.py:1: invalid syntax", ""),
        ("import no_such_module_anywhere\n", "recipe.py:1: ModuleNotFoundError", ""),
        ("recpie = 1\n", "defines no recipe", "rename recpie to recipe"),
        (GOOD.replace("recipe = ", "training = "), "defines no recipe", "rename training to recipe"),
        ("x = 1\n", "defines no recipe", "write recipe = ms.Recipe"),
        ("recipe = 3\n", "recipe is 3", "write recipe = ms.Recipe"),
        (
            GOOD.replace("eos_id, width", "eod_id, width"),
            "recipe.py:15: the recipe's model asks for 'eod_id'",
            "'eos_id'",
        ),
        (GOOD.replace("model=model", "model=3"), "which cannot be called", ""),
        (GOOD.replace("steps=7", "steps=0"), "recipe.py:15: ValueError: steps must be at least 1", ""),
    ],
)
def test_a_broken_recipe_is_an_error_that_names_the_file_and_the_line(tmp_path, source, said, hint):
    with pytest.raises(SpecError) as caught:
        load_recipe(recipe_file(tmp_path, source))
    assert str(tmp_path) in str(caught.value)
    assert said in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("place", ["missing.py", "."])
def test_a_recipe_that_is_not_a_file_is_refused(tmp_path, place):
    with pytest.raises(SpecError, match="cannot read the recipe"):
        load_recipe(tmp_path / place)


@pytest.mark.parametrize(("name", "hint"), [("flow.toml", "mainspring run"), ("plan.json", "plan explain")])
def test_a_flow_or_a_plan_in_a_recipes_place_is_called_what_it_is(tmp_path, name, hint):
    (tmp_path / name).write_text('[steps.train]\nrecipe = "recipe.py"\n')
    with pytest.raises(SpecError, match=f"{name} is no recipe") as caught:
        load_recipe(tmp_path / name)
    assert hint in caught.value.hint


def test_weight_decay_spares_vectors_and_frozen_parameters():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(requires_grad=False)
    config = TrainConfig(steps=1, global_batch=1, seq_len=1, weight_decay=0.3)
    groups = adamw(model, config).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.3, 1), (0.0, 4)]
    assert groups[0]["params"][0] is model[0].weight


def test_a_recipe_may_bring_its_own_optimizer():
    recipe = Recipe(
        model=lambda vocab: nn.Embedding(vocab, 2),
        config=TrainConfig(steps=1, global_batch=1, seq_len=1),
        optimizer=lambda model, config: torch.optim.SGD(model.parameters(), lr=config.lr),
    )
    assert isinstance(recipe.optimizer(recipe.build(FACTS), recipe.config), torch.optim.SGD)
