"""What calibration times: steps of small decoders and updates, made of what `train` runs.

The shapes differ in what they are bound by (arithmetic, attention, memory, the mere number of operations), so that
`plan.calibrate` can tell the constants apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from mainspring.models.profile import profile_decoder
from mainspring.models.transformer import Decoder
from mainspring.plan.calibrate import Passed, Updated
from mainspring.spec import DecoderConfig, Precision
from mainspring.train.recipe import next_token_loss

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


@dataclass(frozen=True, slots=True)
class Work:
    """Something to time, and what its time says."""

    once: Callable[[], Any]
    told: Callable[[float], Passed | Updated]


def works(device: torch.device, *, large: bool, ranks: int) -> list[Work]:
    """All that is timed on `device`, of which a rank has a `ranks`-th; `large` on an accelerator."""
    shapes = [_larger(shape) if large else shape for shape in SHAPES]
    updates = [params * (SCALE**2 if large else 1) for params in UPDATES]
    share = 1 / ranks
    return [
        *(_passing(shape, device, share=share) for shape in shapes),
        *(_updating(params, device, share=share) for params in updates),
    ]


def _larger(shape: Shape) -> Shape:
    return replace(
        shape,
        hidden=shape.hidden * SCALE,
        heads=shape.heads * SCALE,
        ffn=shape.ffn * SCALE,
        rows=shape.rows * SCALE,
    )


def _passing(shape: Shape, device: torch.device, *, share: float) -> Work:
    """Forward and backward of `shape`, gradients made anew each time as at the start of a step."""
    model = Decoder(shape.config).to(device)
    rows = torch.randint(shape.vocab, (shape.rows, shape.seq_len + 1), device=device)

    def once() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=shape.precision == "bf16"):
            total, count = next_token_loss(model, rows)
        (total / count).backward()

    profile = profile_decoder(shape.config, seq_len=shape.seq_len, name="probe")
    return Work(once, partial(Passed, profile, shape.rows, shape.precision, share=share))


def _updating(params: int, device: torch.device, *, share: float) -> Work:
    weight = torch.nn.Parameter(torch.zeros(params, device=device))
    weight.grad = torch.ones_like(weight)
    return Work(torch.optim.AdamW([weight], lr=1e-6, fused=True).step, partial(Updated, params, share=share))


def typical_s(work: Callable[[], Any], device: torch.device) -> float:
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
