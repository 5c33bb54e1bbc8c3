"""What a recipe costs per token, for planning it and for its utilisation: built on the meta device, so it is free."""

from __future__ import annotations

import torch

from mainspring.models.profile import profile_decoder, profile_module
from mainspring.models.structure import set_cache
from mainspring.models.transformer import Decoder
from mainspring.spec import ModelSpec, Plan, Precision, SpecError, TrainConfig
from mainspring.train.parallel import LossModule
from mainspring.train.parallel.read import read_model
from mainspring.train.parallel.share import check_plan
from mainspring.train.recipe import Facts, Recipe


def profile_recipe(recipe: Recipe, facts: Facts, *, name: str) -> ModelSpec:
    """The recipe's model as the planner sees it: by formula for a `Decoder`, else measured on one row of tokens.

    Raises `SpecError` for a model or loss that cannot run on the meta device.
    """
    config = recipe.config
    try:
        with torch.device("meta"):
            model = recipe.build({**facts, "seq_len": config.seq_len, "seed": config.seed})
            if type(model) is Decoder:
                return _profile_decoder(model, config, name=name, precision=config.precision)
            row = torch.zeros((1, config.seq_len + 1), dtype=torch.int64)
            module = LossModule(set_cache(model, used=True), recipe.loss)
            return profile_module(module, (row,), name=name, seq_len=config.seq_len)
    except (NotImplementedError, RuntimeError) as error:
        raise SpecError(
            f"the recipe's model cannot be profiled without computing: {error}",
            hint="a model must not look at tensor values (.item(), if tensor > 0) in __init__ or forward",
        ) from error


def check_recipe(recipe: Recipe, facts: Facts, plan: Plan) -> None:
    """Raise `SpecError` when `plan` cannot be carried out with the recipe's model, before any rank starts."""
    mesh = plan.mesh
    if mesh.pp == mesh.tp == mesh.cp == mesh.ep == 1:
        check_plan(plan)  # replicas and shards do not look into the model
        return
    with torch.device("meta"):
        model = recipe.build({**facts, "seq_len": plan.seq_len, "seed": recipe.config.seed})
    read_model(model, recipe.loss, plan)


def _profile_decoder(model: Decoder, config: TrainConfig, *, name: str, precision: Precision) -> ModelSpec:
    if config.seq_len > model.config.context:
        raise SpecError(
            f"seq_len is {config.seq_len}, the model's context {model.config.context}",
            hint="raise context in the recipe or lower seq_len",
        )
    return profile_decoder(model.config, seq_len=config.seq_len, name=name, precision=precision)
