"""Data parallelism: who reduces which gradients when, and who holds which part of the state.

ZeRO (Rajbhandari et al. 2020) is torch's `fully_shard` over the axes fsdp and cp, replicated over dp and ep. ZeRO-1
and 2 keep parameters whole from the first forward to the last backward of a step; ZeRO-1 exchanges gradients once a
step, ZeRO-2 after each micro-batch (once, where replicas run different numbers of them); ZeRO-3 drops parameters after
each use. Without ZeRO, plain replicas are torch's DistributedDataParallel, which hides its messages behind backward.
Wherever neither reaches, gradients are added up in a few large messages after the last backward.

All gradients are sums over replicas.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mainspring.models.structure import outermost_entries
from mainspring.spec import Recompute

BUCKET_BYTES = 64 * 1024**2


def shard(root: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh, *, regather: bool) -> None:
    """Shard each of `blocks`, then what else is in `root` and not sharded yet."""
    for module in (*blocks, root):
        fully_shard(module, mesh=mesh, reshard_after_forward=regather)
    sum_gradients(root)


def sum_gradients(root: nn.Module) -> None:
    """Have every sharded module of `root` add gradients up instead of averaging them."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # Gloo cannot scale while it reduces (torch 2.13: "Cannot use ReduceOp.PREMUL_SUM"), hence the plain sum.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            # A batch may leave layers out that another rank's uses, and all must reduce the same.
            module.set_reduce_scatter_unused_params(True)


def note_used(root: nn.Module) -> set[nn.Parameter]:
    """Where the sharded parameters of `root` that a backward reaches will be found.

    Their gradients tell no more once they are reduced: then all have one. Torch 2.13 keeps the others to itself.
    """
    used: set[nn.Parameter] = set()
    for module in root.modules():
        if isinstance(module, FSDPModule):
            for group in module._get_fsdp_state()._fsdp_param_groups:  # noqa: SLF001
                group.post_backward = partial(_note, group, group.post_backward, used)
    return used


def _note(group: Any, post_backward: Any, used: set[nn.Parameter], *unused: Any) -> None:
    for parameter in group.fsdp_params:
        whole = getattr(parameter, "_unsharded_param", None)
        if whole is not None and (whole.grad is not None or parameter.unsharded_accumulated_grad is not None):
            used.add(parameter.sharded_param)
    post_backward(*unused)


def drop_unused(parameters: Sequence[nn.Parameter], used: set[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Take away the gradient of a parameter that no rank of the group has used: it is but zeros."""
    for parameter, ranks in zip(parameters, _ranks([p in used for p in parameters], parameters, group), strict=True):
        if not ranks:
            parameter.grad = None


def replicate(root: nn.Module, group: dist.ProcessGroup) -> DistributedDataParallel:
    """`root` with its gradients exchanged, as their mean, while backward runs."""
    # A batch may leave layers out, and another rank's batch others: their gradients are still exchanged. Where nothing
    # is left out torch 2.13 tells each rank, in C++, that it looked for unused parameters in vain; this one always is.
    like = next(parameter for parameter in root.parameters() if parameter.requires_grad)
    root.register_parameter("left_out", nn.Parameter(like.detach().new_empty(0)))
    # Buffers are each replica's own, as they are under ZeRO; those of the first are saved.
    return DistributedDataParallel(
        root,
        process_group=group,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=True,
    )


@contextlib.contextmanager
def microbatch(module: nn.Module, *, last: bool, zero: int, even: bool) -> Iterator[None]:
    """Run a forward and backward of `module` inside, as the `last` of a step or not.

    `even` says whether all replicas run as many, so that ZeRO-2 may exchange gradients in each.
    """
    if isinstance(module, DistributedDataParallel):
        with contextlib.nullcontext() if last else module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule) and zero < 3:
        module.set_requires_gradient_sync(last or (zero == 2 and even))
        module.set_reshard_after_backward(last)
        module.set_is_last_backward(last)
    yield


def reshard(root: nn.Module) -> None:
    """Drop gathered parameters that no backward will drop: after a forward that was only a test."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def fill_in(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Give a parameter that other ranks of the group have used, and this one has not, a gradient of zeros.

    One that none has used keeps none, so that no optimiser touches it.
    """
    held = [parameter.grad is not None for parameter in parameters]
    for parameter, ranks in zip(parameters, _ranks(held, parameters, group), strict=True):
        if ranks and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _ranks(marks: Sequence[bool], parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> list[int]:
    """How many ranks of the group mark each of `parameters`."""
    if not parameters:
        return []
    marked = torch.tensor(marks, dtype=torch.int32, device=parameters[0].device)
    dist.all_reduce(marked, group=group)
    # Nothing has a value in a dry run, where other ranks do what this one does.
    return [group.size() * mark for mark in marks] if isinstance(marked, FakeTensor) else marked.tolist()


def reduce_in_buckets(gradients: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Add `gradients` up over the group in place, in messages of about `BUCKET_BYTES`."""
    bucket: list[Tensor] = []
    held = 0
    for gradient in gradients:
        if bucket and (held + gradient.nbytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            _reduce(bucket, group)
            bucket, held = [], 0
        bucket.append(gradient)
        held += gradient.nbytes
    if bucket:
        _reduce(bucket, group)


def _reduce(bucket: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    dist.all_reduce(flat, group=group)
    for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
        gradient.copy_(total.view_as(gradient))


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost entries of lists of modules, save those that share a parameter with something outside.

    A shared parameter (tied embeddings) must live in one sharding group, and the root's is the one group that
    everything else belongs to.
    """
    owners: dict[int, set[int]] = {}
    blocks = [block for _, block in outermost_entries(model)]
    for index, block in enumerate(blocks):
        for parameter in block.parameters():
            owners.setdefault(id(parameter), set()).add(index)
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in model.modules():
        if id(module) not in inside:
            for parameter in module.parameters(recurse=False):
                owners.setdefault(id(parameter), set()).add(-1)
    return [b for b in blocks if all(len(owners[id(p)]) == 1 for p in b.parameters())]


def recompute(blocks: Iterable[nn.Module], kind: Recompute, *, around: Any = None) -> None:
    """Drop activations of each block after its forward and compute them again in backward (Chen et al. 2016).

    `full` keeps a block's inputs alone; `selective` also what matrix products and attention gave, so that only cheap
    operations are repeated. `around()` makes a context that both computations of a block run in.
    """
    if kind == "none":
        return
    for block in blocks:
        contexts = partial(_contexts, kind, around)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _contexts(kind: Recompute, around: Any) -> tuple[Any, Any]:
    if kind == "selective":
        found = create_selective_checkpoint_contexts(_keep_products)
    else:
        found = contextlib.nullcontext(), contextlib.nullcontext()
    return found if around is None else (found[0], _Both(found[1], around()))


class _Both:
    """Two contexts, one inside the other."""

    def __init__(self, outer: Any, inner: Any) -> None:
        self._outer, self._inner = outer, inner

    def __enter__(self) -> None:
        self._outer.__enter__()
        self._inner.__enter__()

    def __exit__(self, *reason: Any) -> None:
        self._inner.__exit__(*reason)
        self._outer.__exit__(*reason)


_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "all_reduce", "all_gather", "reduce_scatter", "all_to_all")


def _keep_products(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:  # noqa: ARG001 torch's call
    name = operation.name().partition("::")[2].partition(".")[0].strip("_")
    kept = name in _PRODUCTS or "attention" in name
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
