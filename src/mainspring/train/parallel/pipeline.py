"""Pipelines: torch's own schedules over the stages that this rank holds.

GPipe (Huang et al. 2019), 1F1B and interleaved (Narayanan et al. 2021), zero-bubble and ZBV (Qi et al. 2023, 2024),
DualPipeV (DeepSeek 2025). Each replica may run another number of micro-batches: its schedule is its own.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from mainspring.spec import Plan
from mainspring.train.parallel.share import ONE_STAGE_PER_RANK
from mainspring.train.parallel.stages import StageModule

SCHEDULES: dict[str, Any] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}


class Pipeline:
    """The stages of one rank, by number, and the schedule that runs them."""

    def __init__(
        self, stages: dict[int, StageModule], plan: Plan, group: dist.ProcessGroup, *, count: int, device: torch.device
    ) -> None:
        self._stages = stages
        self._plan = plan
        self._group = group
        self._device = device
        self._count = count
        self._arriving: dict[int, tuple[torch.Size, torch.dtype]] = {}
        self._announced: set[int] = set()
        total = len(plan.stages)
        made = [PipelineStage(module, number, total, device, group=group) for number, module in stages.items()]
        held: Any = made[0] if plan.schedule in ONE_STAGE_PER_RANK else made
        self._schedule = SCHEDULES[plan.schedule](held, count, loss_fn=_loss_itself, scale_grads=False)

    def run(self, rows: Tensor) -> None:
        """Forward and backward of all micro-batches in `rows`; sums are left in the last stage's `totals`."""
        index = torch.arange(self._count)
        target = index if any(stage.is_last for stage in self._stages.values()) else None
        self._schedule.step(rows=rows, index=index, target=target, return_outputs=False)

    @torch.no_grad()
    def test(self, batches: Sequence[Tensor]) -> None:
        """Forward alone of each of `batches`, one after the other."""
        for rows in batches:
            hidden: Tensor | None = None
            for number in range(len(self._plan.stages)):
                if number in self._stages:
                    hidden = self._test_stage(number, rows, hidden)

    def _test_stage(self, number: int, rows: Tensor, hidden: Tensor | None) -> Tensor:
        before, after = self._plan.pipeline_rank(number - 1) if number else -1, number + 1
        here = self._plan.pipeline_rank(number)
        if number and before != here:
            hidden = self._receive(before, number)
        given = (hidden,) if number else ()
        assert hidden is not None or not number
        index = torch.zeros((), dtype=torch.int64)
        out = self._stages[number](*given, rows=rows, index=index)
        if after < len(self._plan.stages) and self._plan.pipeline_rank(after) != here:
            self._send(out, self._plan.pipeline_rank(after), number)
        return out

    def _send(self, hidden: Tensor, to: int, number: int) -> None:
        peer = dist.get_global_rank(self._group, to)
        if number not in self._announced:
            self._announced.add(number)
            dist.send_object_list([tuple(hidden.shape), hidden.dtype], peer, group=self._group, device=self._device)
        dist.send(hidden.contiguous(), peer, group=self._group)

    def _receive(self, sender: int, number: int) -> Tensor:
        peer = dist.get_global_rank(self._group, sender)
        if number not in self._arriving:
            told: list[Any] = [None, None]
            dist.recv_object_list(told, peer, group=self._group, device=self._device)
            self._arriving[number] = (torch.Size(told[0]), told[1])
        shape, dtype = self._arriving[number]
        hidden = torch.empty(shape, dtype=dtype, device=self._device)
        dist.recv(hidden, peer, group=self._group)
        return hidden


def _loss_itself(total: Tensor, _: Tensor) -> Tensor:
    return total
