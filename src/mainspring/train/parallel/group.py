"""The process groups of one gang: how its ranks meet, part, and meet again in the same process."""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from mainspring.hardware import devices
from mainspring.spec import Task, WorkerLost

QUIET_S = 0.2
_FOR_EVER = timedelta(days=30)


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
        self.timeout = timedelta(seconds=timeout_s)
        self._store: dist.Store | None = None

    def join(self, epoch: int) -> None:
        """Meet the other ranks in `epoch` and make the groups. One rank is a group too, and needs no port."""
        try:
            dist.init_process_group(
                process_group_backend(self.device),
                store=dist.PrefixStore(f"{self._attempt}/{epoch}", self._reach()),
                rank=self.task.rank,
                world_size=self.task.world,
                timeout=self.timeout,
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
            timeout=self.timeout,
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
