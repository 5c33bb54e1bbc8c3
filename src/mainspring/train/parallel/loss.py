"""A recipe's model and loss as one module: what sharding, replication and pipelines are laid around."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from mainspring.spec import SpecError
from mainspring.train.recipe import Loss, defined_at


class LossModule(nn.Module):
    """The recipe's model and loss as one module, whose forward is one micro-batch: `(sum, count)`."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The loss summed over what it counts, and the count. A mean counts the rows of the batch."""
        found: Any = self.loss(self.model, batch)
        if isinstance(found, Tensor) and found.numel() == 1:
            rows = torch.tensor(float(len(batch)), device=found.device)
            return _plain(found) * rows, rows
        if not _is_sum(found):
            raise SpecError(
                f"{defined_at(self.loss)}the recipe's loss returned {_told(found)}",
                hint="return one number as a tensor, the mean over the rows of the batch, or (sum, count)",
            )
        total, count = found
        return _plain(total), _plain(torch.as_tensor(count, device=total.device))


def _plain(number: Tensor) -> Tensor:
    """A tensor of one number without dimensions, and no view: a pipeline detaches it where it is."""
    return number.float().sum()


def _is_sum(found: Any) -> bool:
    """Whether `found` is a sum and over how many it is."""
    if not (isinstance(found, tuple | list) and len(found) == 2):
        return False
    total, count = found
    counted = isinstance(count, Real) or (isinstance(count, Tensor) and count.numel() == 1)
    return isinstance(total, Tensor) and total.numel() == 1 and counted


def _told(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    if isinstance(found, tuple | list):
        return f"({', '.join(map(_told, found))})"
    return repr(found) if found is None or isinstance(found, Real) else f"a {type(found).__name__}"
