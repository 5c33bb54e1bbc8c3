"""How a plan's data-parallel mesh is laid over a module, and the process groups underneath.

`dp` replicates the module (DistributedDataParallel, Li et al. 2020); `fsdp` shards parameters, gradients and optimiser
state with `fully_shard` (ZeRO, Rajbhandari et al. 2020: stage 3 with `reshard_after_forward`, stage 2 without); both
together are hybrid sharding. The recipe's loss runs *inside* the wrapped module, so that a recipe may touch any part
of its model and still knows nothing of wrappers.

Gradients come out as the mean over ranks of each rank's summed loss; `loop` turns that into the mean over tokens.
Deliberately absent: tensor, pipeline, context and expert parallelism.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mainspring.hardware import devices
from mainspring.spec import Plan, SpecError, Task, WorkerLost
from mainspring.train.recipe import Loss

QUIET_S = 0.2


_FOR_EVER = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Share:
    """What one data replica does in a step: `count` micro-batches of `rows` rows from row `first` of the batch."""

    first: int
    count: int
    rows: int

    @property
    def all_rows(self) -> int:
        """How many rows of the global batch are this replica's."""
        return self.count * self.rows


def share_of(plan: Plan, rank: int) -> Share:
    """The part of each global batch that `plan` gives `rank`. Raises `SpecError` for a plan this loop cannot run."""
    mesh, replicas = plan.mesh, plan.mesh.dp * plan.mesh.fsdp
    if mesh.world != replicas:
        raise SpecError(f"this loop runs the mesh axes dp and fsdp, the plan is {mesh.label}")
    counts = plan.stages[0].microbatches
    if len(plan.stages) != 1 or len(counts) != replicas or min(counts) < 1:
        raise SpecError(f"the plan gives micro-batches {counts} to {replicas} replicas; each needs at least one")
    if sum(counts) * plan.microbatch != plan.global_batch:
        raise SpecError(
            f"micro-batches {counts} of {plan.microbatch} rows make {sum(counts) * plan.microbatch} rows, "
            f"the global batch has {plan.global_batch}"
        )
    if plan.recompute == "selective":
        raise SpecError('this loop recomputes whole blocks or nothing, the plan says "selective"')
    if plan.zero == 1:
        raise SpecError("this loop shards gradients with the optimiser's state, the plan says ZeRO-1")
    if plan.zero == 3 and len(set(counts)) > 1:
        raise SpecError(
            f"uneven micro-batches {counts} cannot re-gather parameters for each one: replicas would wait for ever",
            hint="set zero = 2 in the plan",
        )
    return Share(first=sum(counts[:rank]) * plan.microbatch, count=counts[rank], rows=plan.microbatch)


def process_group_backend(device: torch.device) -> str:
    """The vendor's collectives for tensors on `device`, and gloo for what lives on the host."""
    if device.type == "cpu":
        return "gloo"
    return f"cpu:gloo,{device.type}:{devices.backend(devices.local_vendor()).collective()}"


class Group:
    """The process groups of one gang, which can be torn down and made again in the same process.

    Every epoch of every attempt has its own key prefix: keys of a dead epoch can never be read by a later one. The
    store itself (hosted by rank 0) outlives the groups.
    """

    def __init__(self, task: Task, *, timeout_s: float = 600.0) -> None:
        self.task = task
        self.device = torch.device(devices.torch_device(task.local_rank))
        if self.device.index is not None:
            torch.accelerator.set_device_index(self.device.index)
        self._timeout = timedelta(seconds=timeout_s)
        self._store: dist.Store | None = None

    def join(self, epoch: int) -> None:
        """Meet the other ranks in `epoch` and make the groups. One rank is a group too, and needs no port."""
        try:
            dist.init_process_group(
                process_group_backend(self.device),
                store=dist.PrefixStore(f"{self._attempt}/{epoch}", self._reach()),
                rank=self.task.rank,
                world_size=self.task.world,
                timeout=self._timeout,
            )
        except (dist.DistError, RuntimeError, ValueError) as error:
            raise WorkerLost(
                f"rank {self.task.rank} of {self.task.world} could not meet the others at {self.task.master}: {error}"
            ) from error

    def once_per_node(self, make: Callable[[], str]) -> str:
        """What `make` returns on the first rank of this rank's node; the node's other ranks wait for it.

        For as long as it takes: when that rank fails, the launcher ends the gang.
        """
        task = self.task
        key = f"node-{task.rank - task.local_rank}"  # ranks of a node follow one another
        try:
            store = dist.PrefixStore(self._attempt, self._reach())  # before the work, so that others can meet here
            if task.local_rank == 0:
                store.set(key, make())
            store.wait([key], _FOR_EVER)
            return store.get(key).decode()
        except (dist.DistError, RuntimeError, ValueError) as error:
            raise WorkerLost(f"rank {task.rank} could not hear from the first rank of its node: {error}") from error

    @property
    def _attempt(self) -> str:
        return f"{self.task.job_id}/{self.task.attempt}"

    def _reach(self) -> dist.Store:
        if self._store is None:
            self._store = self._open_store()
        return self._store

    def _open_store(self) -> dist.Store:
        if self.task.world == 1:
            return dist.HashStore()
        host, _, port = self.task.master.rpartition(":")
        return dist.TCPStore(
            host,
            int(port),
            world_size=self.task.world,
            is_master=self.task.rank == 0,
            timeout=self._timeout,
            wait_for_workers=False,
        )

    def leave(self) -> None:
        """Tear the process groups down, whatever state their peers are in."""
        if dist.is_initialized():
            dist.destroy_process_group()
            # Freeing the last reference to a group joins gloo's thread under the interpreter's lock. If that thread
            # still wants the lock, to drop the tensors of the last collective, both wait for ever (torch 2.13; seen
            # on a busy machine): so it is offered the lock for a moment first.
            threading.Event().wait(QUIET_S)

    def sum(self, values: Tensor) -> Tensor:
        """Add `values` up over all ranks, in place."""
        if self.task.world > 1:
            dist.all_reduce(values)
        return values


