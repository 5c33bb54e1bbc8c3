"""How long does the planner think, on one kind of device and on two?

Ceiling: none but Python's; the goal is 2 s for 100 layers on 1,024 devices.

Run: python benchmarks/plan_search_time.py [--quick] [--rounds 5]
"""

import time
from collections.abc import Callable

from mainspring.plan.search import estimates, plan_training
from mainspring.spec import Cluster, ModelSpec, TrainConfig
from mainspring.testing.machines import build_cluster, build_device, build_model
from measure import Findings, parse_options, publish, spread, take_turns

FAST = build_device("fast", memory_bytes=80 << 30, bf16_flops_per_s=9.9e14, memory_bytes_per_s=3.3e12)
SLOW = build_device("slow", memory_bytes=40 << 30, bf16_flops_per_s=3.1e14, memory_bytes_per_s=1.5e12)
CONFIG = TrainConfig(steps=10, global_batch=2048, seq_len=2048, precision="bf16")


ONE_KIND, TWO_KINDS = "1,024 of one kind", "512 of each of two kinds"
CLUSTERS = {
    ONE_KIND: build_cluster((FAST, 8, 128)),
    TWO_KINDS: build_cluster((FAST, 8, 64), (SLOW, 8, 64)),
}


def planning(model: ModelSpec, cluster: Cluster) -> Callable[[int], float]:
    """An arm that plans once and gives the seconds it took."""

    def plan(number: int) -> float:  # noqa: ARG001 every search is alike
        started = time.perf_counter()
        plan_training(model, cluster, CONFIG)
        return time.perf_counter() - started

    return plan


def main() -> None:
    options = parse_options(__doc__, rounds=5)
    rounds = 1 if options.quick else options.rounds
    model = build_model(layers=100, hidden=4096, vocab=32000)
    found = take_turns({name: planning(model, cluster) for name, cluster in CLUSTERS.items()}, rounds=rounds)
    counts = {name: len(estimates(model, cluster, CONFIG)) for name, cluster in CLUSTERS.items()}
    seconds = {name: spread(samples) for name, samples in found.items()}
    publish(
        Findings(
            benchmark="plan_search_time",
            headline=f"a plan for 100 layers on 1,024 devices in {seconds[ONE_KIND].median:.2f} s, "
            f"on two kinds of them in {seconds[TWO_KINDS].median:.2f} s",
            columns=("cluster", "estimates", "seconds (quartiles)"),
            rows=tuple((name, f"{counts[name]:,}", f"{seconds[name]}") for name in CLUSTERS),
            numbers={"one_kind_seconds": seconds[ONE_KIND].median, "two_kinds_seconds": seconds[TWO_KINDS].median},
            spec={"layers": 100, "devices": 1024, "rounds": rounds},
            samples={"seconds": found},
        )
    )


if __name__ == "__main__":
    main()
