"""Made-up clusters and task lists of the shape that GPU clusters report, so that scheduling is tested without a trace.

Node kinds and the mix of whole, shared and several devices follow what was published of a production cluster of 1,213
nodes; the numbers are round and the draws are seeded.
"""

import csv
import random
from pathlib import Path

from mainspring.spec import Machine, Request

# count, cpu cores, memory GiB, devices, model
KINDS = ((55, 96, 384, 8, "G2"), (39, 104, 512, 2, "T4"), (13, 16, 120, 2, "P100"), (5, 32, 128, 4, "V100"))
# weight, cores, GiB, devices, thousandths
TASKS = (
    (30, 12, 48, 1, 1000),
    (18, 6, 24, 1, 1000),
    (8, 20, 64, 1, 1000),
    (14, 6, 20, 1, 460),
    (12, 4, 16, 1, 300),
    (8, 8, 32, 1, 700),
    (6, 32, 64, 0, 0),
    (6, 8, 16, 0, 0),
    (2, 24, 96, 2, 1000),
    (1, 48, 192, 4, 1000),
    (1, 88, 320, 8, 1000),
)


def build_machines(nodes: int) -> tuple[Machine, ...]:
    """A cluster of so many nodes, kinds mixed as in `KINDS`."""
    kinds = [kind for kind in KINDS for _ in range(kind[0])]
    order = random.Random(0).sample(kinds, len(kinds))
    found = []
    for number in range(nodes):
        _, cores, gib, devices, model = order[number % len(order)]
        found.append(
            Machine(
                name=f"node-{number:05d}",
                cpu_milli=cores * 1000,
                memory_mib=gib * 1024,
                devices=devices,
                model=model,
            )
        )
    return tuple(found)


def build_requests(tasks: int, *, seed: int = 0, bound: float = 0.0) -> tuple[Request, ...]:
    """Requests drawn from `TASKS`; a share of `bound` of those with devices may use T4 alone."""
    draw = random.Random(seed)
    found = []
    for _, cores, gib, devices, milli in draw.choices(TASKS, [task[0] for task in TASKS], k=tasks):
        found.append(
            Request(
                cpu_milli=cores * 1000,
                memory_mib=gib * 1024,
                devices=devices,
                milli=milli or 1000,
                models=("T4",) if devices in (1, 2) and draw.random() < bound else (),
            )
        )
    return tuple(found)


def write_trace(folder: Path, *, nodes: int, tasks: int, bound: float = 0.0) -> tuple[Path, Path]:
    """A node list and a task list as CSV files, in openb's columns."""
    machines, requests = folder / "nodes.csv", folder / "pods.csv"
    with machines.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("sn", "cpu_milli", "memory_mib", "gpu", "model"))
        rows.writerows((m.name, m.cpu_milli, m.memory_mib, m.devices, m.model) for m in build_machines(nodes))
    with requests.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec"))
        for number, r in enumerate(build_requests(tasks, bound=bound)):
            milli = r.milli if r.devices else 0
            rows.writerow((f"task-{number}", r.cpu_milli, r.memory_mib, r.devices, milli, "|".join(r.models)))
    return machines, requests
