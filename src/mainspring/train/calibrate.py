"""What this machine needs for the work that plans count on: steps of small decoders, updates, and collectives.

Each measurement is made of what `train` runs: the package's own decoder with its loss, fused Adam, and the process
group's collectives between processes of their own. The shapes differ in what they are bound by (arithmetic, attention,
memory, the mere number of operations), so that `plan.calibrate` can tell the constants apart.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mainspring.hardware import devices
from mainspring.models.profile import profile_decoder
from mainspring.models.transformer import Decoder
from mainspring.plan.calibrate import Exchanged, Passed, Updated, fit_device, fit_link
from mainspring.spec import (
    Artifact,
    Calibration,
    DecoderConfig,
    Device,
    Failed,
    Node,
    Precision,
    Progress,
    SpecError,
    silent,
)
from mainspring.store import Store, parse
from mainspring.train.recipe import next_token_loss

PATIENCE_S = 180.0
TURNS = 4  # in which everything is measured, so that a busy moment meets all alike; the best counts
LEAST_S = 0.2  # of one measurement, repeated until then
REPEATS = 4  # and at least so often


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder and a batch for it."""

    hidden: int
    heads: int
    ffn: int
    vocab: int
    rows: int
    seq_len: int
    precision: Precision = "fp32"

    @property
    def config(self) -> DecoderConfig:
        """Two layers of it."""
        return DecoderConfig(
            vocab=self.vocab,
            hidden=self.hidden,
            layers=2,
            heads=self.heads,
            kv_heads=self.heads,
            ffn=self.ffn,
            context=self.seq_len,
            tied=False,
        )


# Bound by: launching, all alike, arithmetic, memory, attention, scores, all alike again.
SHAPES = (
    Shape(64, 2, 128, 256, rows=1, seq_len=16),
    Shape(128, 2, 384, 1024, rows=4, seq_len=128),
    Shape(512, 8, 2048, 1024, rows=4, seq_len=128),
    Shape(64, 1, 512, 512, rows=32, seq_len=128),
    Shape(128, 2, 128, 256, rows=1, seq_len=2048),
    Shape(128, 2, 256, 16384, rows=4, seq_len=128),
    Shape(256, 4, 1024, 4096, rows=8, seq_len=128),
    Shape(512, 8, 2048, 1024, rows=4, seq_len=128, precision="bf16"),
    Shape(256, 4, 1024, 4096, rows=8, seq_len=128, precision="bf16"),
)
SCALE = 4  # of widths on an accelerator; batches grow by as much
UPDATES = (1 << 20, 1 << 23)  # parameters
SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 23)  # bytes


def calibrate(node: Node, *, scratch: Path, progress: Progress = silent) -> Calibration:
    """Figures of `node`, which must be this machine, from measurements of about a minute.

    Raises `SpecError` when it has no device, and `Failed` when the processes of an exchange could not talk.
    """
    if not node.devices:
        raise SpecError(f"{node.name} has no device to measure")
    here = node.devices[0]
    large = here.vendor != "cpu"
    shapes = [_larger(shape) if large else shape for shape in SHAPES]
    device = torch.device(devices.torch_device(0))
    tasks: list[_Task] = [*(_passing(shape, device) for shape in shapes)]
    tasks += [_updating(params * (SCALE**2 if large else 1), device) for params in UPDATES]
    least = [math.inf] * len(tasks)
    threads = torch.get_num_threads()
    if not large:
        torch.set_num_threads(node.cpu_cores)
    try:
        for turn in range(TURNS):
            for number, task in enumerate(tasks):
                progress((turn + number / len(tasks)) / (TURNS + 1), task.told(0.0).what)
                least[number] = min(least[number], _typical_s(task.work, device))
    finally:
        torch.set_num_threads(threads)
    progress(TURNS / (TURNS + 1), "collectives")
    found = [task.told(seconds) for task, seconds in zip(tasks, least, strict=True)]
    fitted, samples = fit_device(
        here,
        [each for each in found if isinstance(each, Passed)],
        [each for each in found if isinstance(each, Updated)],
    )
    one = Calibration(machine=node.name, probed=here.name, device=_named(fitted), ranks=1, samples=samples)
    ranks = min(4, len(node.devices)) if large else min(2, node.cpu_cores)
    if ranks < 2:
        return one
    link, more = fit_link(exchanges(ranks, scratch=scratch), name=node.link.name)
    return replace(one, ranks=ranks, link=link, samples=(*samples, *more))


