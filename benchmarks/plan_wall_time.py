"""Are plans as fast as they are predicted to be, and in that order?

One decoder is trained by two processes on this machine under many plans: replicas, ZeRO 1 to 3, tensor, sequence,
pipeline and context parallelism, with and without recomputation, in large and in small micro-batches. Each plan's
seconds for a step, the median of rounds in which all take turns, stand beside what the planner says after `plan
calibrate` has measured the machine.

Ceiling: a rank correlation (Spearman's) of 1; the goal is 0.8.

Run: python benchmarks/plan_wall_time.py [--quick] [--rounds 5] [--steps 4]
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from mainspring.hardware import limits, probe, topology
from mainspring.models.profile import profile_decoder
from mainspring.models.transformer import Decoder
from mainspring.plan.search import plan_training
from mainspring.spec import Cluster, DecoderConfig, Hints, Plan, Task, TrainConfig
from mainspring.testing.gangs import CONTEXT, PRELOAD, FileGroup, Pool
from mainspring.testing.steps import Rows, timed
from mainspring.train.calibrate import calibrate
from mainspring.train.loop import Trainer, TrainingData
from mainspring.train.recipe import LoadedRecipe, Recipe
from measure import Findings, parse_options, publish, spread, take_turns

VOCAB, LENGTH, BATCH = 4096, 128, 8
MODEL = DecoderConfig(vocab=VOCAB, hidden=256, layers=6, heads=4, kv_heads=4, ffn=704, context=LENGTH, qk_norm=True)

CONTEXT.set_forkserver_preload([*PRELOAD, "__main__"])


@dataclass(frozen=True, slots=True)
class Order:
    """A plan, and how many steps of it."""

    plan: Plan
    steps: int
    folder: str


# What each plan is asked to be, and the rows of a micro-batch. All are of two processes with half the cores each: one
# with all of them would be the only one to depend on how busy the other cores are.
ASKED: dict[str, tuple[int, Hints]] = {
    "replicas": (4, Hints(dp=2, recompute="none")),
    "replicas, row by row": (1, Hints(dp=2, recompute="none")),
    "replicas, recomputed": (4, Hints(dp=2, recompute="full")),
    "replicas, row by row, recomputed": (1, Hints(dp=2, recompute="full")),
    "ZeRO-1": (4, Hints(fsdp=2, zero=1, recompute="none")),
    "ZeRO-2, row by row": (1, Hints(fsdp=2, zero=2, recompute="none")),
    "ZeRO-3": (4, Hints(fsdp=2, zero=3, recompute="none")),
    "ZeRO-3, row by row": (1, Hints(fsdp=2, zero=3, recompute="none")),
    "ZeRO-3, row by row, recomputed": (1, Hints(fsdp=2, zero=3, recompute="full")),
    "tensor": (8, Hints(tp=2, sequence_parallel=False, recompute="none")),
    "tensor, row by row": (1, Hints(tp=2, sequence_parallel=False, recompute="none")),
    "tensor, recomputed": (8, Hints(tp=2, sequence_parallel=False, recompute="full")),
    "tensor and sequence": (8, Hints(tp=2, sequence_parallel=True, recompute="none")),
    "tensor and sequence, row by row": (1, Hints(tp=2, sequence_parallel=True, recompute="none")),
    "2 stages, 2 micro-batches": (4, Hints(pp=2, chunks=1, schedule="1f1b", recompute="none")),
    "2 stages, 8 micro-batches": (1, Hints(pp=2, chunks=1, schedule="1f1b", recompute="none")),
    "2 stages, 2 micro-batches, recomputed": (4, Hints(pp=2, chunks=1, schedule="1f1b", recompute="full")),
    "context": (8, Hints(cp=2, zero=1, recompute="none")),
}


def planned(rows: int, hints: Hints, cluster: Cluster) -> Plan:
    """The plan that is as `hints` say."""
    model = profile_decoder(MODEL, seq_len=LENGTH, name="decoder")
    return plan_training(model, cluster, config_of(rows, steps=1), ranks=2, hints=hints)


def config_of(rows: int, *, steps: int) -> TrainConfig:
    return TrainConfig(steps=steps, global_batch=BATCH, seq_len=LENGTH, microbatch=rows, checkpoint_every=0)


def run_rank(task: Task, order: Order) -> list[float]:
    """The seconds of each step but the first, in which ranks meet and shapes are learned."""
    torch.set_num_threads(max(1, limits.cores() // task.local_world))
    config = config_of(order.plan.microbatch, steps=order.steps + 2)  # left before the last, after which all is saved
    recipe = Recipe(model=lambda: Decoder(MODEL), config=config)
    loaded = LoadedRecipe(recipe=recipe, path=Path(__file__), digest="0" * 64)
    data = TrainingData(train=Rows(vocab=VOCAB, global_batch=BATCH, length=LENGTH), facts={})
    trainer = Trainer(loaded, order.plan, FileGroup(task), data=data, folder=order.folder)
    seconds, _ = timed(islice(trainer.steps(), order.steps + 1))
    trainer.close()
    return seconds


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of ranks; there are no ties among seconds."""

    def ranks(values: Sequence[float]) -> list[float]:
        order = sorted(range(len(values)), key=values.__getitem__)
        return [float(order.index(place)) for place in range(len(values))]

    return statistics.correlation(ranks(one), ranks(other))


