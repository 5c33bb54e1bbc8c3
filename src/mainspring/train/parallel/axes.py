"""Where a rank stands on the axes of a plan's mesh, and the process groups along them.

Torch names a group that its members alone make after their ranks and the number of groups made before (2.13), so all
ranks must have made equally many: the groups along axes are made at once and in one order, then those of shared
parameters, which only some ranks are in.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from mainspring.spec import AXES, Mesh

TOGETHER = (
    ("tp",),
    ("pp",),
    ("cp",),
    ("ep",),
    ("dp",),
    ("dp", "ep"),
    ("dp", "cp"),
    ("fsdp", "cp"),
    ("dp", "cp", "ep"),
    ("dp", "fsdp", "cp", "ep", "tp"),
)


class Axes:
    """`at` has this rank's coordinate on each axis, `mesh` their degrees. Ranks count row-major over `AXES`."""

    def __init__(self, mesh: Mesh, rank: int, device: torch.device) -> None:
        self.mesh = mesh
        self.rank = rank
        self._device = device
        self._groups: dict[tuple[int, ...], dist.ProcessGroup | None] = {}
        self.at: dict[str, int] = {}
        for axis in reversed(AXES):
            rank, self.at[axis] = divmod(rank, getattr(mesh, axis))
        if dist.is_initialized():
            for axes in TOGETHER:
                self._make(self.ranks(*axes))

    def degree(self, *axes: str) -> int:
        """How many ranks `axes` span together."""
        product = 1
        for axis in axes:
            product *= getattr(self.mesh, axis)
        return product

    def place(self, *axes: str) -> int:
        """This rank's number among `ranks(*axes)`."""
        return self.ranks(*axes).index(self.rank)

    def ranks(self, *axes: str) -> list[int]:
        """The ranks that differ from this one on `axes` at most, in row-major order."""
        return self._line(self.at, axes)

    def _line(self, at: Mapping[str, int], axes: tuple[str, ...]) -> list[int]:
        spans = [range(getattr(self.mesh, axis)) if axis in axes else (at[axis],) for axis in AXES]
        return [self._rank_at(place) for place in itertools.product(*spans)]

    def group(self, *axes: str) -> dist.ProcessGroup | None:
        """The process group of `ranks(*axes)`; None when this rank is alone in it."""
        return self._groups[tuple(self.ranks(*axes))]

    def pipeline_group(self, places: tuple[int, ...]) -> dist.ProcessGroup | None:
        """The group of the pipeline ranks `places` that this rank's line has. Every rank must ask for it."""
        lines = [[rank + place * self._stride for place in places] for rank in range(self._stride)]
        mine = None
        for line in lines:
            made = dist.new_group(line) if len(line) > 1 else None
            if isinstance(made, dist.ProcessGroup):  # what it is not for those outside
                mine = made
        return mine

    @property
    def _stride(self) -> int:
        """How far neighbours in a pipeline are apart."""
        return self.mesh.world // self.mesh.pp

    def _make(self, ranks: list[int]) -> None:
        key = tuple(ranks)
        if key not in self._groups:
            made = dist.new_group(ranks, use_local_synchronization=True) if len(ranks) > 1 else None
            assert not isinstance(made, int), "this rank is one of them"
            self._groups[key] = made

    def device_mesh(self, inner: tuple[str, ...], outer: tuple[str, ...] = ()) -> DeviceMesh:
        """The mesh that `fully_shard` shards over `inner` axes and replicates over `outer` ones."""
        shards, replicas = self.ranks(*inner), self.ranks(*outer)
        if len(replicas) == 1:
            return DeviceMesh.from_group(self._must(shards), self._device.type, mesh_dim_names=("shards",))
        both = [axis for axis in AXES if axis in inner or axis in outer]
        grid = [[self._shifted(replica, inner, place) for place in range(len(shards))] for replica in replicas]
        assert sorted(itertools.chain(*grid)) == self.ranks(*both)
        groups = [self._must(replicas), self._must(shards)]
        return DeviceMesh.from_group(groups, self._device.type, mesh=grid, mesh_dim_names=("replicas", "shards"))

    def _must(self, ranks: list[int]) -> dist.ProcessGroup:
        group = self._groups[tuple(ranks)]
        assert group is not None, "one rank needs no mesh"
        return group

    def _shifted(self, rank: int, axes: tuple[str, ...], place: int) -> int:
        """The rank at `place` along `axes` that stands elsewhere as `rank` does."""
        at = {}
        for axis in reversed(AXES):
            rank, at[axis] = divmod(rank, getattr(self.mesh, axis))
        return self._line(at, axes)[place]

    def _rank_at(self, at: tuple[int, ...]) -> int:
        rank = 0
        for axis, coordinate in zip(AXES, at, strict=True):
            rank = rank * getattr(self.mesh, axis) + coordinate
        return rank
