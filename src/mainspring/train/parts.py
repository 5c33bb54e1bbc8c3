"""Checkpoints of tensors of which each rank holds boxes: what torch.distributed.checkpoint is told of them.

A checkpoint knows whole tensors only, under the names of the recipe's own model, so that any plan can read what any
other wrote; the library works out which file holds what.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from mainspring.train.parallel.layout import Box, Layout, local


@dataclass(frozen=True, slots=True)
class Part:
    """The boxes that this rank holds of a tensor of `shape`."""

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]


def parts_of(tensors: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> dict[str, Part]:
    """The part of each tensor here; one without a layout is cut by ZeRO at most."""
    found = {}
    for name, tensor in tensors.items():
        layout = layouts.get(name) or Layout(tuple(tensor.shape))
        found[name] = Part(layout.shape, layout.boxes(tensor))
    return found


class PartSavePlanner(DefaultSavePlanner):
    """Saves each box on its own; of equal boxes on several ranks the library writes one."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self._parts = parts

    def create_local_plan(self) -> SavePlan:
        """One item for each box."""
        items = []
        for name, part in self._parts.items():
            tensor = local(self.state_dict[name])
            for box in part.boxes:
                chunk = ChunkStorageMetadata(offsets=torch.Size(box.offset), sizes=torch.Size(box.size))
                items.append(
                    WriteItem(
                        index=MetadataIndex(name, chunk.offsets),
                        type=WriteItemType.SHARD,
                        tensor_data=TensorWriteData(
                            chunk=chunk,
                            properties=TensorProperties.create_from_tensor(tensor),
                            size=torch.Size(part.shape),
                        ),
                    )
                )
        self.plan = SavePlan(items, planner_data=self.mappings)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The entries of a box."""
        name = write_item.index.fqn
        return _box(self._parts[name], write_item.index).of(local(self.state_dict[name])).detach()


class PartLoadPlanner(DefaultLoadPlanner):
    """Reads into each box whatever saved boxes it meets."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self._parts = parts

    def create_local_plan(self) -> LoadPlan:
        """Items for each box; `ValueError` for a tensor that is missing or of another shape."""
        assert self.metadata is not None
        saved: Mapping[str, Any] = self.metadata.state_dict_metadata
        items: list[ReadItem] = []
        for name, part in self._parts.items():
            entry = saved.get(name)
            if not isinstance(entry, TensorStorageMetadata):
                raise ValueError(f"it holds no tensor {name}")  # noqa: TRY004 the checkpoint's fault, not a type's
            if tuple(entry.size) != part.shape:
                raise ValueError(f"{name} is {tuple(entry.size)} in it, {part.shape} here")
            chunks = [ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.size)) for box in part.boxes]
            items += create_read_items_for_chunk_list(name, entry, chunks)
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The entries of a box."""
        return _box(self._parts[index.fqn], index).of(local(self.state_dict[index.fqn]).detach())


def _box(part: Part, index: MetadataIndex) -> Box:
    offset = tuple(index.offset or ())
    return next(box for box in part.boxes if box.offset == offset)
