"""Does the planner find what trying everything finds, in every case of a grid of small ones?

A case is a number of devices from 1 to 16, of one kind or of two whose speed is 3:1, a model of 1 to 12 blocks, dense
or with four experts a layer, memory that holds it all or only parts of it, and a network of 50 GB/s or of half a GB/s,
always with eight sequences a step. Everything is every mesh, micro-batch, recomputation, schedule, ZeRO stage, sharing
of the devices and cut into stages that may run; left out is only what the amount of its work rules out. Where nothing
fits, both must say so. Micro-batches stay whole: whether they go in copies is decided after the rest. All of it takes
more than an hour; `--variants` draws so many of the eight cases for each number of devices, of kinds and of blocks,
and of these `--every` takes one in so many.

Ceiling: equality in every case, to nine digits.

Run: python benchmarks/plan_brute_force.py [--quick] [--jobs 2] [--variants 8] [--every 1]
"""

import itertools
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from random import Random

from rich.console import Console
from rich.progress import track

from mainspring.plan.limits import EVERYTHING
from mainspring.plan.search import FREE, search
from mainspring.plan.space import Space
from mainspring.spec import Cluster, ModelSpec, TrainConfig
from mainspring.testing.exhaustive import fastest_by_brute_force
from mainspring.testing.machines import GIB, build_cluster, build_device, build_model
from measure import Findings, parse_options, publish

TIE = 1e-9
STATE_BYTES = 16  # of a parameter: itself, its gradient and Adam's two moments
MOST_DEVICES, MOST_BLOCKS, BATCH = 16, 12, 8
VARIANTS = tuple(itertools.product((0, 4), (False, True), (False, True)))


@dataclass(frozen=True, slots=True)
class Case:
    """One question to the planner."""

    devices: int
    kinds: int
    blocks: int
    experts: int
    tight: bool
    slow: bool

    def model(self) -> ModelSpec:
        """Layers between an embedding and a head; of one or two blocks layers alone."""
        layers = self.blocks if self.blocks < 3 else self.blocks - 2
        made = build_model(layers=layers, hidden=512, experts=self.experts)
        return made if self.blocks > 2 else replace(made, blocks=made.blocks[1:2], chain=layers > 1)

    def cluster(self) -> Cluster:
        """The slower half of the devices, if there are two kinds, has a third of the speed and half of the memory."""
        need = STATE_BYTES * self.model().params
        room = int(0.45 * need) + GIB // 64 if self.tight else 64 * GIB
        fast = build_device("fast", memory_bytes=room)
        slow = build_device("slow", memory_bytes=room // 2, fp32_flops_per_s=7e12, memory_bytes_per_s=3.3e11)
        counts = (self.devices,) if self.kinds == 1 else (self.devices - self.devices // 2, self.devices // 2)
        kinds = [(device, *seats(count)) for device, count in zip((fast, slow), counts, strict=False)]
        return build_cluster(*kinds, link_gbps=100, network_gbps=0.5 if self.slow else 50)


def seats(count: int) -> tuple[int, int]:
    """Devices on each node, eight at most, and nodes."""
    each = max(n for n in range(1, 9) if count % n == 0)
    return each, count // each


def cases(variants: int) -> Iterator[Case]:
    """The grid, with so many variants of each point; which ones changes from point to point."""
    counts = itertools.product(range(1, MOST_DEVICES + 1), (1, 2), range(1, MOST_BLOCKS + 1))
    points = [each for each in counts if each[0] >= each[1]]
    for number, point in enumerate(points):
        for variant in Random(number).sample(VARIANTS, variants):
            yield Case(*point, *variant)


def answers(case: Case) -> tuple[float, float, float]:
    """Seconds of a step that the planner and that brute force find, infinite for none, and how long both took."""
    started = time.process_time()
    model, cluster = case.model(), case.cluster()
    config = TrainConfig(steps=1, global_batch=BATCH, seq_len=1024)
    expected = fastest_by_brute_force(model, cluster, config)
    space = Space(model, cluster, config, hints=FREE, limits=EVERYTHING, ranks=None)
    best = search(space, "time").best
    return (best.time.step_s if best else math.inf), expected, time.process_time() - started


def equal(found: float, expected: float) -> bool:
    """Whether two answers are the same."""
    return found == expected or abs(found / expected - 1) < TIE


def main() -> None:
    options = parse_options(__doc__, jobs=2, variants=8, every=1)
    grid = list(cases(options.variants))
    chosen = grid[:: 997 if options.quick else options.every]
    found, wrong = [], []
    with ProcessPoolExecutor(options.jobs) as pool:
        answered = track(pool.map(answers, chosen), "cases", total=len(chosen), console=Console(stderr=True))
        for case, (step_s, expected, seconds) in zip(chosen, answered, strict=True):
            found.append((expected, seconds))
            if not equal(step_s, expected):
                wrong.append(case)
                print(f"{case}: the planner found {step_s:.9g} s, trying everything {expected:.9g} s", flush=True)
    unfit = sum(math.isinf(expected) for expected, _ in found)

    def line(name: str, part: list[Case]) -> tuple[str, ...]:
        bad = sum(case in part for case in wrong)
        return name, str(len(part)), str(len(part) - bad), str(bad)

    parts = {
        "one kind of device, dense": [c for c in chosen if c.kinds == 1 and not c.experts],
        "one kind of device, experts": [c for c in chosen if c.kinds == 1 and c.experts],
        "two kinds, dense": [c for c in chosen if c.kinds == 2 and not c.experts],
        "two kinds, experts": [c for c in chosen if c.kinds == 2 and c.experts],
        "all": chosen,
    }
    publish(
        Findings(
            benchmark="plan_brute_force",
            headline=f"{len(chosen) - len(wrong):,} of {len(chosen):,} small cases are planned as well as by trying "
            f"everything; in {unfit:,} of them nothing fits",
            columns=("cases", "number", "equal", "different"),
            rows=tuple(line(name, part) for name, part in parts.items()),
            numbers={
                "cases": len(chosen),
                "different": len(wrong),
                "refused": unfit,
                "seconds": sum(each[1] for each in found),
            },
            spec={
                "devices": MOST_DEVICES,
                "blocks": MOST_BLOCKS,
                "batch": BATCH,
                "variants": options.variants,
                "every": options.every,
            },
            samples={"different": [asdict(case) for case in wrong]},
        )
    )


if __name__ == "__main__":
    main()
