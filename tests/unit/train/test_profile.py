"""What the planner is told of a recipe."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from training_gang import CONFIG, decoder, masked_loss, tied

from mainspring.spec import Hints, SpecError
from mainspring.train.muon import muon
from mainspring.train.profile import profile_recipe, study_recipe
from mainspring.train.recipe import Recipe, adamw

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


@pytest.mark.parametrize(
    "optimizer",
    [
        adamw,
        muon,
        lambda model, config: torch.optim.SGD(model.parameters(), lr=config.lr),
        lambda model, config: torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9),
        lambda model, config: torch.optim.AdamW(model.parameters(), lr=config.lr, amsgrad=True),
    ],
    ids=["adamw", "muon", "sgd", "momentum", "amsgrad"],
)
def test_the_state_of_an_optimizer_is_what_it_keeps_after_a_step(optimizer):
    spec = profile_recipe(Recipe(model=decoder, config=CONFIG, optimizer=optimizer), FACTS, name="m")
    model = decoder(48)
    made = optimizer(model, CONFIG)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    kept = sum(
        value.nbytes for slots in made.state.values() for value in slots.values() if value is not None and value.ndim
    )
    assert spec.optimizer_bytes * spec.params == pytest.approx(kept)


def test_an_optimizer_that_looks_at_values_is_taken_for_adam():
    def optimizer(model, config):
        return torch.optim.Adafactor(model.parameters(), lr=config.lr)

    spec = profile_recipe(Recipe(model=decoder, config=CONFIG, optimizer=optimizer), FACTS, name="m")
    assert spec.optimizer_bytes == 8


def test_an_optimizer_that_makes_no_step_is_refused():
    def optimizer(model, config):
        return torch.optim.LBFGS(model.parameters(), lr=config.lr)

    with pytest.raises(SpecError, match=r"the recipe's optimizer makes no step: TypeError: .* 'closure'"):
        profile_recipe(Recipe(model=decoder, config=CONFIG, optimizer=optimizer), FACTS, name="m")


def test_an_optimizer_of_whole_matrices_keeps_tensor_parallelism_out():
    recipe = Recipe(model=decoder, config=CONFIG, optimizer=muon)
    assert study_recipe(recipe, FACTS, name="m", hints=Hints())[1] == Hints(tp=1)
    with pytest.raises(SpecError, match="tp 2 was asked for, the recipe's optimizer updates whole matrices"):
        study_recipe(recipe, FACTS, name="m", hints=Hints(tp=2))
