"""One process of those that calibrate together: `python -m mainspring.train.exchange MEETING ORDER RESULT RANKS RANK`.

They meet through the file MEETING. ORDER says in how many `turns` they are to time all `works` and which plans
they are to try; the first writes RESULT: `exchanged`, a list of (operation, bytes, seconds), and the seconds of `works`
and `steps`.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mainspring.hardware import devices, limits
from mainspring.models.transformer import Decoder
from mainspring.spec import Plan
from mainspring.store import parse
from mainspring.train.calibrate import SIZES
from mainspring.train.parallel import Parallel
from mainspring.train.parallel.group import process_group_backend
from mainspring.train.recipe import next_token_loss
from mainspring.train.timed import ROWS, TINY, TINY_DECODER, clock_of, typical_s, works

REPEATS = 15
STEPS = 12
TIMEOUT = timedelta(seconds=120)


def main(meeting: str, order: str, result: str, ranks: int, rank: int) -> None:
    """Measure as process `rank` of `ranks`."""
    asked = json.loads(Path(order).read_text("utf-8"))
    device = torch.device(devices.torch_device(rank))
    if device.type == "cpu":
        torch.set_num_threads(max(1, limits.cores() // ranks))
    else:
        torch.accelerator.set_device_index(device)
    store = dist.FileStore(meeting, ranks)
    dist.init_process_group(process_group_backend(device), store=store, rank=rank, world_size=ranks, timeout=TIMEOUT)
    found: dict[str, Any] = {"exchanged": [], "works": [], "steps": []}
    try:
        if asked["turns"]:
            found["works"] = _slowest(_worked(device, turns=asked["turns"]), device)
        if ranks > 1:
            operations = _operations(rank)
            found["exchanged"] = [
                (name, size, _seconds(work, size, device)) for size in SIZES for name, work in operations.items()
            ]
        plans = [parse.read_json(text, Plan) for text in asked["plans"]]
        found["steps"] = [_mean(_step_s(plan, rank, device), device) for plan in plans]
    finally:
        dist.destroy_process_group()
    if rank == 0:
        Path(result).write_text(json.dumps(found), "utf-8")


def _worked(device: torch.device, *, turns: int) -> list[float]:
    """The least of some turns, each begun by all together."""
    timed = works(device, large=False)
    least = [math.inf] * len(timed)
    for _ in range(turns):
        for number, work in enumerate(timed):
            dist.barrier()
            least[number] = min(least[number], typical_s(work, device))
    return least


def _slowest(seconds: Sequence[float], device: torch.device) -> list[float]:
    found = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def _mean(seconds: float, device: torch.device) -> float:
    found = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(found)
    return float(found) / dist.get_world_size()


def _step_s(plan: Plan, rank: int, device: torch.device) -> float:
    """Seconds of this rank's passes and exchanges in a step of `plan`, as the executor does them."""
    parallel = Parallel(
        lambda: Decoder(TINY_DECODER),
        next_token_loss,
        plan,
        rank=rank,
        device=device,
        around=lambda _: contextlib.nullcontext(),
    )
    whole = torch.randint(TINY.vocab, (ROWS, TINY.seq_len + 1), device=device)
    mine = whole[: ROWS // plan.mesh.replicas]
    clock, times = clock_of(device), list[float]()
    for _ in range(STEPS):
        parallel.model.zero_grad(set_to_none=True)
        dist.barrier()
        started = clock()
        parallel.accumulate(mine)
        times.append(clock() - started)
    return statistics.quantiles(times[2:], n=4, method="inclusive")[0]


def _operations(rank: int) -> dict[str, Callable[[Tensor, Tensor], object]]:
    """Each operation on a whole tensor and a part of it."""

    def send(whole: Tensor, _: Tensor) -> None:
        if rank == 0:
            dist.send(whole, 1)
        elif rank == 1:
            dist.recv(whole, 0)

    return {
        "all_reduce": lambda whole, _: dist.all_reduce(whole),
        "all_gather": dist.all_gather_single,
        "reduce_scatter": lambda whole, part: dist.reduce_scatter_single(part, whole),
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
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
