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
ASKED = {0.0: "-80 %", 0.3: "", 0.6: "-65 %"}
BLOCK, RACK = 1, 2
COLUMNS = (
    "racks, ours against random",
    "racks, random",
    "racks, ours",
    "racks, fewest possible",
    "blocks, random",
    "blocks, ours",
    "of these, one had room",
)


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


def trial(topology: Topology, draw: np.random.Generator, busy: float, size: int) -> tuple[int, ...]:
    """Crossings of racks and blocks, at random and ours; the fewest of racks that free hosts allow; and of blocks when
    one would have held the gang."""
    free = (draw.random(len(topology.order)) >= busy).astype(np.int64)
    scattered = draw.choice(np.flatnonzero(free), size, replace=False)
    counts = arrange(topology, free, Shape(ranks=size))
    assert counts is not None
    ours = rank_nodes(topology, counts)
    blocks = crossings(topology, ours, BLOCK)
    fullest = np.sort(np.bincount(topology.domain[RACK], weights=free))[::-1]
    racks = 1 + int(np.searchsorted(np.cumsum(fullest), size))
    one_holds = np.bincount(topology.domain[BLOCK], weights=free).max() >= size
    return (
        crossings(topology, scattered, RACK),
        crossings(topology, scattered, BLOCK),
        crossings(topology, ours, RACK),
        blocks,
        racks if racks > 1 else 0,
        blocks if one_holds else 0,
    )


def _change(mean: np.ndarray) -> float:
    """Crossings of racks, ours against random, in percent."""
    return 100 * (mean[2] / mean[0] - 1)


def _row(mean: np.ndarray) -> tuple[str, ...]:
    random_racks, random_blocks, racks, blocks, fewest, needless = mean
    numbers = (random_racks, racks, fewest, random_blocks, blocks, needless)
    return f"{_change(mean):.0f} %", *(f"{number:.1f}" for number in numbers)


def main() -> None:
    options = parse_options(__doc__, rounds=100)
    rounds = 5 if options.quick else options.rounds
    topology, draw = build(), np.random.default_rng(0)
    rows, numbers, samples, needless = [], {}, {}, 0
    for busy in BUSY:
        means = []
        for size in SIZES:
            found = np.array([trial(topology, draw, busy, size) for _ in range(rounds)])
            means.append(found.mean(axis=0))
            needless += int(found[:, -1].sum())
            samples[f"{busy:g}/{size}"] = means[-1].tolist()
            numbers[f"busy{100 * busy:.0f}_hosts{size}_percent"] = _change(means[-1])
            rows.append((f"{100 * busy:.0f} %", str(size), *_row(means[-1]), ""))
        every = np.mean(means, axis=0)
        numbers[f"busy{100 * busy:.0f}_percent"] = _change(every)
        rows.append((f"{100 * busy:.0f} %", "all", *_row(every), ASKED[busy]))
    numbers["needless_block_crossings"] = needless
    publish(
        Findings(
            benchmark="scheduler_topology",
            headline=f"rings cross racks {-numbers['busy0_percent']:.0f} % less often than at random when idle, "
            f"{-numbers['busy60_percent']:.0f} % less at 60 % occupancy, and blocks {needless} times although one "
            "had room",
            columns=("busy", "hosts", *COLUMNS, "asked"),
            rows=tuple(rows),
            numbers=numbers,
            spec={"hosts": BLOCKS * RACKS * HOSTS, "rounds": rounds},
            samples=samples,
        ),
        packages=("numpy",),
    )


if __name__ == "__main__":
    main()
