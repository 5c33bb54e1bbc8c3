"""Muon for the matrices inside the blocks, AdamW for everything else: `Recipe(optimizer=muon)`.

Muon (Jordan et al. 2024) moves a matrix by its orthogonalised momentum, so that every direction of it learns, not only
the strongest. Its steps are scaled to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training",
equation 4). Embeddings, heads and norms stay with AdamW, as both have it, and learn faster: `config.lr` is the rate of
the matrices, a good one is around 1.5e-3.

A matrix that is sharded over ranks is gathered to be orthogonalised; data parallelism costs nothing extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import AdamW, Muon, Optimizer

from mainspring.spec import TrainConfig
from mainspring.train.parallel import repeated_blocks

if TYPE_CHECKING:
    from torch import nn

REST = 12.0
"""How much faster the rest learns. Bits per byte on the handbook (5.5 M parameters, 0.6 M tokens) for 1, 7, 13 and 27
times the rate of the matrices: 1.68, 1.58, 1.56, 1.57."""


def muon(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Muon and AdamW as one optimiser; weight decay is for the matrices of the blocks."""
    blocks = repeated_blocks(model)
    matrices = {id(p): p for block in blocks for p in block.parameters() if p.requires_grad and p.ndim == 2}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in matrices]
    return _Pair(
        Muon(matrices.values(), lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"),
        AdamW(rest, lr=REST * config.lr, weight_decay=0.0, betas=(config.beta1, config.beta2), fused=True),
    )


class _Pair(Optimizer):
    """Two optimisers of different parameters, with their groups and their state in one place."""

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        super().__init__([*first.param_groups, *second.param_groups], {})
        first.state = second.state = self.state
        self._both = first, second

    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] no closure: nothing here asks twice
        """Update every parameter that has a gradient."""
        for optimizer in self._both:
            optimizer.step()
