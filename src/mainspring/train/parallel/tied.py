"""Parameters that several stages of a pipeline use: each holds one, and all must stay equal.

Their gradients are added up before the update, so that the same update is made everywhere. A rank that holds two
stages with one parameter keeps a second one, the mirror, which no optimiser knows: it gives its gradient away before
the update and takes the value over after it.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn

from mainspring.train.parallel.data import fill_in, reduce_in_buckets
from mainspring.train.parallel.layout import local


class Ties:
    """`groups` names each trained parameter that is on other pipeline ranks too; `mirrors` are pairs on this one."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        groups: Mapping[str, dist.ProcessGroup],
        mirrors: list[tuple[nn.Parameter, nn.Parameter]],
    ) -> None:
        self._parameters = parameters
        self._groups = groups
        self._mirrors = mirrors

    def add_up(self) -> None:
        """Make the gradient of every copy the sum of all."""
        for first, mirror in self._mirrors:
            if mirror.grad is not None:
                first.grad = mirror.grad if first.grad is None else first.grad + mirror.grad
                mirror.grad = None
        by_group: dict[dist.ProcessGroup, list[nn.Parameter]] = {}
        for name, group in sorted(self._groups.items()):
            by_group.setdefault(group, []).append(self._parameters[name])
        for group, parameters in by_group.items():
            fill_in(parameters, group)
            reduce_in_buckets([local(p.grad) for p in parameters if p.grad is not None], group)

    @torch.no_grad()
    def take_over(self) -> None:
        """Bring mirrors up to date after an update, or after loading."""
        for first, mirror in self._mirrors:
            local(mirror.data).copy_(local(first.data))
