"""One step of Muon on matrices whose rows are spread over the ranks of a gang."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from mainspring.spec import Task
from mainspring.testing.gangs import FileGroup
from mainspring.train.messages import Counter
from mainspring.train.muon import Muon

SHAPES = ((6, 8), (7, 3), (1, 5), (4, 4), (3, 9))  # rows that no two ranks share evenly, and too few for three


def matrices() -> list[torch.nn.Parameter]:
    """Some matrices with gradients, always the same."""
    torch.manual_seed(0)
    found = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    for matrix in found:
        matrix.grad = torch.randn(matrix.shape)
    return found


def moved(parameters: list[torch.nn.Parameter], *, steps: int = 2) -> list[torch.nn.Parameter]:
    """What Muon makes of them."""
    optimizer = Muon(parameters, lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.step()
    return parameters


def move_sharded(task: Task, order: None) -> tuple[list[Tensor], dict[tuple[str, int], tuple[int, int]]]:
    """The whole matrices after two steps on shards, and what one more step sends."""
    group = FileGroup(task)
    group.join(0)
    mesh = init_device_mesh("cpu", (task.world,))
    sharded = []
    for whole in matrices():
        part = torch.nn.Parameter(distribute_tensor(whole.detach(), mesh, [Shard(0)]))
        assert whole.grad is not None
        part.grad = distribute_tensor(whole.grad, mesh, [Shard(0)])
        sharded.append(part)
    moved(sharded)
    whole = [part.detach().full_tensor() for part in sharded]
    dist.barrier()
    counter = Counter()
    with counter:
        moved(sharded, steps=1)
    group.leave()
    return whole, counter.counts
