"""What the planner is told of a recipe."""

from dataclasses import replace

import pytest
from torch import nn
from training_gang import CONFIG, decoder, masked_loss, tied

from mainspring.spec import SpecError
from mainspring.train.profile import profile_recipe
from mainspring.train.recipe import Recipe

FACTS = {"vocab": 48, "eos_id": None, "bos_id": None}


def test_a_profile_counts_the_parameters_that_are_trained():
    for build in (decoder, tied):
        spec = profile_recipe(Recipe(model=build, config=CONFIG, loss=masked_loss), FACTS, name="m")
        assert spec.params == sum(p.numel() for p in build(48).parameters())
        assert max(block.count for block in spec.blocks) == 2


def test_the_linear_layers_of_any_module_are_counted_by_their_flops():
    spec = profile_recipe(Recipe(model=tied, config=CONFIG), FACTS, name="m")
    assert spec.flops_per_token == 2 * (2 * 13 * 13 + 13 * 48)
    assert [block.name for block in spec.blocks] == ["embedding", "Residual", "head"]
    assert spec.chain


def test_a_row_longer_than_the_context_is_refused_before_training():
    recipe = Recipe(model=decoder, config=replace(CONFIG, seq_len=64))
    with pytest.raises(SpecError, match="seq_len is 64, the model's context 16"):
        profile_recipe(recipe, FACTS, name="m")


def test_a_model_that_looks_at_values_says_so():
    class Peeking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Embedding(48, 48)

        def forward(self, ids):
            return self.scale(ids) * (1 if ids.sum().item() > 0 else 2)

    with pytest.raises(SpecError, match="profiled without computing"):
        profile_recipe(Recipe(model=lambda vocab: Peeking(), config=CONFIG), FACTS, name="m")
