"""Collectives that autograd goes through: what each gives forward, and what it does to gradients backward.

Named for what happens to the value: `enter` and `leave` are the two ends of a region in which each rank computes a part
of a sum (f and g of Shoeybi et al. 2019, section 3); the others join or cut along a dimension.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mainspring.train.parallel.copies import arrive

Group = dist.ProcessGroup


def summed(x: Tensor, group: Group) -> Tensor:
    """The sum of `x` over the group; no gradient."""
    total = x.clone(memory_format=torch.contiguous_format)
    arrive(dist.all_reduce(total, group=group, async_op=True))
    return total


def joined(x: Tensor, dim: int, group: Group) -> Tensor:
    """The group's parts one after the other along `dim`; no gradient."""
    parts = x.new_empty((group.size() * len(x), *x.shape[1:]))
    arrive(dist.all_gather_single(parts, x.contiguous(), group=group, async_op=True))
    return torch.cat(parts.chunk(group.size()), dim)


def summed_part(x: Tensor, dim: int, group: Group) -> Tensor:
    """This rank's part along `dim` of the sum over the group; no gradient."""
    parts = x.chunk(group.size(), dim)
    front, part = torch.cat(parts), torch.empty_like(parts[0], memory_format=torch.contiguous_format)
    arrive(dist.reduce_scatter_single(part, front, group=group, async_op=True))
    return part


def own_part(x: Tensor, dim: int, group: Group) -> Tensor:
    """This rank's part of `x` along `dim`."""
    return x.chunk(group.size(), dim)[group.rank()].contiguous()


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return summed(grads[0], ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:  # noqa: ARG004 the signature is torch's
        return summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: ARG004
        return grads[0], None


class _Along(torch.autograd.Function):
    """One collective forward, another backward, both along a dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group, ways: tuple[Any, Any]) -> Tensor:
        ctx.dim, ctx.group, ctx.back = dim, group, ways[1]
        return ways[0](x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.back(grads[0], ctx.dim, ctx.group), None, None, None


def enter(x: Tensor, group: Group) -> Tensor:  # house: an autograd function is called by its apply
    """`x`, whose gradient will be the sum of what the ranks find."""
    return _Enter.apply(x, group)


def leave(x: Tensor, group: Group) -> Tensor:  # house: an autograd function is called by its apply
    """The sum of the ranks' parts."""
    return _Leave.apply(x, group)


def enter_joined(x: Tensor, dim: int, group: Group) -> Tensor:
    """The ranks' parts of `x` along `dim`, joined; the gradient of each part is the sum of what the ranks find."""
    return _Along.apply(x, dim, group, (joined, summed_part))


def leave_split(x: Tensor, dim: int, group: Group) -> Tensor:
    """This rank's part along `dim` of the sum of the ranks' `x`."""
    return _Along.apply(x, dim, group, (summed_part, joined))


def join(x: Tensor, dim: int, group: Group) -> Tensor:
    """The ranks' parts joined, for a computation that all ranks then do alike."""
    return _Along.apply(x, dim, group, (joined, own_part))


def split(x: Tensor, dim: int, group: Group) -> Tensor:
    """This rank's part of an `x` that all ranks have alike."""
    return _Along.apply(x, dim, group, (own_part, joined))
