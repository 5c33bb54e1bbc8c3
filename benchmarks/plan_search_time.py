"""How long does the planner think, and does it find what trying everything finds?

Seconds are of the processor, so that a busy machine does not count. The small cases are those that can be enumerated:
every mesh, micro-batch, recomputation, schedule, ZeRO stage and cut of a short model on at most 16 devices.

Ceiling: none but Python's. Goal: 2 s for 100 layers on 1,024 devices, 10 s on 16,384, and equality in every case.

Run: python benchmarks/plan_search_time.py [--quick] [--rounds 5] [--cases 20]
"""

import random
import time
from collections.abc import Callable

from mainspring.plan.limits import EVERYTHING
from mainspring.plan.search import plan_training
from mainspring.spec import Cluster, DoesNotFit, Hints, ModelSpec, SpecError, TrainConfig
from mainspring.testing.exhaustive import fastest_by_brute_force
from mainspring.testing.machines import GIB, build_cluster, build_device, build_model
from measure import Findings, parse_options, publish, spread, take_turns

FAST = build_device("fast", memory_bytes=80 << 30, bf16_flops_per_s=9.9e14, memory_bytes_per_s=3.3e12)
SLOW = build_device("slow", memory_bytes=40 << 30, bf16_flops_per_s=3.1e14, memory_bytes_per_s=1.5e12)
CONFIG = TrainConfig(steps=10, global_batch=2048, seq_len=2048, precision="bf16")
FEW = TrainConfig(steps=10, global_batch=32, seq_len=2048, precision="bf16")
LINKS = {"link_gbps": 450.0, "network_gbps": 50.0}
TIE = 1e-9

ONE_KIND, TWO_KINDS = "1,024 devices of one kind", "512 devices of each of two kinds"
MANY = "16,384 devices of one kind"


def planning(model: ModelSpec, cluster: Cluster, config: TrainConfig) -> Callable[[int], float]:
    """An arm that plans once and gives the seconds it took."""

    def plan(number: int) -> float:  # noqa: ARG001 every search is alike
        started = time.process_time()
        plan_training(model, cluster, config, limits=EVERYTHING)
        return time.process_time() - started

    return plan


def clusters(*, quick: bool) -> dict[str, Cluster]:
    """What is planned for; `quick` makes each a sixteenth."""
    nodes = 8 if quick else 128
    found = {
        ONE_KIND: build_cluster((FAST, 8, nodes), **LINKS),
        TWO_KINDS: build_cluster((FAST, 8, nodes // 2), (SLOW, 8, nodes // 2), **LINKS),
    }
    return found if quick else found | {MANY: build_cluster((FAST, 8, 2048), **LINKS)}


def same_as_brute_force(seed: int, *, most_layers: int) -> bool:
    """Whether the search finds the time of the best of all plans, in a case that follows from `seed`."""
    draw = random.Random(seed)
    layers = draw.randint(1, most_layers)
    model = build_model(layers=layers, hidden=draw.choice([128, 512, 2048]))
    device = build_device(memory_bytes=int(draw.uniform(0.3, 20) * GIB))
    per_node, nodes = draw.choice([(2, 1), (4, 1), (2, 2), (8, 1), (4, 2), (8, 2)])
    cluster = build_cluster((device, per_node, nodes), network_gbps=draw.uniform(0.1, 50))
    size = draw.choice([2, 4, 6, 8])
    config = TrainConfig(
        steps=1, global_batch=size, seq_len=draw.choice([128, 1024]), precision=draw.choice(["fp32", "bf16"])
    )
    # Long models have more plans than can be tried: there pipeline and recomputation are given.
    hints = Hints(pp=draw.choice([1, 2, 3, 4]), recompute="none", tp=1, cp=1) if layers > 3 else Hints()
    best = fastest_by_brute_force(model, cluster, config, hints=hints)
    try:
        found = plan_training(model, cluster, config, hints=hints).time.step_s
    except (DoesNotFit, SpecError):
        return best == float("inf")
    return abs(found / best - 1) < TIE


def main() -> None:
    options = parse_options(__doc__, rounds=5, cases=20)
    rounds, cases = (1, 2) if options.quick else (options.rounds, options.cases)
    model = build_model(layers=40 if options.quick else 100, hidden=4096, vocab=32000)
    config = FEW if options.quick else CONFIG
    arms = {name: planning(model, cluster, config) for name, cluster in clusters(quick=options.quick).items()}
    found = take_turns(arms, rounds=rounds)
    seconds = {name: spread(samples) for name, samples in found.items()}
    equal = [same_as_brute_force(seed, most_layers=3 if options.quick else 10) for seed in range(cases)]
    thought = ", ".join(f"{name} in {each.median:.2f} s" for name, each in seconds.items())
    publish(
        Findings(
            benchmark="plan_search_time",
            headline=f"{thought}; as good as trying everything in {sum(equal)} of {cases} small cases",
            columns=("cluster", "seconds (quartiles)"),
            rows=(
                *((name, f"{each}") for name, each in seconds.items()),
                ("small cases equal to brute force", f"{sum(equal)} of {cases}"),
            ),
            numbers={name: each.median for name, each in seconds.items()} | {"equal": sum(equal), "cases": cases},
            spec={"layers": 100, "rounds": rounds},
            samples={"seconds": found, "equal": equal},
        )
    )


if __name__ == "__main__":
    main()
