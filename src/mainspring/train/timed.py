"""What calibration times: steps of small decoders and updates, made of what `train` runs.

The shapes differ in what they are bound by (arithmetic, attention, memory, the mere number of operations), so that
`plan.calibrate` can tell the constants apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mainspring.models.profile import profile_decoder
from mainspring.models.transformer import Decoder
from mainspring.plan.calibrate import Passed, Updated
from mainspring.plan.search import plan_training
from mainspring.spec import Cluster, DecoderConfig, Hints, Node, Plan, Precision, TrainConfig
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


# Bound by: launching, all alike, arithmetic, memory, memory, attention, scores, all alike again.
SHAPES = (
    Shape(64, 2, 128, 256, rows=1, seq_len=16),
    Shape(128, 2, 384, 1024, rows=4, seq_len=128),
    Shape(512, 8, 2048, 1024, rows=4, seq_len=128),
    Shape(64, 1, 512, 512, rows=32, seq_len=128),
    Shape(64, 1, 768, 256, rows=16, seq_len=128),
    Shape(128, 2, 128, 256, rows=1, seq_len=2048),
    Shape(128, 2, 256, 8192, rows=4, seq_len=128),  # scores that the C library need not map anew each time
    Shape(256, 4, 1024, 4096, rows=8, seq_len=128),
    Shape(512, 8, 2048, 1024, rows=4, seq_len=128, precision="bf16"),
    Shape(256, 4, 1024, 4096, rows=8, seq_len=128, precision="bf16"),
)
SCALE = 4  # of widths on an accelerator; batches grow by as much
UPDATES = (1 << 20, 1 << 23)  # parameters


# What plans cost a host besides arithmetic, on a model so small that there is little of that.
TINY = Shape(64, 4, 128, 256, rows=1, seq_len=16)
LAYERS, ROWS = 8, 8
TINY_DECODER = replace(TINY.config, layers=LAYERS)
MODEL = profile_decoder(TINY_DECODER, seq_len=TINY.seq_len, name="tiny")
REHEARSED: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {"zero": 0, "axis": "dp"}),
    (1, {"zero": 2, "axis": "fsdp"}),
    (1, {"zero": 3, "axis": "fsdp"}),
    (4, {"zero": 3, "axis": "fsdp"}),
    (4, {"axis": "tp", "sequence_parallel": False}),
    (4, {"axis": "tp", "sequence_parallel": True}),
    (4, {"axis": "pp", "schedule": "1f1b", "chunks": 1}),
    (8, {"axis": "pp", "schedule": "1f1b", "chunks": 1}),
)
"""Micro-batches of a replica, and the hints that ask for the plan."""


def planned(node: Node, *, ranks: int) -> tuple[Plan, ...]:
    """The plans that are rehearsed, on `ranks` ranks of `node`."""
    cluster = Cluster(name="host", nodes=(node,), link=node.link)
    found: list[Plan] = []
    for count, asked in REHEARSED:
        axis, rest = asked["axis"], {name: value for name, value in asked.items() if name != "axis"}
        replicas = ranks if axis in ("dp", "fsdp") else 1
        config = TrainConfig(
            steps=1, global_batch=ROWS, seq_len=TINY.seq_len, microbatch=ROWS // replicas // count, checkpoint_every=0
        )
        hints = Hints(**{axis: ranks}, recompute="none", **rest)
        found.append(plan_training(MODEL, cluster, config, ranks=ranks, hints=hints))
    return tuple(found)


def works(device: torch.device, *, large: bool) -> list[Callable[[], Any]]:
    """All that is timed on `device`; `large` on an accelerator."""
    shapes, updates = _sizes(large=large)
    return [*(_passing(shape, device) for shape in shapes), *(_updating(params, device) for params in updates)]


def facts(seconds: Sequence[float], *, large: bool, ranks: int) -> tuple[Passed | Updated, ...]:
    """What the `seconds` of all that `works` makes say, on ranks that have a `ranks`-th of the device each."""
    (shapes, updates), share, found = _sizes(large=large), 1 / ranks, list[Passed | Updated]()
    for each, taken in zip(shapes, seconds, strict=False):
        profile = profile_decoder(each.config, seq_len=each.seq_len, name="probe")
        found.append(Passed(profile, each.rows, each.precision, taken, share=share))
    for params, taken in zip(updates, seconds[len(shapes) :], strict=True):
        found.append(Updated(params, taken, share=share))
    return tuple(found)


def _sizes(*, large: bool) -> tuple[list[Shape], list[int]]:
    """The decoders that are passed through, and the parameters that are updated."""
    if not large:
        return list(SHAPES), list(UPDATES)
    return [_larger(shape) for shape in SHAPES], [params * SCALE**2 for params in UPDATES]


def _larger(shape: Shape) -> Shape:
    return replace(
        shape,
        hidden=shape.hidden * SCALE,
        heads=shape.heads * SCALE,
        ffn=shape.ffn * SCALE,
        rows=shape.rows * SCALE,
    )


def _passing(shape: Shape, device: torch.device) -> Callable[[], Any]:
    """Forward and backward of `shape`, gradients made anew each time as at the start of a step."""
    model = Decoder(shape.config).to(device)
    rows = torch.randint(shape.vocab, (shape.rows, shape.seq_len + 1), device=device)

    def once() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=shape.precision == "bf16"):
            total, count = next_token_loss(model, rows)
        (total / count).backward()

    return once


def _updating(params: int, device: torch.device) -> Callable[[], Any]:
    weight = torch.nn.Parameter(torch.zeros(params, device=device))
    weight.grad = torch.ones_like(weight)
    return torch.optim.AdamW([weight], lr=1e-6, fused=True).step


def clock_of(device: torch.device) -> Callable[[], float]:
    """The processor's own clock where one thread does all the work: what neighbours take from it is not counted."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def typical_s(work: Callable[[], Any], device: torch.device) -> float:
    """The lower quartile of some repeats, after two that warm up: neighbours only ever lengthen a measurement."""
    clock, times = clock_of(device), list[float]()
    for repeat in range(1000):
        _settle(device)
        started = clock()
        work()
        _settle(device)
        if repeat > 1:
            times.append(clock() - started)
        if len(times) >= REPEATS and sum(times) >= LEAST_S:
            break
    return statistics.quantiles(times, n=4, method="inclusive")[0]


def _settle(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
