"""How many edges of a gang's ring cross racks and blocks, against random placement, on a three-level Clos?

864 hosts as 3 blocks of 48 racks of 6, the dimensions of a published production network. Gangs of 8 to 256 hosts are
placed on a cluster whose hosts are taken at random, 0, 30 or 60 % of them; the ring runs over the ranks in order.

Ceiling: a ring of n hosts leaves each rack of 6 once, so n / 6 crossings of 63.7 for n = 64: 83 % less than random.

Run: python benchmarks/scheduler_topology.py [--quick] [--rounds 100]
"""

import numpy as np

from mainspring.cluster.schedule.topology import Shape, Topology, arrange, build_topology, crossings, rank_nodes
from mainspring.spec import Machine
from measure import Findings, parse_options, publish

BLOCKS, RACKS, HOSTS = 3, 48, 6
SIZES, BUSY = (8, 16, 32, 64, 128, 256), (0.0, 0.3, 0.6)
BLOCK, RACK = 1, 2


def build() -> Topology:
    machines = [
        Machine(
            name=f"h{block}-{rack}-{host}",
            cpu_milli=1000,
            memory_mib=1024,
            devices=8,
            model="H100",
            domain=(f"b{block}", f"b{block}r{rack:02d}"),
        )
        for block in range(BLOCKS)
        for rack in range(RACKS)
        for host in range(HOSTS)
    ]
    return build_topology(machines, ("block", "rack"))


def trial(topology: Topology, draw: np.random.Generator, busy: float, size: int) -> tuple[int, int, int, int]:
    """Crossings of racks and blocks, at random and ours. Crossing blocks when one would hold the gang is an error."""
    free = (draw.random(len(topology.order)) >= busy).astype(np.int64)
    scattered = draw.choice(np.flatnonzero(free), size, replace=False)
    counts = arrange(topology, free, Shape(ranks=size))
    assert counts is not None
    ours = rank_nodes(topology, counts)
    blocks = crossings(topology, ours, BLOCK)
    one_holds = np.bincount(topology.domain[BLOCK], weights=free).max() >= size
    assert not (one_holds and blocks), f"{size} hosts cross blocks and one block would hold them"
    return (
        crossings(topology, scattered, RACK),
        crossings(topology, scattered, BLOCK),
        crossings(topology, ours, RACK),
        blocks,
    )


def main() -> None:
    options = parse_options(__doc__, rounds=100)
    rounds = 5 if options.quick else options.rounds
    topology, draw = build(), np.random.default_rng(0)
    rows, numbers, samples = [], {}, {}
    for busy in BUSY:
        total = np.zeros(4)
        for size in SIZES:
            found = np.array([trial(topology, draw, busy, size) for _ in range(rounds)])
            random_racks, random_blocks, racks, blocks = found.mean(axis=0)
            total += found.mean(axis=0)
            less = 100 * (racks / random_racks - 1)
            numbers[f"busy{100 * busy:.0f}_hosts{size}_percent"] = less
            samples[f"{busy:g}/{size}"] = found.mean(axis=0).tolist()
            rows.append(
                (
                    f"{100 * busy:.0f} %",
                    str(size),
                    f"{random_racks:.1f}",
                    f"{racks:.1f}",
                    f"{less:.0f} %",
                    f"{random_blocks:.1f}",
                    f"{blocks:.1f}",
                )
            )
        numbers[f"busy{100 * busy:.0f}_percent"] = 100 * (total[2] / total[0] - 1)
    publish(
        Findings(
            benchmark="scheduler_topology",
            headline=f"a ring of 64 hosts crosses racks {-numbers['busy0_hosts64_percent']:.0f} % less often than at "
            f"random when idle, {-numbers['busy60_hosts64_percent']:.0f} % less at 60 % occupancy",
            columns=("busy", "hosts", "racks, random", "racks, ours", "change", "blocks, random", "blocks, ours"),
            rows=tuple(rows),
            numbers=numbers,
            spec={"hosts": BLOCKS * RACKS * HOSTS, "rounds": rounds},
            samples=samples,
        ),
        packages=("numpy",),
    )


if __name__ == "__main__":
    main()
