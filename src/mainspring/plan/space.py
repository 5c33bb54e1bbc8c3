"""The search space, coarse to fine: where a mesh may lie, and how its replicas, state and schedule may be arranged.

A `Frame` fixes devices, micro-batches and the degrees that decide what a rank computes, and with them a time that no
refinement of it beats. `meshes` and `schedules` arrange what is left: how the replicas divide into `dp` and `fsdp`, the
ZeRO stage, schedule and stages. Meshes are node-aligned: each axis either fits into a node or starts on whole nodes.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache

from mainspring.plan import offers
from mainspring.plan.blocks import Cut, units
from mainspring.plan.bounds import Bounds
from mainspring.plan.layout import Layout
from mainspring.plan.limits import MANY_CHUNKS, Limits
from mainspring.plan.offers import Kind, Offer
from mainspring.plan.partition import FEW_UNITS
from mainspring.plan.pipeline import SPLIT
from mainspring.spec import (
    AXES,
    V_SHAPED,
    Cluster,
    Hints,
    Mesh,
    ModelSpec,
    Recompute,
    Schedule,
    SpecError,
    TrainConfig,
    Zero,
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A layout, the degrees within a replica (`mesh` has `dp` for all replicas but `ep`), and micro-batches."""

    offer: Offer
    layout: Layout
    mesh: Mesh
    cut: Cut


@dataclass(frozen=True, slots=True)
class Inner:
    """Degrees within a replica's stage."""

    tp: int
    cp: int
    ep: int
    sequence_parallel: bool
    replicate: tuple[str, ...]

    @property
    def ranks(self) -> int:
        """Ranks of a stage that hold one replica's part; `ep` counts as replicas."""
        return self.tp * self.cp


@dataclass(frozen=True, slots=True)
class Place:
    """Where a mesh may lie, before micro-batches are chosen."""

    offer: Offer
    layout: Layout
    mesh: Mesh
    inner: Inner


