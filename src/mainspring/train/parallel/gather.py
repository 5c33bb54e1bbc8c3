"""Whole tensors on the first rank, out of the parts that all ranks hold."""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mainspring.train.parallel.layout import Box, Layout, local


@dataclass(frozen=True, slots=True)
class _Held:
    """What one rank has of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    boxes: tuple[Box, ...]


def whole(tensors: Mapping[str, Tensor], layouts: Mapping[str, Layout], *, device: torch.device) -> dict[str, Tensor]:
    """All tensors of all ranks, whole, on rank 0's host; nothing on other ranks. Every rank must call this.

    A tensor without a layout is cut by ZeRO at most.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = {name: _held(tensor, layouts.get(name)) for name, tensor in tensors.items()}
    told: list[dict[str, _Held]] = [{} for _ in range(world)]
    dist.all_gather_object(told, mine)
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for part in told for name in part):
        senders = _senders([part.get(name) for part in told])
        if rank == 0:
            held = next(part[name] for part in told if name in part)
            found[name] = _assemble(held, senders, tensors.get(name), device)
        else:
            for _, box in (pair for pair in senders if pair[0] == rank):
                dist.send(box.of(local(tensors[name]).detach()).contiguous().to(device), 0)
    return found


def _held(tensor: Tensor, layout: Layout | None) -> _Held:
    layout = layout or Layout(tuple(tensor.shape))
    return _Held(layout.shape, tensor.dtype, layout.boxes(tensor))


def _senders(held: list[_Held | None]) -> list[tuple[int, Box]]:
    """Each box of the tensor once, with the first rank that has it."""
    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    found = []
    for rank, part in enumerate(held):
        for box in part.boxes if part else ():
            if (box.offset, box.size) not in seen:
                seen.add((box.offset, box.size))
                found.append((rank, box))
    return found


def _assemble(held: _Held, senders: list[tuple[int, Box]], own: Tensor | None, device: torch.device) -> Tensor:
    tensor = torch.empty(held.shape, dtype=held.dtype)
    for sender, box in senders:
        if sender == 0:
            assert own is not None
            box.of_whole(tensor).copy_(box.of(local(own).detach()))
        else:
            part = torch.empty(box.size, dtype=held.dtype, device=device)
            dist.recv(part, sender)
            box.of_whole(tensor).copy_(part)
    return tensor
