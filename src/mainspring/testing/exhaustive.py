"""The best plan found the slow way: every legal combination on a cluster of one kind, written without the search."""

import itertools
from collections.abc import Iterator

from mainspring.plan.blocks import Cut, Rank
from mainspring.plan.estimate import Choice, Estimator
from mainspring.plan.layout import Column, Layout
from mainspring.plan.network import Fabric
from mainspring.plan.space import aligned
from mainspring.spec import Cluster, Hints, Mesh, ModelSpec, Recompute, Schedule, TrainConfig, Zero

ZEROS: tuple[Zero, ...] = (0, 1, 2, 3)
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")
SCHEDULES: list[tuple[Schedule, int]] = [
    ("1f1b", 1),
    ("gpipe", 1),
    *(("interleaved", chunks) for chunks in (2, 3, 4, 6, 8)),
    ("zero_bubble", 1),
    ("zero_bubble", 2),
    ("zbv", 2),
    ("dualpipev", 2),
]
ONE_STAGE: list[tuple[Schedule, int]] = [("1f1b", 1)]
FREE = Hints()


def fastest_by_brute_force(model: ModelSpec, cluster: Cluster, config: TrainConfig, *, hints: Hints = FREE) -> float:
    """The least step time of anything that fits; infinite if nothing does.

    Of `hints` the degrees and the recomputation are kept to.
    """
    estimator = Estimator(model, global_batch=config.global_batch)
    units = sum(block.count for block in model.blocks)
    per_node, nodes = len(cluster.nodes[0].devices), len(cluster.nodes)
    device, link = cluster.nodes[0].devices[0], cluster.nodes[0].link
    rank = Rank(device=device, share=1.0, memory_bytes=device.memory_bytes)
    best = float("inf")
    degrees = range(1, per_node * nodes + 1)
    for pp, dp, fsdp, cp, tp in itertools.product(degrees, repeat=5):
        mesh = Mesh(pp=pp, dp=dp, fsdp=fsdp, cp=cp, tp=tp)
        if any(getattr(hints, axis) not in (0, getattr(mesh, axis)) for axis in ("pp", "dp", "fsdp", "cp", "tp")):
            continue
        if mesh.world > per_node * nodes or config.global_batch % mesh.replicas or pp > units:
            continue
        if tp & (tp - 1) or tp > per_node or cp & (cp - 1) or (config.seq_len // cp < 512 and cp > 1):
            continue
        if any(size % tp for block in model.blocks if block.count > 1 for _, size in block.divisions):
            continue
        seat = [n for n in range(1, per_node + 1) if mesh.world % n == 0 and n * nodes >= mesh.world and n % tp == 0]
        if not seat:
            continue
        used = max(n for n in seat)
        if not aligned(mesh, used):
            continue
        fabric = Fabric(per_node=used, inner=link, outer=cluster.link)
        layout = Layout(columns=(Column(replicas=mesh.replicas, ranks=(rank,) * pp),), fabric=fabric)
        for choice in _choices(mesh, config, units, hints):
            found = estimator(choice, layout)
            if found is not None and found.fits:
                best = min(best, found.time.step_s)
    return best


def _choices(mesh: Mesh, config: TrainConfig, units: int, hints: Hints) -> Iterator[Choice]:
    """Everything that may be done on `mesh`."""
    replicate = ("embedding", "head") if 1000 % mesh.tp else ()
    all_rows = (config.microbatch,) if config.microbatch else range(1, config.global_batch + 1)
    for rows in (r for r in all_rows if config.global_batch % (r * mesh.replicas) == 0):
        for recompute, zero in itertools.product((hints.recompute,) if hints.recompute else RECOMPUTES, ZEROS):
            if (zero > 0) != (mesh.shards > 1):
                continue
            cut = Cut(
                rows=rows,
                seq_len=config.seq_len,
                precision=config.precision,
                recompute=recompute,
                tp=mesh.tp,
                cp=mesh.cp,
                sequence_parallel=mesh.tp > 1,
                replicate=replicate,
            )
            for schedule, chunks in SCHEDULES if mesh.pp > 1 else ONE_STAGE:
                for inner in itertools.combinations(range(1, units), mesh.pp * chunks - 1):
                    yield Choice(mesh=mesh, cut=cut, zero=zero, schedule=schedule, cuts=(0, *inner, units))
