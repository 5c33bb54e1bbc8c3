"""Expert parallelism: each rank of a group holds some experts of every layer, and tokens travel to them and back.

To everything but the experts the group is one more data axis. Two exchanges forward and two backward for each layer
(Lepikhin et al. 2020), and one of counts. Which rank holds which expert may change between two steps: `move` sends
weights and optimiser state along, and nothing that is computed changes, because experts keep their numbers.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mainspring.models.moe import Compute, Experts, Mixture
from mainspring.plan.experts import imbalance, place_experts
from mainspring.train.parallel.collectives import joined
from mainspring.train.parallel.layout import Layout, Run, local

log = logging.getLogger(__name__)


class _Exchange(torch.autograd.Function):
    """Rows to the ranks they belong to; backward they go back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, given: list[int], taken: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.given, ctx.taken, ctx.group = given, taken, group
        return _exchanged(x, given, taken, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _exchanged(grads[0], ctx.taken, ctx.given, ctx.group), None, None, None


def _exchanged(x: Tensor, given: list[int], taken: list[int], group: dist.ProcessGroup) -> Tensor:
    out = x.new_empty((sum(taken), *x.shape[1:]))
    dist.all_to_all_single(out, x.contiguous(), taken, given, group=group)
    return out


class Travel:
    """Computes rows on the ranks that hold their experts."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def __call__(self, x_SH: Tensor, counts_E: Tensor, compute: Compute) -> Tensor:
        """Rows ordered by slot, `counts_E` of each; what their experts make of them, in the same order."""
        given = counts_E.view(self._group.size(), -1)
        taken = torch.empty_like(given)
        dist.all_to_all_single(taken, given.contiguous(), group=self._group)
        sent, received = given.sum(1).tolist(), taken.sum(1).tolist()
        here = _Exchange.apply(x_SH, sent, received, self._group)
        assert isinstance(here, Tensor)
        slots = torch.arange(taken.shape[1], device=taken.device).repeat(taken.shape[0])
        order = slots.repeat_interleave(taken.flatten()).argsort(stable=True)
        made = compute(here[order], taken.sum(0))
        found = _Exchange.apply(made[order.argsort()], received, sent, self._group)
        assert isinstance(found, Tensor)
        return found


def spread_experts(model: nn.Module, group: dist.ProcessGroup) -> dict[str, Layout]:
    """Leave on this rank its part of the experts of `model`; the layouts of their parameters, by name."""
    layouts: dict[str, Layout] = {}
    for name, experts in experts_of(model).items():
        runs = runs_of(experts.slots.tolist(), group)
        for key, parameter in list(experts.named_parameters()):
            layouts[f"{name}.{key}"] = layout = Layout(tuple(parameter.shape), 0, runs)
            cut = nn.Parameter(layout.cut(parameter.data), requires_grad=parameter.requires_grad)
            experts._parameters[key] = cut  # noqa: SLF001
        experts.spread = Travel(group)
    return layouts


def experts_of(model: nn.Module) -> dict[str, Experts]:
    """The experts of each layer, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Experts)}


def mixtures_of(model: nn.Module) -> dict[str, Mixture]:
    """The layers of experts, by name; in a fixed order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Mixture)}


def loads_of(mixtures: Mapping[str, Mixture], group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Tokens that each expert has seen on all ranks of `group`."""
    if not mixtures:
        return {}
    all_loads = torch.stack([mixture.load for mixture in mixtures.values()])
    if group is not None:
        dist.all_reduce(all_loads, group=group)
    return dict(zip(mixtures, all_loads.unbind(), strict=True))


@torch.no_grad()
def move(
    experts: Experts,
    slots: Sequence[int],
    state: Mapping[Any, Any],
    *,
    group: dist.ProcessGroup,
    shards: dist.ProcessGroup | None,
) -> tuple[Run, ...]:
    """Re-place experts: expert `e` goes to `slots[e]` of `group`, with its optimiser `state`; this rank's new runs.

    `shards` are the ranks that ZeRO cuts each rank's experts over.
    """
    before = experts.slots.tolist()
    for parameter in experts.parameters():
        tensors = [parameter.data, *(t for t in state.get(parameter, {}).values() if t.shape == parameter.shape)]
        for tensor in tensors:
            rows = _all_rows(tensor, shards)
            _put_rows(tensor, _moved_rows(rows, before, slots, group))
    experts.slots.copy_(torch.tensor(slots))
    return runs_of(slots, group)


def placement(loads: Sequence[int], slots: Sequence[int], ranks: int) -> tuple[int, ...]:
    """The better of a new placement for `loads` and the present one."""
    new = place_experts(loads, ranks)
    if imbalance(loads, new, ranks) < imbalance(loads, slots, ranks):
        log.info(
            "experts are moved",
            extra={"before": imbalance(loads, slots, ranks), "after": imbalance(loads, new, ranks)},
        )
        return new
    return tuple(slots)


def runs_of(slots: Sequence[int], group: dist.ProcessGroup) -> tuple[Run, ...]:
    """Which experts this rank holds, in the order of its slots."""
    room = len(slots) // group.size()
    at = {slot: expert for expert, slot in enumerate(slots)}
    return tuple((at[group.rank() * room + place], 1) for place in range(room))


def _all_rows(tensor: Tensor, shards: dist.ProcessGroup | None) -> Tensor:
    """A tensor that ZeRO cut along dimension 0, whole: every part but the last ones has as many rows as the first."""
    if not isinstance(tensor, DTensor):
        return tensor
    assert shards is not None
    each = -(-tensor.shape[0] // shards.size())
    padded = tensor.to_local().new_zeros((each, *tensor.shape[1:]))
    padded[: tensor.to_local().shape[0]] = tensor.to_local()
    return joined(padded, 0, shards)[: tensor.shape[0]]


def _put_rows(tensor: Tensor, rows: Tensor) -> None:
    """Write this rank's part of `rows` to `tensor`."""
    for box in Layout(tuple(rows.shape)).boxes(tensor):
        box.of(local(tensor)).copy_(box.of_whole(rows))


def _moved_rows(rows: Tensor, before: Sequence[int], after: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """What this rank's slots hold once every row has travelled from its slot before to that after."""
    room, me = rows.shape[0], group.rank()
    pairs = list(zip(before, after, strict=True))
    leaving = sorted((new // room, new % room, old % room) for old, new in pairs if old // room == me)
    coming = sorted((old // room, new % room) for old, new in pairs if new // room == me)
    given = [sum(to == rank for to, _, _ in leaving) for rank in range(group.size())]
    taken = [sum(sender == rank for sender, _ in coming) for rank in range(group.size())]
    arrived = _exchanged(rows[[old for _, _, old in leaving]], given, taken, group)
    fresh = torch.empty_like(rows)
    fresh[[new for _, new in coming]] = arrived
    return fresh