class LossModule(nn.Module):
    """The recipe's model and loss as one module, whose forward is one micro-batch: `(sum, count)`."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The loss summed over what it counts, and the count. A mean counts the rows of the batch."""
        found = self.loss(self.model, batch)
        if isinstance(found, Tensor):
            rows = torch.tensor(float(len(batch)), device=found.device)
            return found.float() * rows, rows
        total, count = found
        return total.float(), torch.as_tensor(count, dtype=torch.float32, device=total.device)


class Parallel:
    """A `LossModule` laid out over the ranks as a plan says.

    `module` is called to train on a micro-batch, `inner` to evaluate one without gradients.
    """

    def __init__(self, model: nn.Module, loss: Loss, plan: Plan, device: torch.device) -> None:
        self.model = model.to(device) if plan.mesh.fsdp == 1 else model
        self._device = device
        self._regather = plan.zero == 3
        self.replicas = plan.mesh.dp
        self.inner = inner = LossModule(model, loss)
        if plan.recompute != "none":
            _recompute(model)
        if plan.mesh.fsdp > 1:
            self.module: nn.Module = _shard(inner, _mesh(plan, device), regather=plan.zero == 3)
            self.module.to(device)
        elif plan.mesh.dp > 1:
            self.module = DistributedDataParallel(inner, gradient_as_bucket_view=True)
        else:
            self.module = inner

    @contextlib.contextmanager
    def microbatch(self, *, last: bool) -> Iterator[None]:
        """Run a forward and backward inside; only the `last` of a step exchanges gradients.

        ZeRO-3 is the exception: it reduces after each micro-batch, as holding whole gradients would cost the memory
        that sharding saved.
        """
        if isinstance(self.module, DistributedDataParallel):
            with contextlib.nullcontext() if last else self.module.no_sync():
                yield
            return
        if isinstance(self.module, FSDPModule) and not self._regather:
            self.module.set_requires_gradient_sync(last)
            self.module.set_reshard_after_backward(last)
            self.module.set_is_last_backward(last)
        yield

    def reshard(self) -> None:
        """Drop gathered parameters that no backward will drop: after a forward that was only a test."""
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def gradients(self) -> list[Tensor]:
        """This rank's part of every gradient."""
        return [local(p.grad) for p in self.model.parameters() if p.grad is not None]


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that is in this process; it shares memory with it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gather sharded tensors one by one; every rank must call this, those that `keep` return CPU copies."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = gathered.detach().to("cpu", copy=True)
    return found


def _mesh(plan: Plan, device: torch.device) -> DeviceMesh:
    if plan.mesh.dp == 1:
        return init_device_mesh(device.type, (plan.mesh.fsdp,), mesh_dim_names=("fsdp",))
    shape = (plan.mesh.dp, plan.mesh.fsdp)
    return init_device_mesh(device.type, shape, mesh_dim_names=("dp", "fsdp"))


def _shard(module: LossModule, mesh: DeviceMesh, *, regather: bool) -> nn.Module:
    for block in repeated_blocks(module.model):
        fully_shard(block, mesh=mesh, reshard_after_forward=regather)
    fully_shard(module, mesh=mesh, reshard_after_forward=regather)
    return module


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost `ModuleList` members of `model`, save those that share a parameter with something outside.

    A shared parameter (tied embeddings) must live in one sharding group, and the root's is the one group that
    everything else belongs to.
    """
    owners: dict[int, set[int]] = {}
    blocks = list(_outermost_members(model))
    for index, block in enumerate(blocks):
        for parameter in block.parameters():
            owners.setdefault(id(parameter), set()).add(index)
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in model.modules():
        if id(module) not in inside:
            for parameter in module.parameters(recurse=False):
                owners.setdefault(id(parameter), set()).add(-1)
    return [b for b in blocks if all(len(owners[id(p)]) == 1 for p in b.parameters())]


def _outermost_members(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _outermost_members(child)


def _recompute(model: nn.Module) -> None:
    """Drop each block's activations after its forward and compute them again in backward (Chen et al. 2016)."""
    for block in repeated_blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
