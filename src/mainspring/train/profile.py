"""What a recipe costs per token, for planning it and for its utilisation: built on the meta device, so it is free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mainspring.models.annotate import matching, read_marks
from mainspring.models.config import describe_config
from mainspring.models.divide import regions, vocabulary
from mainspring.models.moe import MoeDecoder, describe_moe
from mainspring.models.profile import profile_decoder, profile_module
from mainspring.models.structure import set_cache
from mainspring.models.transformer import Decoder
from mainspring.spec import Hints, ModelSpec, Plan, SpecError
from mainspring.train.parallel import LossModule
from mainspring.train.parallel.along import why_whole
from mainspring.train.parallel.read import read_model
from mainspring.train.parallel.share import check_plan
from mainspring.train.recipe import Facts, Recipe, adamw, line_of_user
from mainspring.train.trial import not_profiled, try_recipe

ENDS = ("embedding", "head")  # what profiles call the two units round the blocks of a language model
FREE = Hints()
ADAM_BYTES = 8.0  # two fp32 moments of each parameter


def profile_recipe(recipe: Recipe, facts: Facts, *, name: str) -> ModelSpec:
    """The recipe's model as the planner sees it: by formula for a `Decoder`, else measured on one row of tokens.

    Raises `SpecError` for a model or loss that cannot run on the meta device.
    """
    return study_recipe(recipe, facts, name=name, hints=FREE)[0]


def study_recipe(recipe: Recipe, facts: Facts, *, name: str, hints: Hints) -> tuple[ModelSpec, Hints]:
    """The recipe's model as the planner sees it, and `hints` with what the recipe says of the model's parts.

    Raises `SpecError` for a model or loss that cannot run on the meta device, for a model that could not be exported
    once it is trained, and for patterns that mean nothing in it.
    """
    model = try_recipe(recipe, facts)
    with torch.device("meta"):
        _check_export(model)
        hints = _with_marks(model, hints)
        found = _profiled(recipe, model, name=name, hints=hints)
    unshared = "" if type(model) is Decoder else why_whole(model, recipe.loss)
    kept_bytes, whole = _optimizer_state(recipe, model)
    if whole and hints.tp > 1:
        raise SpecError(
            f"tp {hints.tp} was asked for, the recipe's optimizer updates whole matrices",
            hint="leave tp out, or use an optimizer that updates each number for itself",
        )
    return replace(found, optimizer_bytes=kept_bytes, unshared=unshared), replace(hints, tp=1) if whole else hints


def _check_export(model: nn.Module) -> None:
    """Raise `SpecError` where the Hugging Face layout has no place for what the model computes."""
    if isinstance(model, MoeDecoder):
        describe_moe(model.moe, dtype="float32")
    elif isinstance(model, Decoder):
        describe_config(model.config, dtype="float32")


def _profiled(recipe: Recipe, model: nn.Module, *, name: str, hints: Hints) -> ModelSpec:
    config = recipe.config
    patterns = tuple(pattern for pattern in hints.replicate if pattern not in ENDS)
    trained = all(parameter.requires_grad for parameter in model.parameters())
    if type(model) is Decoder and trained and not patterns:
        return profile_decoder(model.config, seq_len=config.seq_len, name=name, precision=config.precision)
    row = torch.zeros((1, config.seq_len + 1), dtype=torch.int64)
    module = LossModule(set_cache(model, used=True), recipe.loss)
    whole = (*patterns, *(f"model.{pattern}" for pattern in patterns))
    try:
        return profile_module(module, (row,), name=name, seq_len=config.seq_len, whole=whole)
    except (NotImplementedError, RuntimeError) as error:
        raise not_profiled(error, model) from error


def _optimizer_state(recipe: Recipe, model: nn.Module) -> tuple[float, bool]:
    """Bytes of state that the recipe's optimiser keeps of a parameter in the mean, and whether it wants whole matrices.

    Counted on tensors without values; those of Adam for an optimiser that looks at values, as Adafactor does, or is
    not installed here. Raises `SpecError` when the recipe's code fails.
    """
    if recipe.optimizer is adamw:
        return ADAM_BYTES, False
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            _materialise(model)
            optimizer = recipe.optimizer(model, recipe.config)
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
    except (ImportError, NotImplementedError, RuntimeError):
        return ADAM_BYTES, False
    except Exception as error:  # the user's code: anything may come out of it
        raise SpecError(
            f"{line_of_user(error)}the recipe's optimizer makes no step: {type(error).__name__}: {error}"
        ) from error
    kept = (value for slots in optimizer.state.values() for value in slots.values() if isinstance(value, Tensor))
    each = sum(value.nbytes for value in kept if value.ndim) / max(1, sum(p.numel() for p in trained))
    return each, getattr(optimizer, "whole_matrices", False)


def _materialise(model: nn.Module) -> None:
    """Parameters on the host in place of those on the meta device; one that has several names stays one."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            if old not in made:
                made[old] = nn.Parameter(torch.empty_like(old, device="cpu"), requires_grad=old.requires_grad)
            setattr(module, name, made[old])


def _with_marks(model: nn.Module, hints: Hints) -> Hints:
    """`hints` and the annotations of `model`, as names of blocks (`embedding`, `head`, classes) and of modules."""
    marks = read_marks(model)
    if marks.degree and hints.tp not in (0, marks.degree):
        raise SpecError(
            f"tp {hints.tp} was asked for, the recipe splits parts of the model over {marks.degree}",
            hint="leave one of them out",
        )
    if not (marks.replicate or marks.split or hints.replicate or hints.split):
        return hints
    words, found = vocabulary(model), regions(model)
    ends = {"embedding": words.embedding, "head": words.head} if words else {}
    for pattern in (*hints.replicate, *hints.split):
        if pattern not in ENDS and not matching(model, pattern):
            raise SpecError(
                f"no module of the model is called {pattern!r}",
                hint=f"give a path, a class, or one of {' and '.join(ENDS)}; * stands for anything",
            )
    for pattern in (*marks.split, *(p for p in hints.split if p not in ENDS)):
        names = [*(region.name for region in found), *ends.values()]
        if not any(_within(name, other) for other in matching(model, pattern) for name in names):
            raise SpecError(
                f"{pattern} shall be split, and nothing in it can be divided",
                hint="attention and feed-forwards can, and a vocabulary; take split() away from the rest",
            )
    replicate, split = (
        tuple(dict.fromkeys((*given, *marked, *_ends_meant(model, (*given, *marked), ends))))
        for given, marked in ((hints.replicate, marks.replicate), (hints.split, marks.split))
    )
    return replace(hints, replicate=replicate, split=split, tp=marks.degree or hints.tp)


def _ends_meant(model: nn.Module, patterns: Sequence[str], ends: Mapping[str, str]) -> Iterator[str]:
    """Which ends of the model lie in modules that `patterns` mean."""
    for pattern in patterns:
        for name in matching(model, pattern):
            yield from (end for end, module in ends.items() if _within(module, name))


def _within(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")


def check_recipe(recipe: Recipe, facts: Facts, plan: Plan) -> None:
    """Raise `SpecError` when `plan` cannot be carried out with the recipe's model, before any rank starts."""
    mesh = plan.mesh
    if mesh.pp == mesh.tp == mesh.cp == mesh.ep == 1:
        check_plan(plan)  # replicas and shards do not look into the model
        return
    with torch.device("meta"):
        model = recipe.build({**facts, "seq_len": plan.seq_len, "seed": recipe.config.seed})
    read_model(model, recipe.loss, plan)
