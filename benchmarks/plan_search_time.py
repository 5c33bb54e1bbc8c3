"""How long does the planner think, on one kind of device and on two?

Ceiling: none but Python's; the goal is 2 s for 100 layers on 1,024 devices. Run: python benchmarks/plan_search_time.py
"""

import json
import platform
import statistics
import sys
import time

from mainspring.plan.search import estimates, plan_training
from mainspring.spec import TrainConfig
from mainspring.testing.machines import build_cluster, build_device, build_model

FAST = build_device("fast", memory_bytes=80 << 30, bf16_flops_per_s=9.9e14, memory_bytes_per_s=3.3e12)
SLOW = build_device("slow", memory_bytes=40 << 30, bf16_flops_per_s=3.1e14, memory_bytes_per_s=1.5e12)
CONFIG = TrainConfig(steps=10, global_batch=2048, seq_len=2048, precision="bf16")


def main(repeats: int) -> None:
    model = build_model(layers=100, hidden=4096, vocab=32000)
    clusters = {
        "1,024 of one kind": build_cluster((FAST, 8, 128)),
        "512 of each of two kinds": build_cluster((FAST, 8, 64), (SLOW, 8, 64)),
    }
    samples: dict[str, list[float]] = {name: [] for name in clusters}
    for _ in range(repeats):
        for name, cluster in clusters.items():
            start = time.perf_counter()
            plan_training(model, cluster, CONFIG)
            samples[name].append(time.perf_counter() - start)
    for name, cluster in clusters.items():
        count = len(estimates(model, cluster, CONFIG))
        print(f"{name:28} {statistics.median(samples[name]):8.3f} s for {count} estimates")
    print(json.dumps({"python": platform.python_version(), "machine": platform.machine(), "samples_s": samples}))


if __name__ == "__main__":
    main(1 if "--quick" in sys.argv else 5)
