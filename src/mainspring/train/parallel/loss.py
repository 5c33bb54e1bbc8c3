"""A recipe's model and loss as one module: what sharding, replication and pipelines are laid around."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mainspring.train.recipe import Loss


class LossModule(nn.Module):
    """The recipe's model and loss as one module, whose forward is one micro-batch: `(sum, count)`."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The loss summed over what it counts, and the count. A mean counts the rows of the batch."""
        found = self.loss(self.model, batch)
        if isinstance(found, Tensor):
            rows = torch.tensor(float(len(batch)), device=found.device)
            return found.float() * rows, rows
        total, count = found
        return total.float(), torch.as_tensor(count, dtype=torch.float32, device=total.device)
