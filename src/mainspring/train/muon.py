"""Muon for the matrices inside the blocks, AdamW for everything else: `Recipe(optimizer=muon)`.

Muon (Jordan et al. 2024) moves a matrix by its orthogonalised momentum, so that every direction of it learns, not only
the strongest. Its steps are scaled to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training",
equation 4). Embeddings, heads and norms stay with AdamW, as both have it, and learn faster: `config.lr` is the rate of
the matrices, a good one is around 1.5e-3.

Tensor parallelism would give it parts to orthogonalise: `whole_matrices` keeps it out of plans, as it does for any
optimiser that has it.

Where ZeRO shards the matrices, each rank orthogonalises some of them, whole, for all: their parts travel to it in one
message and come back in another (Liu et al. 2025, section 2.3, with owners instead of a gather to everyone). torch's
own Muon does every product of every matrix on `DTensor`s, with messages of its own: for a model of 42 matrices under
ZeRO-1 on two ranks over gloo that was 0.8 s of processor time a step, and is 0.28 s so; replicas, which orthogonalise
everything themselves and send nothing for it, need 0.24 s.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from mainspring.spec import TrainConfig
from mainspring.train.parallel import local, repeated_blocks

if TYPE_CHECKING:
    from torch import nn

REST = 12.0
"""How much faster the rest learns. Bits per byte on the handbook (5.5 M parameters, 0.6 M tokens) for 1, 7, 13 and 27
times the rate of the matrices: 1.68, 1.58, 1.56, 1.57."""
MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of the polynomial whose repeated application pushes singular values towards one (Jordan et al. 2024)."""
ITERATIONS = 5
LEAST_NORM = 1e-7
LIKE_ADAMW = 0.2


def muon(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Muon and AdamW as one optimiser; weight decay is for the matrices of the blocks."""
    blocks = repeated_blocks(model)
    matrices = {id(p): p for block in blocks for p in block.parameters() if p.requires_grad and p.ndim == 2}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in matrices]
    return MuonAndAdamW(
        Muon(matrices.values(), lr=config.lr, weight_decay=config.weight_decay),
        AdamW(
            [{"params": rest}], lr=REST * config.lr, weight_decay=0.0, betas=(config.beta1, config.beta2), fused=True
        ),
    )


class MuonAndAdamW(Optimizer):
    """Two optimisers of different parameters, with their groups and their state in one place."""

    whole_matrices = True

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        super().__init__([*first.param_groups, *second.param_groups], {})
        first.state = second.state = self.state
        self._both = first, second

    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] no closure: nothing here asks twice
        """Update every parameter that has a gradient."""
        for optimizer in self._both:
            optimizer.step()


class Muon(Optimizer):
    """Muon with Nesterov's momentum, for matrices that are whole on this rank or sharded by rows as `DTensor`s."""

    def __init__(self, matrices: Iterable[Tensor], *, lr: float, weight_decay: float) -> None:
        # In a group, which may be empty: a stage of a pipeline may have no matrix, or nothing else.
        super().__init__([{"params": list(matrices)}], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] no closure: nothing here asks twice
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            for matrix, update in zip(matrices, orthogonal(matrices, map(self._direction, matrices)), strict=True):
                size = group["lr"] * LIKE_ADAMW * max(matrix.shape) ** 0.5
                local(matrix).mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)

    def _direction(self, matrix: Tensor) -> Tensor:
        """This rank's part of where momentum goes from here."""
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
        momentum = local(state["momentum_buffer"]).lerp_(local(gradient), 1 - MOMENTUM)
        return local(gradient).lerp(momentum, MOMENTUM)


def orthogonal(matrices: Sequence[Tensor], parts: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of each orthogonalised matrix, in bf16; `parts` are laid out like `matrices`."""
    found = [part.bfloat16() for part in parts]
    sharing: dict[dist.ProcessGroup | None, list[int]] = {}
    for index, matrix in enumerate(matrices):
        sharing.setdefault(_sharing(matrix), []).append(index)
    for group, mine in sharing.items():
        if group is None:
            done = [newton_schulz(found[index]) for index in mine]
        else:
            done = _by_owners([matrices[index] for index in mine], [found[index] for index in mine], group)
        for index, each in zip(mine, done, strict=True):
            found[index] = each
    return found


def _sharing(matrix: Tensor) -> dist.ProcessGroup | None:
    """The ranks that have a part of `matrix` each; None when this one has all of it."""
    if not isinstance(matrix, DTensor):
        return None
    (axis,) = (axis for axis, placement in enumerate(matrix.placements) if placement.is_shard(0))
    return matrix.device_mesh.get_group(axis)


def _by_owners(matrices: Sequence[Tensor], parts: Sequence[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """Each rank orthogonalises the matrices it owns: parts go to their owners, and come back, in one message each."""
    ranks = group.size()
    owners = _owners([matrix.shape for matrix in matrices], ranks)
    order = sorted(range(len(parts)), key=owners.__getitem__)
    mine = [matrices[index].shape for index in order if owners[index] == group.rank()]
    shapes = [[_part_shape(shape, rank, ranks) for shape in mine] for rank in range(ranks)]
    given = [sum(parts[index].numel() for index in order if owners[index] == rank) for rank in range(ranks)]
    taken = [sum(map(math.prod, each)) for each in shapes]

    def exchanged(pieces: Iterable[Tensor], sent: list[int], received: list[int]) -> Tensor:
        flat = torch.cat([parts[0].new_empty(0), *(piece.reshape(-1) for piece in pieces)])
        there = flat.new_empty(sum(received))
        dist.all_to_all_single(there, flat, received, sent, group=group)
        return there

    here = iter(
        exchanged([parts[index] for index in order], given, taken).split([math.prod(s) for e in shapes for s in e])
    )
    by_rank = [[next(here).view(shape) for shape in each] for each in shapes]
    done = [newton_schulz(torch.cat(rows)).split([len(part) for part in rows]) for rows in zip(*by_rank, strict=True)]
    back = exchanged([part for rows in zip(*done, strict=True) for part in rows], taken, given)
    found = list(parts)
    for index, part in zip(order, back.split([parts[index].numel() for index in order]), strict=True):
        found[index] = part.view(parts[index].shape)
    return found


def _owners(shapes: Sequence[torch.Size], ranks: int) -> list[int]:
    """A rank for each matrix, so that all have about as much to do: the costliest first, to whom has least."""
    costs = [min(shape) ** 2 * max(shape) for shape in shapes]
    work, found = [0] * ranks, [0] * len(shapes)
    for index in sorted(range(len(shapes)), key=costs.__getitem__, reverse=True):
        found[index] = work.index(min(work))
        work[found[index]] += costs[index]
    return found


def _part_shape(shape: Sequence[int], rank: int, ranks: int) -> tuple[int, int]:
    """What `rank` has of a matrix: torch gives each rank as many rows, the last ones fewer or none."""
    each = -(-shape[0] // ranks)
    return max(0, min(shape[0], (rank + 1) * each) - rank * each), shape[1]


def newton_schulz(matrix: Tensor) -> Tensor:
    """`matrix`, in bf16, with singular values near one: five steps of the quintic iteration."""
    a, b, c = QUINTIC
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=LEAST_NORM)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
