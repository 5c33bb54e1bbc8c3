"""Does an uneven split pay on devices of different speed?

A decoder of 8 layers is planned for machines of two kinds, one three times as fast as the other: once as the planner
splits it, once evenly over the same mesh. Both plans are run by the real executor, every message sent. The devices are
emulated without fighting for this machine's cores: a tiny model with as many layers does the arithmetic, and every
layer then waits for as long as its operations would take on the rank's device, forward once and backward twice that.

Ceiling: work shared in proportion to speed is (3 + 1) / 2 = 2 times as fast as an even split in two. Whale (Jia et al.
2022) reports 1.2 to 1.4 on V100 and P100.

Run: python benchmarks/hetero_split.py [--quick] [--rounds 3] [--steps 2]
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mainspring.models.transformer import Decoder
from mainspring.plan.search import plan_training
from mainspring.spec import BlockSpec, Cluster, DecoderConfig, Hints, Plan, Task, TrainConfig
from mainspring.testing.gangs import CONTEXT, PRELOAD, FileGroup, Pool
from mainspring.testing.machines import build_cluster, build_device, build_model
from mainspring.testing.steps import Rows, pause_after, timed
from mainspring.train.loop import Trainer, TrainingData
from mainspring.train.recipe import LoadedRecipe, Recipe
from measure import Findings, parse_options, publish, ratios, spread, take_turns

LAYERS, BATCH, PLANNED_LENGTH, LENGTH, VOCAB = 8, 8, 2048, 8, 64
SLOW_FLOPS_PER_S = 3e13
SPEED = {"quick": 3.0, "slow": 1.0}
LAYER_S = 0.04  # of one layer forward on the slow device, for one micro-batch
UNEVEN, EVEN = "as planned", "even"

CONTEXT.set_forkserver_preload([*PRELOAD, "__main__"])


@dataclass(frozen=True, slots=True)
class Order:
    """What a gang runs: a plan, the seconds of each rank's layers and head for a row, and how many steps."""

    plan: Plan
    layer_s: tuple[float, ...]
    head_s: tuple[float, ...]
    steps: int
    folder: str


@dataclass(frozen=True, slots=True)
class Case:
    """Machines, and what the planner is told."""

    key: str
    name: str
    cluster: Cluster
    hints: Hints


def machines(each: int) -> Cluster:
    """`each` machines with one device, of both kinds."""
    kinds = [build_device(name, fp32_flops_per_s=speed * SLOW_FLOPS_PER_S) for name, speed in SPEED.items()]
    return build_cluster(*((kind, 1, each) for kind in kinds), network_gbps=50.0)


CASES = (
    Case("replicas", "2 replicas", machines(1), Hints(dp=2)),
    Case("stages", "2 stages", machines(1), Hints(pp=2)),
    Case("four", "4 devices, any plan", machines(2), Hints()),
)


def planned(case: Case) -> Plan:
    """The planner's choice, for a model that is worth spreading, with the length of rows that is run here."""
    model = build_model(layers=LAYERS, hidden=2048, vocab=8192)
    config = TrainConfig(steps=1, global_batch=BATCH, seq_len=PLANNED_LENGTH, microbatch=1)
    ranks = len(case.cluster.nodes)
    found = plan_training(replace(model, seq_len=PLANNED_LENGTH), case.cluster, config, ranks=ranks, hints=case.hints)
    return replace(found, seq_len=LENGTH)


def evened(plan: Plan) -> Plan:
    """The same mesh with as many blocks on each stage and as many micro-batches for each replica."""
    count, units = plan.global_batch // plan.microbatch // plan.mesh.replicas, sum(s.blocks for s in plan.stages)
    stages, first = [], 0
    for number, stage in enumerate(plan.stages, start=1):
        blocks = units * number // len(plan.stages) - first
        stages.append(replace(stage, first=first, blocks=blocks, microbatches=(count,) * plan.mesh.replicas))
        first += blocks
    return replace(plan, stages=tuple(stages))


def order_of(plan: Plan, *, steps: int, folder: str, layer_s: float) -> Order:
    """`plan` with the pace of each rank: as many seconds as the operations of a row are on its device."""
    _, layer, head = build_model(layers=LAYERS, hidden=2048, vocab=8192).blocks
    speeds = [SPEED[node.partition("-")[0]] for node in plan.nodes]
    share = _flops(head) / _flops(layer)
    return Order(
        plan,
        layer_s=tuple(layer_s / speed for speed in speeds),
        head_s=tuple(share * layer_s / speed for speed in speeds),
        steps=steps,
        folder=folder,
    )