def publish_calibration(store: Store, node: Node, *, run: str = "", progress: Progress = silent) -> Artifact:
    """Calibrate this machine, `node`, and publish what was found as `calibration:<machine>`."""
    with store.scratch() as folder:
        found = calibrate(node, scratch=folder, progress=progress)
        path = folder / "calibration.json"
        path.write_text(parse.to_json(found), "utf-8")
        meta = {"device": found.device.name, "error": round(found.mean_error, 4)}
        return store.publish("calibration", _name_of(node), path, meta=meta, run=run)


def _name_of(node: Node) -> str:
    """The machine's name with what an artifact's name may not have replaced."""
    return re.sub(r"[^a-z0-9._-]+", "-", node.name.lower()).strip("-._") or "machine"


def _named(device: Device) -> Device:
    return replace(device, source=f"calibrated on this machine with torch {torch.__version__}; before: {device.source}")


def _larger(shape: Shape) -> Shape:
    return replace(
        shape,
        hidden=shape.hidden * SCALE,
        heads=shape.heads * SCALE,
        ffn=shape.ffn * SCALE,
        rows=shape.rows * SCALE,
    )


@dataclass(frozen=True, slots=True)
class _Task:
    """Something to time, and what its time says."""

    work: Callable[[], Any]
    told: Callable[[float], Passed | Updated]


def _passing(shape: Shape, device: torch.device) -> _Task:
    """Forward and backward of `shape`, gradients made anew each time as at the start of a step."""
    model = Decoder(shape.config).to(device)
    rows = torch.randint(shape.vocab, (shape.rows, shape.seq_len + 1), device=device)

    def once() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=shape.precision == "bf16"):
            total, count = next_token_loss(model, rows)
        (total / count).backward()

    profile = profile_decoder(shape.config, seq_len=shape.seq_len, name="probe")
    return _Task(once, partial(Passed, profile, shape.rows, shape.precision))


def _updating(params: int, device: torch.device) -> _Task:
    weight = torch.nn.Parameter(torch.zeros(params, device=device))
    weight.grad = torch.ones_like(weight)
    return _Task(torch.optim.AdamW([weight], lr=1e-6, fused=True).step, partial(Updated, params))


def _typical_s(work: Callable[[], Any], device: torch.device) -> float:
    """The lower quartile of some repeats, after two that warm up: neighbours only ever lengthen a measurement."""
    times: list[float] = []
    for repeat in range(1000):
        _settle(device)
        started = time.perf_counter()
        work()
        _settle(device)
        if repeat > 1:
            times.append(time.perf_counter() - started)
        if len(times) >= REPEATS and sum(times) >= LEAST_S:
            break
    return statistics.quantiles(times, n=4, method="inclusive")[0]


def _settle(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def exchanges(ranks: int, *, scratch: Path) -> tuple[Exchanged, ...]:
    """Collectives of several sizes among `ranks` processes of this machine, which meet in the folder `scratch`."""
    meeting, told = scratch / "meeting", scratch / "seconds.json"
    command = [sys.executable, "-m", "mainspring.train.exchange", str(meeting), str(told), str(ranks)]
    started = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    try:
        for process in started:
            _, said = process.communicate(timeout=PATIENCE_S)
            if process.returncode:
                last = (said.strip().splitlines() or ["nothing was said"])[-1]
                raise Failed(f"measuring collectives among {ranks} processes failed: {last}")
    except subprocess.TimeoutExpired as error:
        raise Failed(f"collectives among {ranks} processes took longer than {PATIENCE_S:.0f} s") from error
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return tuple(_read(json.loads(told.read_text("utf-8")), ranks))


def _read(rows: list[Any], ranks: int) -> Iterator[Exchanged]:
    for operation, payload_bytes, seconds in rows:
        yield Exchanged(operation=operation, ranks=ranks, payload_bytes=payload_bytes, seconds=seconds)
