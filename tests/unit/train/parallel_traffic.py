"""Counts what a rank sends in one step, as torch dispatches it.

As torch's own CommDebugMode does, which cannot be used itself: it follows modules by name, and loses its place when one
is left early, as at the end of a stage, or called outside its parent (torch 2.13).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from parallel_pool import Order, trainer_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mainspring.spec import Task

OPERATIONS = {
    "allreduce_": "all_reduce",
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "alltoall_base_": "all_to_all",
    "send": "send",
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
}

# Beside these, replicas without ZeRO tell each other once a step which parameters they have used, 4 bytes for each.
Counts = dict[tuple[str, int], tuple[int, int]]
"""For each operation and size of group: messages, and bytes (of the whole of a gather, of the input of the rest)."""


class Counter(TorchDispatchMode):
    """Adds up collectives while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counts = {}
        self.other: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func.name().partition("::")
        name = name.partition(".")[0]
        if space in ("c10d", "_c10d_functional"):
            if name == "allreduce_" and _tensors(args)[0].dtype == torch.int32:
                self.other["used"] = self.other.get("used", 0) + 1
            elif name in OPERATIONS:
                key = (OPERATIONS[name], _group_size(args))
                messages, size = self.counts.get(key, (0, 0))
                self.counts[key] = (messages + 1, size + _payload(OPERATIONS[name], args))
            else:
                self.other[name] = self.other.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []


def _payload(operation: str, args: Any) -> int:
    found = [sum(t.nbytes for t in _tensors(arg)) for arg in args]
    sizes = [size for size in found if size]
    if operation == "all_gather":
        return max(sizes)
    if operation == "reduce_scatter":
        return max(sizes)
    if operation == "all_to_all":
        return found[1]  # of nothing, for a rank whose experts nobody chose
    return sizes[0] if sizes else 0


def _group_size(args: Any) -> int:
    for arg in args:
        if isinstance(arg, torch.ScriptObject):
            try:
                return dist.ProcessGroup.unbox(arg).size()
            except RuntimeError:
                continue
        if isinstance(arg, str):
            return dist.distributed_c10d._resolve_process_group(arg).size()
    return 0


def count_second_step(task: Task, order: Order) -> tuple[Counts, dict[str, int], int]:
    """The counts of a rank's second step (in the first, pipelines learn their shapes), other calls, bytes held."""
    with trainer_of(task, order) as trainer:
        steps = trainer.steps()
        next(steps)
        counter = Counter()
        with counter:
            next(steps)
        held = sum(
            (p.to_local() if hasattr(p, "to_local") else p).nbytes for p in trainer._parallel._state.parameters.values()
        )
    return counter.counts, counter.other, held
