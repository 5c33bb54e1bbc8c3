"""What a plan needs to know of a model before it is laid out, and every reason why the two do not go together.

Runs the model on meta tensors at most, so that the answer costs nothing and comes before any rank starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mainspring.models.divide import Region, Vocabulary
from mainspring.models.sequence import TOKENS, mixing
from mainspring.models.structure import Structure, ghost, read_structure, set_cache
from mainspring.spec import Plan, SpecError
from mainspring.train.parallel.along import why_whole
from mainspring.train.parallel.context import POSITIONS, position_argument
from mainspring.train.parallel.experts import experts_of
from mainspring.train.parallel.loss import LossModule
from mainspring.train.parallel.share import check_plan
from mainspring.train.parallel.tensor import divisible, divisible_vocabulary
from mainspring.train.recipe import Loss


@dataclass(frozen=True, slots=True)
class Reading:
    """Where the model can be cut, and what of it `tp` ranks share."""

    structure: Structure = Structure()  # noqa: RUF009 frozen
    regions: tuple[Region, ...] = ()
    vocabulary: Vocabulary | None = None


def read_model(model: nn.Module, loss: Loss, plan: Plan) -> Reading:
    """What `plan` will do with `model`. Raises `SpecError` when it cannot."""
    check_plan(plan)
    mesh = plan.mesh
    structure = _structure_of(model, loss, plan) if mesh.pp > 1 or plan.sequence_parallel else Structure()
    if mesh.ep > 1:
        _check_experts(model, mesh.ep)
    if mesh.cp > 1:
        _check_sequences(model, loss)
    if plan.zero:
        _check_shapes(model)
    if mesh.tp == 1:
        return Reading(structure=structure)
    regions = tuple(divisible(model, mesh.tp, plan.replicate))
    if plan.sequence_parallel:
        _check_tokens(model, loss, structure, regions)
    return Reading(
        structure=structure, regions=regions, vocabulary=divisible_vocabulary(model, mesh.tp, plan.replicate)
    )


def _structure_of(model: nn.Module, loss: Loss, plan: Plan) -> Structure:
    row = torch.zeros((plan.microbatch, plan.seq_len + 1), dtype=torch.int64, device="meta")
    try:
        with torch.device("meta"):
            found = read_structure(set_cache(ghost(model), used=True), lambda module: LossModule(module, loss)(row)[0])
    except (RuntimeError, NotImplementedError) as error:
        raise SpecError(
            f"the plan cuts the model into stages, but it cannot be run without computing: {error}",
            hint="set pp = 1 and sequence_parallel = false",
        ) from error
    if found.reason:
        raise SpecError(f"the plan cuts the model into stages, but {found.reason}", hint="set pp = 1 in the plan")
    blocks = sum(stage.blocks for stage in plan.stages)
    if plan.mesh.pp > 1 and blocks != found.units:
        raise SpecError(
            f"the plan's stages hold {blocks} blocks, the model has {found.units}: {len(found.blocks)}, what comes "
            "before them and what comes after",
            hint="plan the recipe again",
        )
    return found


def _check_tokens(model: nn.Module, loss: Loss, structure: Structure, regions: Sequence[Region]) -> None:
    row = torch.zeros((1, TOKENS + 1), dtype=torch.int64, device="meta")
    with torch.device("meta"):
        copy = set_cache(ghost(model), used=True)
        found = mixing(copy, lambda module: LossModule(module, loss)(row), structure.blocks, regions)
    for name, reason in found.items():
        raise SpecError(
            f"the plan cuts the sequence, and {name} must not see a part of it: {reason}",
            hint="set sequence_parallel = false in the plan",
        )


def _check_shapes(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.dim():
            raise SpecError(
                f"{name} is a single number without a dimension, which ZeRO cannot share out",
                hint="make it a parameter of shape (1,), or set zero = 0 in the plan",
            )


def _check_experts(model: nn.Module, ranks: int) -> None:
    layers = experts_of(model)
    if not layers:
        raise SpecError("the plan shares experts over ranks, the model has none", hint="set ep = 1 in the plan")
    count = next(iter(layers.values())).count
    if count % ranks:
        raise SpecError(
            f"{count} experts cannot be shared evenly by {ranks} ranks",
            hint="set ep in the plan to a divisor of the number of experts",
        )


def _check_sequences(model: nn.Module, loss: Loss) -> None:
    if position_argument(model) is None:
        raise SpecError(
            f"context parallelism must tell {type(model).__name__} the positions of its tokens, it takes none",
            hint=f"give its forward an argument {' or '.join(POSITIONS)}, or set cp = 1 in the plan",
        )
    reason = why_whole(model, loss)
    if reason:
        raise SpecError(f"the plan gives ranks parts of each sequence, but {reason}", hint="set cp = 1 in the plan")