def _flops(block: BlockSpec) -> float:
    return block.flops_per_token + block.attention_flops_per_token2 * PLANNED_LENGTH


def run_rank(task: Task, order: Order) -> tuple[list[float], list[float]]:
    """The seconds of each step but the first, and all losses."""
    sizes = DecoderConfig(vocab=VOCAB, hidden=16, layers=LAYERS, heads=2, kv_heads=2, ffn=32, context=LENGTH)

    def build() -> nn.Module:
        model = Decoder(sizes)
        for block in model.blocks:
            pause_after(block.mlp, order.layer_s[task.rank])
        pause_after(model.lm_head, order.head_s[task.rank])
        return model

    config = TrainConfig(steps=order.steps + 1, global_batch=BATCH, seq_len=LENGTH, microbatch=1, checkpoint_every=0)
    loaded = LoadedRecipe(recipe=Recipe(model=build, config=config), path=Path(__file__), digest="0" * 64)
    data = TrainingData(train=Rows(vocab=VOCAB, global_batch=BATCH, length=LENGTH), facts={})
    trainer = Trainer(loaded, order.plan, FileGroup(task), data=data, folder=order.folder)
    found = timed(trainer.steps())
    trainer.close()
    return found


def describe(plan: Plan) -> str:
    """The mesh, and what is uneven in it."""
    parts = [plan.mesh.label]
    if len(plan.stages) > 1:
        parts.append("blocks " + ":".join(str(stage.blocks) for stage in plan.stages))
    if plan.mesh.replicas > 1:
        parts.append("micro-batches " + ":".join(map(str, plan.microbatches)))
    return ", ".join(parts)


def measure_case(case: Case, pool: Pool, *, rounds: int, **how: Any) -> tuple[Plan, dict[str, list[Any]]]:
    """Seconds of a step and losses of both plans, in turn."""
    plan = planned(case)

    def arm(which: Plan) -> Any:
        order = order_of(which, **how)
        return lambda number: pool.run(which.mesh.world, run_rank, order)[0]  # noqa: ARG005 rounds are alike

    return plan, take_turns({UNEVEN: arm(plan), EVEN: arm(evened(plan))}, rounds=rounds)


def farthest(runs: Sequence[Sequence[tuple[list[float], list[float]]]]) -> float:
    """The largest difference between losses of the same step."""
    losses = np.array([losses for arm in runs for _, losses in arm])
    return float(np.abs(losses - losses[0]).max())


def main() -> None:
    options = parse_options(__doc__, rounds=3, steps=2)
    rounds, layer_s = (1, LAYER_S / 4) if options.quick else (options.rounds, LAYER_S)
    rows: list[tuple[str, ...]] = []
    numbers: dict[str, float] = {}
    samples: dict[str, Any] = {}
    how = {"rounds": rounds, "steps": options.steps, "layer_s": layer_s}
    pool = Pool(patience_s=240.0)
    checkpoints = tempfile.TemporaryDirectory()
    try:
        for case in CASES[:1] if options.quick else CASES:
            plan, found = measure_case(case, pool, folder=checkpoints.name, **how)
            clock = {arm: [float(np.mean(seconds)) for seconds, _ in runs] for arm, runs in found.items()}
            faster = spread(ratios(clock[EVEN], clock[UNEVEN]))
            apart = farthest(list(found.values()))
            cells = (f"{spread(clock[arm]).median:.2f}" for arm in (EVEN, UNEVEN))
            rows.append((case.name, describe(plan), *cells, f"{faster}", f"{apart:.1g}"))
            numbers |= {f"{case.key}_faster": faster.median, f"{case.key}_loss_difference": apart}
            samples[case.name] = clock
    finally:
        pool.close()
        checkpoints.cleanup()
    least = min(number for name, number in numbers.items() if name.endswith("_faster"))
    publish(
        Findings(
            benchmark="hetero_split",
            headline=f"At least {least:.2f} times as fast as an even split over the same devices, with the same losses",
            columns=("devices 3:1", "plan", "even, s a step", "planned, s a step", "faster", "losses differ by"),
            rows=tuple(rows),
            numbers=numbers,
            spec={"layers": LAYERS, "global_batch": BATCH, "rounds": rounds, "steps": options.steps},
            samples=samples,
        ),
        packages=("torch",),
    )


if __name__ == "__main__":
    main()
