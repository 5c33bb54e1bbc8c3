"""Where the part of a tensor that one rank holds lies in the whole tensor.

Tensor and expert parallelism cut a parameter along one dimension into runs of indices; ZeRO cuts what is left along
dimension 0. Both together are boxes of the whole tensor, and boxes are all that saving, loading under another plan and
gathering need to know. A fused matrix (queries, keys and values in one) gives each rank several runs, and so do
experts that were moved between ranks.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Run = tuple[int, int]
"""First index and number of indices."""


@dataclass(frozen=True, slots=True)
class Box:
    """`size` entries of a tensor: from `at` on in this rank's part, from `offset` on in the whole."""

    offset: tuple[int, ...]
    size: tuple[int, ...]
    at: tuple[int, ...]

    def of(self, part: Tensor) -> Tensor:
        """These entries of this rank's `part`; they share memory with it."""
        return _narrow(part, self.at, self.size)

    def of_whole(self, whole: Tensor) -> Tensor:
        """The same entries of the whole tensor."""
        return _narrow(whole, self.offset, self.size)


@dataclass(frozen=True, slots=True)
class Layout:
    """A tensor of `shape`, of which a rank holds the `runs` along `dim`, one after the other; all of it without runs.

    What is left is then cut by ZeRO, if it is a `DTensor`.
    """

    shape: tuple[int, ...]
    dim: int = 0
    runs: tuple[Run, ...] = ()

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Sizes of what the runs leave."""
        if not self.runs:
            return self.shape
        kept = sum(size for _, size in self.runs)
        return (*self.shape[: self.dim], kept, *self.shape[self.dim + 1 :])

    def cut(self, whole: Tensor) -> Tensor:
        """The runs of `whole`, in memory of their own."""
        if not self.runs:
            return whole.clone()
        return torch.cat([whole.narrow(self.dim, first, size) for first, size in self.runs], self.dim)

    def boxes(self, tensor: Tensor) -> tuple[Box, ...]:
        """The boxes of the whole that `tensor`, a parameter or optimiser slot laid out so, holds in this process."""
        starts, sizes = (0,) * tensor.dim(), tuple(tensor.shape)
        if isinstance(tensor, DTensor):
            sizes, starts = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        if 0 in sizes:
            return ()
        if not self.runs:
            return (Box(tuple(starts), tuple(sizes), (0,) * len(sizes)),)
        return tuple(self._cross_runs(tuple(starts), tuple(sizes)))

    def _cross_runs(self, starts: Sequence[int], sizes: Sequence[int]) -> list[Box]:
        found, position, dim = [], 0, self.dim
        for first, size in self.runs:
            low, high = max(position, starts[dim]), min(position + size, starts[dim] + sizes[dim])
            if low < high:
                offset, extent, at = list(starts), list(sizes), [0] * len(sizes)
                offset[dim], extent[dim], at[dim] = first + low - position, high - low, low - starts[dim]
                found.append(Box(tuple(offset), tuple(extent), tuple(at)))
            position += size
        return found


def even_runs(size: int, *, part: int, parts: int, sections: Sequence[int] = ()) -> tuple[Run, ...]:
    """Part number `part` of `parts` equal ones of `size` indices; of each section for a fused dimension."""
    runs, start = [], 0
    for section in sections or (size,):
        share = section // parts
        runs.append((start + part * share, share))
        start += section
    return tuple(runs)


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that is in this process; it shares memory with it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _narrow(tensor: Tensor, offset: Sequence[int], size: Sequence[int]) -> Tensor:
    for dim, (start, length) in enumerate(zip(offset, size, strict=True)):
        tensor = tensor.narrow(dim, start, length)
    return tensor
