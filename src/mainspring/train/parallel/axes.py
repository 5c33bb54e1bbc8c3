"""Where a rank stands on the axes of a plan's mesh, and the process groups along them.

Groups are made when first asked for, by their members alone, so every member must ask for its groups in one order.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from mainspring.spec import AXES, Mesh


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
        spans = [range(getattr(self.mesh, axis)) if axis in axes else (self.at[axis],) for axis in AXES]
        return [self._rank_at(at) for at in itertools.product(*spans)]

    def group(self, *axes: str) -> dist.ProcessGroup | None:
        """The process group of `ranks(*axes)`; None when this rank is alone in it."""
        return self.group_of(self.ranks(*axes))

    def group_of(self, ranks: list[int]) -> dist.ProcessGroup | None:
        """The process group of `ranks`, this one among them; None for this one alone."""
        key = tuple(ranks)
        if key not in self._groups:
            alone = len(ranks) == 1
            self._groups[key] = None if alone else dist.new_group(ranks, use_local_synchronization=True)
        return self._groups[key]

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
        group = self.group_of(ranks)
        assert group is not None, "one rank needs no mesh"
        return group

    def _shifted(self, rank: int, axes: tuple[str, ...], place: int) -> int:
        """The rank at `place` along `axes` that stands elsewhere as `rank` does."""
        other = Axes(self.mesh, rank, self._device)
        return other.ranks(*axes)[place]

    def _rank_at(self, at: tuple[int, ...]) -> int:
        rank = 0
        for axis, coordinate in zip(AXES, at, strict=True):
            rank = rank * getattr(self.mesh, axis) + coordinate
        return rank
