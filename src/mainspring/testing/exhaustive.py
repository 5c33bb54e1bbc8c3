"""The best plan found the slow way: every legal combination on a small cluster, written without the search.

Passed over is only what the amount of its work rules out: a mesh whose devices would need as long as the best so far if
all were busy all the time, a cut that gives one rank that much to do, and stages whose passes no order gets done in
less. `everything=True` passes over nothing.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from mainspring.plan.blocks import Cut, Rank
from mainspring.plan.estimate import Choice, Estimator
from mainspring.plan.layout import Column, Layout
from mainspring.plan.network import Fabric
from mainspring.plan.pipeline import stage_ranks
from mainspring.plan.space import aligned
from mainspring.spec import Cluster, Device, Hints, Link, Mesh, ModelSpec, Recompute, Schedule, TrainConfig, Zero

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
LEAST_TOKENS = 512  # of a sequence on each rank of `cp`


# One object for all that are alike: the estimator knows them by identity.
_cut, _fabric = cache(Cut), cache(Fabric)


@cache
def _rank(device: Device) -> Rank:
    return Rank(device=device, share=1.0, memory_bytes=device.memory_bytes)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Equal nodes of equal devices."""

    device: Device
    link: Link
    per_node: int
    nodes: int

    @property
    def rank(self) -> Rank:
        return _rank(self.device)

    def seat(self, ranks: int, tp: int) -> int | None:
        """How many of `ranks` lie on each node, as many as can."""
        fit = (n for n in range(self.per_node, 0, -1) if ranks % n == 0 and n * self.nodes >= ranks and n % tp == 0)
        return next(fit, None)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a rank computes and where; `mesh.dp` has all replicas but those of `ep`."""

    floor_s: float
    layout: Layout
    mesh: Mesh
    cut: Cut


def fastest_by_brute_force(
    model: ModelSpec, cluster: Cluster, config: TrainConfig, *, hints: Hints = FREE, everything: bool = False
) -> float:
    """The least step time of anything that fits; infinite if nothing does.

    Of `hints` the degrees and the recomputation are kept to. The nodes of a kind of device must be alike.
    """
    estimator = Estimator(model, global_batch=config.global_batch)
    units = sum(block.count for block in model.blocks)
    best = math.inf
    for frame in sorted(_frames(estimator, cluster, config, hints), key=lambda frame: frame.floor_s):
        if frame.floor_s >= best and not everything:
            break
        arranged = list(_arranged(frame, hints))
        for schedule, cuts in _stages(frame.mesh.pp, units):
            if not everything and _busiest_s(estimator, frame, schedule, cuts, config) >= best:
                continue
            line = estimator.line(Choice(frame.mesh, frame.cut, 0, schedule, cuts), frame.layout)
            for mesh, zero in arranged if line else ():
                assert line is not None
                found = estimator.arranged(line, mesh, zero, beat_s=math.inf if everything else best)
                if found is not None and found.fits:
                    best = min(best, found.time.step_s)
    return best


def _frames(estimator: Estimator, cluster: Cluster, config: TrainConfig, hints: Hints) -> Iterator[_Frame]:
    model, kinds = estimator.model, _kinds(cluster)
    room = sum(kind.per_node * kind.nodes for kind in kinds)
    degrees = range(1, room + 1)
    powers = [1 << power for power in range(room.bit_length())]
    stages = range(1, min(room, sum(block.count for block in model.blocks)) + 1) if model.chain else (1,)
    for pp, replicas, cp, ep, tp in itertools.product(stages, degrees, powers, powers, powers):
        mesh = Mesh(pp=pp, dp=max(1, replicas // ep), cp=cp, ep=ep, tp=tp)
        if mesh.world != pp * replicas * cp * tp or mesh.world > room or not _legal(model, config, mesh):
            continue
        if any(getattr(hints, axis) not in (0, getattr(mesh, axis)) for axis in ("pp", "cp", "ep", "tp")):
            continue
        for layout in _layouts(kinds, cluster, mesh):
            for cut in _cuts(model, config, mesh, hints):
                pace = 0.0
                for column, parts in zip(layout.columns, estimator.slices(cut, layout), strict=True):
                    pace += column.replicas * sum(1 / part.all_s for part in parts)
                yield _Frame(config.global_batch / cut.rows / pace, layout, mesh, cut)


def _kinds(cluster: Cluster) -> list[_Kind]:
    alike: dict[Device, list[int]] = {}
    links = {node.devices[0]: node.link for node in cluster.nodes}
    for node in cluster.nodes:
        alike.setdefault(node.devices[0], []).append(len(node.devices))
    return [_Kind(device, links[device], counts[0], len(counts)) for device, counts in alike.items()]


def _legal(model: ModelSpec, config: TrainConfig, mesh: Mesh) -> bool:
    """Whether the degrees within a replica divide what they must."""
    layers = [block for block in model.blocks if block.name == "layer"]
    if any(size % mesh.tp for block in layers for _, size in block.divisions):
        return False
    if mesh.cp > 1 and (config.seq_len % mesh.cp or config.seq_len // mesh.cp < LEAST_TOKENS):
        return False
    return mesh.ep == 1 or all(block.experts and block.experts % mesh.ep == 0 for block in layers)


def _layouts(kinds: Sequence[_Kind], cluster: Cluster, mesh: Mesh) -> Iterator[Layout]:
    """One kind; or replicas on several, the same everywhere in each; or runs of pipeline ranks on several."""
    pp, replicas, inner = mesh.pp, mesh.replicas, mesh.cp * mesh.tp
    for kind in kinds:
        yield from _layout(cluster, mesh, [(kind, pp * replicas * inner)], (Column(replicas, (kind.rank,) * pp),))
    for first, second in itertools.permutations(kinds, 2):
        ranks = first.rank, second.rank
        for n in range(1, pp):
            taken = [(first, n * replicas * inner), (second, (pp - n) * replicas * inner)]
            row = (ranks[0],) * n + (ranks[1],) * (pp - n)
            yield from _layout(cluster, mesh, taken, (Column(replicas, row),))
    for first, second in itertools.combinations(kinds, 2):
        for n in range(1, replicas):
            taken = [(first, pp * n * inner), (second, pp * (replicas - n) * inner)]
            columns = Column(n, (first.rank,) * pp), Column(replicas - n, (second.rank,) * pp)
            yield from _layout(cluster, mesh, taken, columns)


def _layout(
    cluster: Cluster, mesh: Mesh, taken: Sequence[tuple[_Kind, int]], columns: tuple[Column, ...]
) -> Iterator[Layout]:
    """`columns` with the slowest links of the kinds taken, if there is a seat for the ranks of each."""
    seats = [kind.seat(ranks, mesh.tp) for kind, ranks in taken]
    per_node = min(seat or 0 for seat in seats)
    if per_node:
        links = [kind.link for kind, _ in taken]
        inner = replace(
            links[0],
            bytes_per_s=min(link.bytes_per_s for link in links),
            latency_s=max(link.latency_s for link in links),
        )
        yield Layout(columns=columns, fabric=_fabric(per_node=per_node, inner=inner, outer=cluster.link))


def _cuts(model: ModelSpec, config: TrainConfig, mesh: Mesh, hints: Hints) -> Iterator[Cut]:
    """Micro-batches and recomputation."""
    ends = [block for block in model.blocks if block.name != "layer"]
    whole = tuple(block.name for block in ends if any(size % mesh.tp for _, size in block.divisions))
    all_rows = (config.microbatch,) if config.microbatch else range(1, config.global_batch + 1)
    for rows in (r for r in all_rows if config.global_batch % r == 0):
        for recompute in (hints.recompute,) if hints.recompute else RECOMPUTES:
            yield _cut(
                rows=rows,
                seq_len=config.seq_len,
                precision=config.precision,
                recompute=recompute,
                tp=mesh.tp,
                cp=mesh.cp,
                ep=mesh.ep,
                sequence_parallel=mesh.tp > 1 and model.chain,
                replicate=whole,
            )


def _arranged(frame: _Frame, hints: Hints) -> Iterator[tuple[Mesh, Zero]]:
    """How the replicas divide into those that shard and those that do not, and what is sharded."""
    free = frame.mesh.dp
    for fsdp in (n for n in range(1, free + 1) if free % n == 0):
        mesh = replace(frame.mesh, dp=free // fsdp, fsdp=fsdp)
        asked = all(getattr(hints, axis) in (0, getattr(mesh, axis)) for axis in ("dp", "fsdp"))
        for zero in ZEROS if asked and aligned(mesh, frame.layout.fabric.per_node) else ():
            if (zero > 0) == (mesh.shards > 1):
                yield mesh, zero


def _stages(pp: int, units: int) -> Iterator[tuple[Schedule, tuple[int, ...]]]:
    """Every schedule with every cut into its stages."""
    for schedule, chunks in SCHEDULES if pp > 1 else ONE_STAGE:
        for inner in itertools.combinations(range(1, units), pp * chunks - 1):
            yield schedule, (0, *inner, units)


def _busiest_s(
    estimator: Estimator, frame: _Frame, schedule: Schedule, cuts: tuple[int, ...], config: TrainConfig
) -> float:
    """Seconds of a step in which the busiest rank of each column never waits."""
    pp, pace = frame.mesh.pp, 0.0
    places = stage_ranks(len(cuts) - 1, pp, schedule)
    for column, parts in zip(frame.layout.columns, estimator.slices(frame.cut, frame.layout), strict=True):
        work = [0.0] * pp
        for place, (first, end) in zip(places, itertools.pairwise(cuts), strict=True):
            work[place] += parts[place].both_s[end] - parts[place].both_s[first]
        pace += column.replicas / max(work)
    return config.global_batch / frame.cut.rows / pace