@cache
def divisors(number: int) -> tuple[int, ...]:
    """All divisors, ascending."""
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return tuple(sorted({*low, *(number // d for d in low)}))


MOST_MIXED = 64  # pipeline ranks on several kinds of device
LEAST_TOKENS = 512  # of a sequence on each rank of `cp`, unless more ranks are asked for


class Space:
    """What may be tried for one request."""

    def __init__(
        self,
        model: ModelSpec,
        cluster: Cluster,
        config: TrainConfig,
        *,
        hints: Hints,
        limits: Limits,
        ranks: int | None,
    ) -> None:
        self.model, self.cluster, self.config = model, cluster, config
        self.hints, self.limits, self.ranks = hints, limits, ranks
        self.kinds = offers.kinds(cluster)
        self.unit_count = len(units(model))
        self.recomputes = tuple(self._recompute())
        self._known: dict[object, Cut] = {}
        self._arrangements: dict[object, tuple[tuple[Mesh, tuple[Zero, ...]], ...]] = {}

    def ordered(self, bounds: Bounds, rate: Callable[[Layout, Mesh], float]) -> Iterator[tuple[float, Frame]]:
        """Frames in the order of the least they could cost; those of a place are made when their turn comes."""
        queue: list[tuple[float, int, Place | Frame]] = []
        for number, place in enumerate(self._places()):
            cuts = self._cuts(place, every=False)
            floor_s = min((bounds.floor_s(cut, place.layout) for cut in cuts), default=math.inf)
            queue.append((floor_s * rate(place.layout, place.mesh), number, place))
        heapq.heapify(queue)
        number = len(queue)
        while queue:
            floor, _, top = heapq.heappop(queue)
            if isinstance(top, Frame):
                yield floor, top
                continue
            for cut in self._cuts(top, every=True):
                frame = Frame(offer=top.offer, layout=top.layout, mesh=top.mesh, cut=cut)
                cost = bounds.floor_s(cut, top.layout) * rate(top.layout, top.mesh)
                heapq.heappush(queue, (cost, number, frame))
                number += 1

    def frames(self) -> Iterator[Frame]:
        """Every frame, in no order."""
        for place in self._places():
            for cut in self._cuts(place, every=True):
                yield Frame(offer=place.offer, layout=place.layout, mesh=place.mesh, cut=cut)

    def _places(self) -> Iterator[Place]:
        for kind in self.kinds:
            yield from self._on((kind,))
        for mix in offers.mixtures(self.kinds):
            yield from self._on(mix)

    def _on(self, mix: Sequence[Kind]) -> Iterator[Place]:
        most = min(kind.most_per_node for kind in mix)
        for inner in self._inner(most):
            if self.hints.sequence_parallel and not inner.sequence_parallel:
                continue
            for pp in self._stage_counts(mixed=len(mix) > 1):
                for offer, replicas in self._offers(mix, pp, inner):
                    if replicas % inner.ep == 0:
                        mesh = Mesh(pp=pp, dp=replicas // inner.ep, cp=inner.cp, ep=inner.ep, tp=inner.tp)
                        layout = offer.layout(self.cluster, pp)
                        yield Place(offer=offer, layout=layout, mesh=mesh, inner=inner)

    def _inner(self, most_per_node: int) -> Iterator[Inner]:
        hints = self.hints
        for tp in self._degrees("tp", most_per_node):
            whole = tensor_parallel(self.model, tp, hints)
            if whole is None:
                continue
            for cp in self._degrees("cp", self.config.seq_len // LEAST_TOKENS):
                if cp > 1 and (self.config.seq_len % cp or self.model.unshared or not looks_along(self.model)):
                    continue
                for ep in self._degrees("ep", 1 << 10):
                    if ep > 1 and not self.divides_experts(ep):
                        continue
                    along = tp > 1 and self.model.chain and self.config.seq_len % (cp * tp) == 0
                    along = along and hints.sequence_parallel is not False and cuts_sequence(self.model, whole)
                    yield Inner(tp=tp, cp=cp, ep=ep, sequence_parallel=along, replicate=whole)

    def _degrees(self, axis: str, most: int) -> Iterator[int]:
        """Powers of two that `axis` may have, and what was asked for."""
        asked: int = getattr(self.hints, axis)
        if asked:
            yield asked
            return
        degree = 1
        if not self.needs(Mesh(), axis):
            yield degree
        if axis not in self.limits.axes:
            return
        while degree * 2 <= min(most, self.capacity()):
            degree *= 2
            yield degree

    def needs(self, mesh: Mesh, *axes: str) -> bool:
        """Whether what was asked for needs some of `axes` that `mesh` lacks; of all, if none are named."""
        wishes = {"pp": self.hints.schedule or self.hints.chunks > 1, "tp": self.hints.sequence_parallel}
        return any(wishes.get(axis) and getattr(mesh, axis) == 1 for axis in axes or wishes)

    def cuts_along(self) -> bool:
        """Whether some degrees that may be tried cut along the sequence what tensor parallelism leaves whole."""
        widest = max(kind.most_per_node for kind in self.kinds)
        return any(inner.sequence_parallel for inner in self._inner(widest))

    def capacity(self) -> int:
        """The most ranks the cluster can hold: one per accelerator, one per core of a host CPU."""
        return sum(kind.room for kind in self.kinds)

    def divides_experts(self, ep: int) -> bool:
        """Whether experts can be spread over `ep` ranks."""
        experts = [block.experts for block in self.model.blocks if block.experts]
        return bool(experts) and all(count % ep == 0 for count in experts)

    def _stage_counts(self, *, mixed: bool) -> Iterator[int]:
        """Pipeline ranks: any number, on several kinds of device a few of the large ones for a long model."""
        if self.hints.pp:
            yield self.hints.pp
            return
        if not self.needs(Mesh(), "pp"):
            yield 1
        if "pp" in self.limits.axes and self.model.chain:
            for pp in range(2, min(self.unit_count, self.capacity()) + 1):
                few = pp <= 8 or self.unit_count <= FEW_UNITS
                if not mixed or few or (pp % 8 == 0 and pp <= MOST_MIXED):
                    yield pp

    def _offers(self, mix: Sequence[Kind], pp: int, inner: Inner) -> Iterator[tuple[Offer, int]]:
        """Offers and the replicas on each."""
        if pp > self.unit_count:
            return
        cluster, batch = self.cluster, self.config.global_batch
        shape = {"pp": pp, "inner": inner.ranks, "step": inner.tp}
        if len(mix) > 1:
            most = min(batch, sum(kind.room for kind in mix) // (pp * inner.ranks))
            for offer in offers.by_replica(cluster, mix, most=most, **shape):
                if self._wanted(pp * sum(offer.replicas) * inner.ranks):
                    yield offer, sum(offer.replicas)
        for replicas in divisors(batch):
            world = pp * replicas * inner.ranks
            if world > self.capacity() or not self._wanted(world):
                continue
            if len(mix) == 1:
                for offer in offers.single(cluster, mix[0], replicas=replicas, **shape):
                    yield offer, replicas
            elif self.limits.mixed_stages and pp >= len(mix):
                for offer in offers.by_stage(cluster, mix, replicas=replicas, **shape):
                    yield offer, replicas

    def _wanted(self, world: int) -> bool:
        return self.ranks is None or self.ranks == world

    def _cuts(self, place: Place, *, every: bool) -> Iterator[Cut]:
        """Micro-batches and recomputation of a place; the cheapest only, unless `every`.

        A micro-batch takes some time however small it is, and more with its rows: a row is cheapest in the largest.
        """
        config, inner = self.config, place.inner
        rows_of = (config.microbatch,) if config.microbatch else divisors(config.global_batch)
        rows_of = [rows for rows in rows_of if rows * place.mesh.replicas <= config.global_batch]
        for rows in rows_of if every else rows_of[-1:]:
            for recompute in self.recomputes if every else self.recomputes[:1]:
                yield self._cut(rows, recompute, inner)

    def _cut(self, rows: int, recompute: Recompute, inner: Inner) -> Cut:
        key = (rows, recompute, inner.tp, inner.cp, inner.ep, inner.sequence_parallel, inner.replicate)
        if key not in self._known:
            self._known[key] = Cut(
                rows=rows,
                seq_len=self.config.seq_len,
                precision=self.config.precision,
                recompute=recompute,
                tp=inner.tp,
                sequence_parallel=inner.sequence_parallel,
                cp=inner.cp,
                ep=inner.ep,
                replicate=inner.replicate,
            )
        return self._known[key]

    def _recompute(self) -> Iterator[Recompute]:
        asked = self.hints.recompute
        for recompute in (asked,) if asked else self.limits.recompute:
            known = any(block.selective_bytes_per_token for block in self.model.blocks)
            if recompute != "selective" or known:
                yield recompute

    def meshes(self, frame: Frame) -> Iterator[tuple[Mesh, Zero]]:
        """How a frame's replicas divide into `dp` and `fsdp`, and what is spread over the latter."""
        for mesh, zeros in self.arrangements(frame):
            for zero in zeros:
                yield mesh, zero

    def arrangements(self, frame: Frame) -> tuple[tuple[Mesh, tuple[Zero, ...]], ...]:
        """The same, mesh by mesh; of frames that differ in their micro-batches alone they are the same objects."""
        key = (frame.mesh, frame.layout.fabric.per_node)
        if key not in self._arrangements:
            self._arrangements[key] = tuple(self._arranged(frame))
        return self._arrangements[key]

    def _arranged(self, frame: Frame) -> Iterator[tuple[Mesh, tuple[Zero, ...]]]:
        hints, free = self.hints, frame.mesh.dp
        for fsdp in divisors(free):
            dp = free // fsdp
            if (hints.fsdp and fsdp != hints.fsdp) or (hints.dp and dp != hints.dp):
                continue
            mesh = replace(frame.mesh, dp=dp, fsdp=fsdp)
            if not self.limits.allows(mesh) or not aligned(mesh, frame.layout.fabric.per_node):
                continue
            allowed: list[Zero] = [zero for zero in self.limits.zero if hints.zero in (None, zero)]
            zeros = tuple[Zero, ...](zero for zero in allowed if (zero > 0) == (mesh.shards > 1))
            if zeros:
                yield mesh, zeros

    def schedules(self, frame: Frame) -> Iterator[tuple[Schedule, int]]:
        """Schedules and how many stages each rank holds."""
        mesh = frame.mesh
        if mesh.pp == 1:
            yield "1f1b", 1
            return
        asked = self.hints.schedule
        count = self.config.global_batch // frame.cut.rows // mesh.replicas
        for schedule in (asked,) if asked else self.limits.schedules:
            if count < mesh.pp and schedule != "gpipe":
                continue
            for chunks in self.chunk_counts(schedule):
                if mesh.pp * chunks <= self.unit_count and self.hints.chunks in (0, chunks):
                    yield schedule, chunks

    def chunk_counts(self, schedule: Schedule | None) -> tuple[int, ...]:
        """How many stages a rank may hold under `schedule`, or under any."""
        if schedule is None:
            return tuple(sorted({count for each in self.limits.schedules for count in self.chunk_counts(each)}))
        if schedule in V_SHAPED:
            return (2,)
        if schedule == "interleaved":
            return MANY_CHUNKS
        return (1, 2) if schedule in SPLIT else (1,)


def aligned(mesh: Mesh, per_node: int) -> bool:
    """Whether each axis fits into nodes of `per_node` ranks or starts on whole ones."""
    stride = 1
    for axis in reversed(AXES):
        stride *= getattr(mesh, axis)
        if per_node % stride and stride % per_node:
            return False
    return True


ENDS = frozenset({"embedding", "head"})


def tensor_parallel(model: ModelSpec, tp: int, hints: Hints) -> tuple[str, ...] | None:
    """Names of blocks that stay whole under `tp`; None when it divides nothing, or not what it must.

    A block that occurs once and cannot be divided stays whole; a repeated one forbids the degree. Patterns that name no
    block mean parts of blocks, which the profile has left whole; they are passed on to whoever divides.
    """
    if tp == 1:
        return ()
    whole: list[str] = []
    divided = 0
    for block in model.blocks:
        uneven = [f"{name} {size}" for name, size in block.divisions if size % tp]
        if any(fnmatchcase(block.name, pattern) for pattern in hints.replicate):
            whole.append(block.name)
        elif not uneven and block.divisions:
            divided += block.name not in ENDS  # a vocabulary alone is not worth ranks that do the rest twice
        elif any(fnmatchcase(block.name, pattern) for pattern in hints.split):
            return None
        elif block.divisions:
            if block.count > 1:
                return None
            whole.append(block.name)
    names = [block.name for block in model.blocks]
    whole += [pattern for pattern in hints.replicate if not any(fnmatchcase(name, pattern) for name in names)]
    return tuple(dict.fromkeys(whole)) if divided else None


def cuts_sequence(model: ModelSpec, whole: Sequence[str]) -> bool:
    """Whether sequence parallelism changes nothing: blocks that are left `whole` might look along the sequence."""
    inner = [block for block in model.blocks if block.name not in ENDS]
    kept = (block for block in inner if any(fnmatchcase(block.name, pattern) for pattern in whole))
    return all(block.along_sequence for block in inner) and not any(block.divisions for block in kept)


def indivisible(model: ModelSpec, tp: int) -> SpecError:
    """Why `tensor_parallel` refuses a degree."""
    found = (f"{name} {size} of {b.name}" for b in model.blocks for name, size in b.divisions if size % tp)
    sizes = tuple(dict.fromkeys(found))
    if not sizes:
        return SpecError(
            f"no block of {model.name} can be divided by tensor parallelism",
            hint="its profile names no heads or widths; leave tp at 1",
        )
    common = [d for d in range(2, 65) if all(n % d == 0 for b in model.blocks if b.inner for _, n in b.divisions)]
    return SpecError(
        f"tp {tp} does not divide {', '.join(sizes)}",
        hint="degrees that do: " + (", ".join(map(str, common)) or "none"),
    )


def looks_along(model: ModelSpec) -> bool:
    """Whether a block of `model` is known to look along a sequence."""
    return any(block.kv_bytes_per_token for block in model.blocks)
