"""Counts the collectives of a rank as torch dispatches them.

As torch's own CommDebugMode does, which cannot be used here: it follows modules by name, and loses its place when one
is left early, as at the end of a stage, or called outside its parent (torch 2.13).
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Counts = dict[tuple[str, int], tuple[int, int]]
"""For each operation and size of group: messages, and their bytes (of the whole of a gather, of the rest's input)."""
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


class Counter(TorchDispatchMode):
    """Adds up collectives while it is entered.

    `other` counts calls that carry neither values nor gradients: DistributedDataParallel's replicas tell each other
    once a step which parameters they have used, 4 bytes for each, which stands there as `used`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counts = {}
        self.other: dict[str, int] = {}

    def add(self, operation: str, ranks: int, payload_bytes: int) -> None:
        """One message."""
        messages, total = self.counts.get((operation, ranks), (0, 0))
        self.counts[operation, ranks] = (messages + 1, total + payload_bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func.name().partition("::")
        name = name.partition(".")[0]
        if space in ("c10d", "_c10d_functional"):
            if name == "allreduce_" and _tensors(args)[0].dtype == torch.int32:
                self.other["used"] = self.other.get("used", 0) + 1
            elif name in OPERATIONS:
                self.add(OPERATIONS[name], _group_size(args), _payload(OPERATIONS[name], args))
            else:
                self.other[name] = self.other.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []


def _payload(operation: str, args: Any) -> int:
    sizes = [sum(t.nbytes for t in _tensors(arg)) for arg in args]
    if operation in ("all_gather", "reduce_scatter"):
        return max(sizes)
    if operation == "all_to_all":
        return sizes[1]  # of nothing, for a rank whose experts nobody chose
    return next((size for size in sizes if size), 0)


def _group_size(args: Any) -> int:
    for arg in args:
        if isinstance(arg, torch.ScriptObject):
            with contextlib.suppress(RuntimeError):  # another kind of object
                return dist.ProcessGroup.unbox(arg).size()
        if isinstance(arg, str):
            named: Any = arg
            return dist.distributed_c10d._resolve_process_group(named).size()  # noqa: SLF001 the only way
    return 0
