"""How long does the planner think, on one kind of device and on two?

Ceiling: none but Python's; the goal is 2 s for 100 layers on 1,024 devices and 10 s on 16,384. Seconds are of the
processor, so that a busy machine does not count.

Run: python benchmarks/plan_search_time.py [--quick] [--rounds 5]
"""

import time
from collections.abc import Callable

from mainspring.plan.limits import EVERYTHING
from mainspring.plan.search import plan_training
from mainspring.spec import Cluster, ModelSpec, TrainConfig
from mainspring.testing.machines import build_cluster, build_device, build_model
from measure import Findings, parse_options, publish, spread, take_turns

FAST = build_device("fast", memory_bytes=80 << 30, bf16_flops_per_s=9.9e14, memory_bytes_per_s=3.3e12)
SLOW = build_device("slow", memory_bytes=40 << 30, bf16_flops_per_s=3.1e14, memory_bytes_per_s=1.5e12)
CONFIG = TrainConfig(steps=10, global_batch=2048, seq_len=2048, precision="bf16")
FEW = TrainConfig(steps=10, global_batch=32, seq_len=2048, precision="bf16")
LINKS = {"link_gbps": 450.0, "network_gbps": 50.0}

ONE_KIND, TWO_KINDS, MANY = "1,024 of one kind", "512 of each of two kinds", "16,384 of one kind"


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


def main() -> None:
    options = parse_options(__doc__, rounds=5)
    rounds = 1 if options.quick else options.rounds
    model = build_model(layers=10 if options.quick else 100, hidden=4096, vocab=32000)
    config = FEW if options.quick else CONFIG
    arms = {name: planning(model, cluster, config) for name, cluster in clusters(quick=options.quick).items()}
    found = take_turns(arms, rounds=rounds)
    seconds = {name: spread(samples) for name, samples in found.items()}
    publish(
        Findings(
            benchmark="plan_search_time",
            headline=", ".join(f"{name} devices in {each.median:.2f} s" for name, each in seconds.items()),
            columns=("cluster", "seconds (quartiles)"),
            rows=tuple((name, f"{each}") for name, each in seconds.items()),
            numbers={name: each.median for name, each in seconds.items()},
            spec={"layers": 100, "rounds": rounds},
            samples={"seconds": found},
        )
    )


if __name__ == "__main__":
    main()
