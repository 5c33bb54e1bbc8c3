"""One process of those that measure collectives: `python -m mainspring.train.exchange MEETING RESULT RANKS RANK`.

They meet through the file MEETING; the first writes RESULT, a list of (operation, bytes, seconds).
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mainspring.hardware import devices, limits
from mainspring.train.calibrate import SIZES
from mainspring.train.parallel.group import process_group_backend

REPEATS = 15
TIMEOUT = timedelta(seconds=120)


def main(meeting: str, result: str, ranks: int, rank: int) -> None:
    """Measure as process `rank` of `ranks`."""
    device = torch.device(devices.torch_device(rank))
    if device.type == "cpu":
        torch.set_num_threads(max(1, limits.cores() // ranks))
    else:
        torch.accelerator.set_device_index(device)
    store = dist.FileStore(meeting, ranks)
    dist.init_process_group(process_group_backend(device), store=store, rank=rank, world_size=ranks, timeout=TIMEOUT)
    try:
        found = [(name, size, _seconds(work, size, device)) for size in SIZES for name, work in _works(rank).items()]
    finally:
        dist.destroy_process_group()
    if rank == 0:
        Path(result).write_text(json.dumps(found), "utf-8")


def _works(rank: int) -> dict[str, Callable[[Tensor, Tensor], object]]:
    """Each operation on a whole tensor and a part of it."""

    def send(whole: Tensor, _: Tensor) -> None:
        if rank == 0:
            dist.send(whole, 1)
        elif rank == 1:
            dist.recv(whole, 0)

    return {
        "all_reduce": lambda whole, _: dist.all_reduce(whole),
        "all_gather": dist.all_gather_into_tensor,
        "reduce_scatter": lambda whole, part: dist.reduce_scatter_tensor(part, whole),
        "all_to_all": lambda whole, _: dist.all_to_all_single(torch.empty_like(whole), whole),
        "send": send,
    }


def _seconds(work: Callable[[Tensor, Tensor], object], size: int, device: torch.device) -> float:
    """The lower quartile of repeats, each begun by all together and ended by the last."""
    whole = torch.ones(size // 4, device=device)
    part = torch.ones(len(whole) // dist.get_world_size(), device=device)
    times: list[float] = []
    for repeat in range(REPEATS + 2):
        dist.barrier()
        started = time.perf_counter()
        work(whole, part)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        took = torch.tensor([time.perf_counter() - started], dtype=torch.float64, device=device)
        dist.all_reduce(took, dist.ReduceOp.MAX)
        if repeat > 1:
            times.append(float(took))
    return statistics.quantiles(times, n=4, method="inclusive")[0]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
