"""Does a micro-batch in two copies hide tensor parallelism's sums behind arithmetic, and as much as was promised?

A decoder over two ranks of tensor parallelism runs with its micro-batches whole and in two copies that take turns, by
the real executor over gloo, with links of different speed. Devices and links are emulated without fighting for this
machine's cores: the arithmetic is that of a tiny model, every layer then waits for as long as the planner says it takes
on the device, and a sum is there as long after it was begun as its bytes take on the link, one after the other.

Ceiling: what is hidden can at most be the smaller of arithmetic and sums, so a step can be twice as fast.

Run: python benchmarks/overlap_copies.py [--quick] [--rounds 5] [--steps 2]
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor, nn

from mainspring.models.transformer import Decoder
from mainspring.plan.search import plan_training
from mainspring.spec import DecoderConfig, Hints, Plan, Task, TrainConfig
from mainspring.testing.gangs import CONTEXT, PRELOAD, FileGroup, Pool
from mainspring.testing.machines import build_cluster, build_device, build_model
from mainspring.testing.steps import Rows, pause_after, timed
from mainspring.train.loop import Trainer, TrainingData
from mainspring.train.recipe import LoadedRecipe, Recipe
from measure import Findings, parse_options, publish, ratios, spread, take_turns

LAYERS, BATCH, MICROBATCH, PLANNED_LENGTH, LENGTH, VOCAB = 4, 16, 8, 2048, 8, 64
STEP_S = 1.5  # of a step with whole micro-batches
SUMS = 4 * LAYERS + 2  # of a micro-batch: two each way in a layer, one for the words, one for the scores' gradient
LINKS_GBPS = (50.0, 16.0, 6.0, 2.0)
WHOLE, COPIES = "whole", "in 2 copies"

CONTEXT.set_forkserver_preload([*PRELOAD, "__main__"])


class _Late:
    """A collective whose result is not there before `at`."""

    def __init__(self, work: dist.Work, at: float) -> None:
        self._work, self._at = work, at

    def wait(self) -> None:
        self._work.wait()
        threading.Event().wait(max(0.0, self._at - time.perf_counter()))


@contextmanager
def slow_link(seconds: float) -> Iterator[None]:
    """While it is entered, each sum that autograd goes through takes `seconds`, one after the other."""
    real, free = dist.all_reduce, [0.0]

    def all_reduce(tensor: Tensor, *args: Any, async_op: bool = False, **kwargs: Any) -> Any:
        work = real(tensor, *args, async_op=async_op, **kwargs)
        if not async_op:
            return work
        free[0] = max(free[0], time.perf_counter()) + seconds
        return _Late(work, free[0])

    dist.all_reduce = all_reduce
    try:
        yield
    finally:
        dist.all_reduce = real


@dataclass(frozen=True, slots=True)
class Order:
    """What a gang runs: a plan, the seconds of half a layer forward and of a sum, and how many steps."""

    plan: Plan
    half_layer_s: float
    sum_s: float
    steps: int
    folder: str


def planned(link_gbps: float, copies: int) -> Plan:
    """A decoder over two ranks that share a link; `copies` as the planner likes for 0."""
    model = build_model(layers=LAYERS, hidden=4096)
    cluster = build_cluster((build_device(memory_bytes=1 << 40), 2, 1), link_gbps=link_gbps)
    config = TrainConfig(
        steps=1, global_batch=BATCH, seq_len=PLANNED_LENGTH, microbatch=MICROBATCH, precision="bf16", checkpoint_every=0
    )
    hints = Hints(tp=2, dp=1, sequence_parallel=False, recompute="none", copies=copies)
    return plan_training(replace(model, seq_len=PLANNED_LENGTH), cluster, config, ranks=2, hints=hints)


def order_of(plan: Plan, *, scale: float, steps: int, folder: str) -> Order:
    """`plan` at `scale` times the seconds that it is predicted to take. A third of a pass is its forward."""
    passes = sum(plan.microbatches) * plan.copies
    sums_s = sum(each.seconds for each in plan.traffic if each.axis == "tp")
    return Order(
        replace(plan, seq_len=LENGTH),
        half_layer_s=scale * plan.time.compute_s / passes / (3 * 2 * LAYERS),
        sum_s=scale * sums_s / passes / SUMS,
        steps=steps,
        folder=folder,
    )


def run_rank(task: Task, order: Order) -> tuple[list[float], list[float]]:
    """The seconds of each step but the first, and all losses."""
    sizes = DecoderConfig(vocab=VOCAB, hidden=16, layers=LAYERS, heads=2, kv_heads=2, ffn=32, context=LENGTH)

    def build() -> nn.Module:
        model = Decoder(sizes)
        for block in model.blocks:
            for half in (block.input_layernorm, block.post_attention_layernorm):
                pause_after(half, order.half_layer_s)
        return model

    sizes_of = {"global_batch": BATCH, "seq_len": LENGTH, "microbatch": MICROBATCH, "checkpoint_every": 0}
    config = TrainConfig(steps=order.steps + 1, **sizes_of)
    loaded = LoadedRecipe(recipe=Recipe(model=build, config=config), path=Path(__file__), digest="0" * 64)
    data = TrainingData(train=Rows(vocab=VOCAB, global_batch=BATCH, length=LENGTH), facts={})
    trainer = Trainer(loaded, order.plan, FileGroup(task), data=data, folder=order.folder)
    with slow_link(order.sum_s):
        found = timed(trainer.steps())
    trainer.close()
    return found


def measure_link(gbps: float, pool: Pool, *, rounds: int, steps: int, folder: str) -> tuple[dict[str, Any], list[Any]]:
    """Seconds of a step of both plans, in turn; and all losses."""
    plans = {WHOLE: planned(gbps, 1), COPIES: planned(gbps, 2)}
    scale = STEP_S / plans[WHOLE].time.step_s

    def arm(plan: Plan) -> Any:
        order = order_of(plan, scale=scale, steps=steps, folder=folder)
        return lambda number: pool.run(2, run_rank, order)[0]  # noqa: ARG005 rounds are alike

    found = take_turns({name: arm(plan) for name, plan in plans.items()}, rounds=rounds)
    clock = {name: [float(np.mean(seconds)) for seconds, _ in runs] for name, runs in found.items()}
    return clock, [np.array(losses) for runs in found.values() for _, losses in runs]


def main() -> None:
    options = parse_options(__doc__, rounds=5, steps=2)
    rounds = 1 if options.quick else options.rounds
    rows: list[tuple[str, ...]] = []
    numbers: dict[str, float] = {}
    samples: dict[str, Any] = {}
    pool = Pool(patience_s=240.0)
    checkpoints = tempfile.TemporaryDirectory()
    try:
        for gbps in LINKS_GBPS[1:2] if options.quick else LINKS_GBPS:
            clock, losses = measure_link(gbps, pool, rounds=rounds, steps=options.steps, folder=checkpoints.name)
            faster = spread(ratios(clock[WHOLE], clock[COPIES]))
            whole, chosen = planned(gbps, 1).time, planned(gbps, 0)
            promised = whole.step_s / planned(gbps, 2).time.step_s
            rows.append(
                (
                    f"{whole.communication_s / whole.compute_s:.2f}",
                    *(f"{spread(clock[name]).median:.2f}" for name in (WHOLE, COPIES)),
                    f"{faster}",
                    f"{promised:.2f}",
                    COPIES if chosen.copies > 1 else WHOLE,
                    f"{max(float(np.abs(each - losses[0]).max()) for each in losses):.1g}",
                )
            )
            numbers |= {f"faster_{gbps:.0f}": faster.median, f"promised_{gbps:.0f}": promised}
            samples[f"{gbps:.0f} GB/s"] = clock
    finally:
        pool.close()
        checkpoints.cleanup()
    best = max(number for name, number in numbers.items() if name.startswith("faster"))
    names = ("sums / arithmetic", "whole, s a step", "2 copies, s a step", "faster", "promised", "planned")
    publish(
        Findings(
            benchmark="overlap_copies",
            headline=f"Up to {best:.2f} times as fast with each micro-batch in two copies",
            columns=(*names, "losses differ by"),
            rows=tuple(rows),
            numbers=numbers,
            spec={"layers": LAYERS, "microbatch": MICROBATCH, "rounds": rounds, "steps": options.steps},
            samples=samples,
        ),
        packages=("torch",),
    )


if __name__ == "__main__":
    main()