def running(plan: Plan, pool: Pool, *, steps: int, folder: str) -> Callable[[int], float]:
    """An arm that gives the seconds of the plan's fastest step on its slowest rank."""
    order = Order(plan, steps, folder)
    return lambda number: max(map(min, pool.run(plan.mesh.world, run_rank, order)))  # noqa: ARG005 turns are alike


def main() -> None:
    options = parse_options(__doc__, rounds=5, steps=4)
    rounds = 1 if options.quick else options.rounds
    asked = dict(list(ASKED.items())[::9]) if options.quick else ASKED
    plain = topology.local_cluster()
    with tempfile.TemporaryDirectory() as folder:
        known = None if options.quick else calibrate(probe.probe_node(), scratch=Path(folder))
        cluster = plain if known is None else topology.calibrated(plain, known)
        plans = {name: planned(rows, hints, cluster) for name, (rows, hints) in asked.items()}
        blind = {name: planned(rows, hints, plain).time.step_s for name, (rows, hints) in asked.items()}
        pool = Pool(patience_s=240.0)
        try:
            arms = {name: running(plan, pool, steps=options.steps, folder=folder) for name, plan in plans.items()}
            found: dict[str, list[float]] = take_turns(arms, rounds=rounds)
        finally:
            pool.close()
    measured = {name: spread(seconds).median for name, seconds in found.items()}
    predicted = {name: plan.time.step_s for name, plan in plans.items()}
    order = sorted(measured, key=measured.__getitem__)
    agreement = spearman(list(predicted.values()), list(measured.values()))
    before = spearman(list(blind.values()), list(measured.values()))
    errors = {name: predicted[name] / measured[name] - 1 for name in order}
    publish(
        Findings(
            benchmark="plan_wall_time",
            headline=f"{len(order)} plans, ranked as predicted with a correlation of {agreement:.2f}; predicted "
            f"seconds are {statistics.median(map(abs, errors.values())):.0%} off in the median",
            columns=("plan", "measured, s", "predicted, s", "error"),
            rows=tuple(
                (
                    name,
                    f"{spread(found[name])}",
                    f"{predicted[name]:.3f}",
                    f"{errors[name]:+.0%}",
                )
                for name in order
            ),
            numbers={"spearman": agreement, "spearman_uncalibrated": before, "plans": len(order)},
            spec={"rounds": rounds, "steps": options.steps, "global_batch": BATCH, "seq_len": LENGTH},
            samples={
                "seconds": found,
                "predicted": predicted,
                "uncalibrated": blind,
                "calibration": {each.what: (each.measured_s, each.predicted_s) for each in known.samples}
                if known
                else {},
            },
        ),
        packages=("torch",),
    )


if __name__ == "__main__":
    main()
