"""The least memory that any choice needs, and what would hold a model that no choice of a search fits.

Branch and bound like the search itself, for bytes instead of seconds: micro-batches as small or as few as can be, state
spread as far as can be, and of each pipeline the stages whose fullest rank lacks least. Each remedy that is named has
been tried: more devices, larger ones, or less work at once.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from mainspring.plan import partition
from mainspring.plan.bounds import Bounds
from mainspring.plan.estimate import Choice, Estimate, Estimator
from mainspring.plan.layout import HOST
from mainspring.plan.memory import stage_memory
from mainspring.plan.offers import Offer
from mainspring.plan.outcome import lacking
from mainspring.plan.pipeline import SPLIT, in_flight, stage_ranks
from mainspring.plan.refine import Refiner
from mainspring.plan.slices import Slice
from mainspring.plan.space import Frame, Space, divisors
from mainspring.spec import MemoryEstimate, Mesh, TrainConfig, Zero
from mainspring.spec.plan import readable_bytes

MOST_RANKS = 1 << 16
PATIENCE = 3  # times twice as many devices without that any needs less, after which more are not tried
FEW_CUTS = 100  # into several stages a rank, all of which are tried: only so few units can be shared out better so
DIGITS = 3  # of a size that is named


@dataclass(frozen=True, slots=True)
class Smallest:
    """The choice that lacks least memory, or has most to spare."""

    estimate: Estimate
    offer: Offer


@dataclass(frozen=True, slots=True)
class _Enough:
    """What would hold the model: so many devices, with this batch, leaving out some of what was asked for."""

    ranks: int
    global_batch: int
    without: str


def estimator_of(space: Space) -> Estimator:
    """An estimator for what `space` asks."""
    return Estimator(space.model, global_batch=space.config.global_batch, memory_share=space.hints.memory_share)


def smallest(space: Space, *, any_that_fits: bool = False) -> Smallest | None:
    """The choice of all that the search may make that needs least memory; None where nothing may run.

    With `any_that_fits` the first that is found to fit will do.
    """
    floor = _Floor(space)
    found: Smallest | None = None
    for least, _, frame, mesh, zero in sorted(floor.frames()):
        if found is not None and least >= lacking(found.estimate):
            break
        for estimate in floor.estimates(frame, mesh, zero):
            if found is None or lacking(estimate) < lacking(found.estimate):
                found = Smallest(estimate, frame.offer)
                if any_that_fits and estimate.fits:
                    return found
    return found


class _Floor:
    """Bytes of one space, worked out once for all layouts: they depend on neither links nor speeds."""

    def __init__(self, space: Space) -> None:
        self._space, self._estimator = space, estimator_of(space)
        self._refiner = Refiner(space, Bounds(self._estimator))
        self._units = space.unit_count
        self._least: dict[object, tuple[int, float, int]] = {}

    def frames(self) -> Iterator[tuple[float, int, Frame, Mesh, Zero]]:
        """Frames with state spread as far as can be, and bytes that their fullest rank lacks at the least."""
        space, number = self._space, itertools.count()
        # What keeps least is left out only where it may not run.
        recomputes = space.recomputes if space.hints.schedule in SPLIT else space.recomputes[-1:]
        rows = space.config.microbatch or 1
        for frame in space.frames():
            arrangements = space.arrangements(frame)
            at_once = space.config.global_batch // frame.mesh.replicas
            if not arrangements or frame.cut.recompute not in recomputes or frame.cut.rows not in (rows, at_once):
                continue
            mesh, zeros = max(arrangements, key=lambda each: each[0].shards)
            room = int(space.hints.memory_share * max(rank.memory_bytes for rank in frame.layout.distinct))
            for zero in zeros:
                # All at once leaves ZeRO-2 with no whole gradients; else micro-batches are best as small as can be.
                if frame.cut.rows == rows or zero == 2:
                    yield self._need(frame, mesh, zero) - room, next(number), frame, mesh, zero

    def _need(self, frame: Frame, mesh: Mesh, zero: Zero) -> float:
        """Bytes that some rank needs at least: a mean share of all state, or the largest block alone."""
        rank = frame.layout.columns[0].ranks[0]
        once = self._space.config.global_batch // frame.cut.rows // mesh.replicas == 1
        key = (frame.cut, rank.device.vendor == HOST, mesh.shards, zero, once)
        if key not in self._least:
            part = self._estimator.slice_of(frame.cut, rank, frame.layout.fabric)

            def held(first: int, end: int) -> MemoryEstimate:
                return stage_memory(
                    self._space.model,
                    part,
                    first=first,
                    end=end,
                    zero=zero,
                    shards=mesh.shards if zero else 1,
                    microbatches=1 if once else 2,
                    held=1,
                )

            whole = held(0, self._units)
            state = whole.params_bytes + whole.grads_bytes + whole.optimizer_bytes
            ends = itertools.accumulate(block.count for block in self._space.model.blocks)
            alone = max(held(end - 1, end).total_bytes for end in ends)
            self._least[key] = whole.total_bytes, state + part.kept_bytes[-1], alone
        whole_bytes, shared, alone = self._least[key]
        return whole_bytes if mesh.pp == 1 else max(shared / mesh.pp, alone)

    def estimates(self, frame: Frame, mesh: Mesh, zero: Zero) -> Iterator[Estimate]:
        """The schedules of a frame, each with the stages that lack least."""
        ways = list(self._space.schedules(frame))
        if ("1f1b", 1) in ways:  # it holds no more than the others with one stage a rank, anywhere
            ways = [way for way in ways if way not in (("gpipe", 1), ("zero_bubble", 1))]
        for schedule, chunks in ways:
            if schedule in SPLIT and (zero == 3 or frame.cut.recompute != "none"):
                continue
            choice = Choice(mesh, frame.cut, zero, schedule, partition.even_cut(self._units, mesh.pp * chunks))
            line = self._estimator.line(choice, frame.layout)
            if line is None:
                continue
            if mesh.pp > 1:
                choice = replace(choice, cuts=self._roomiest(frame, choice, most=max(line.most)))
            estimate = self._estimator(choice, frame.layout)
            if estimate is not None:
                yield estimate

    def _roomiest(self, frame: Frame, choice: Choice, *, most: int) -> tuple[int, ...]:
        """The stages whose fullest rank lacks least; with several on a rank, of those that the search tries."""
        pp, chunks, stages = choice.mesh.pp, choice.chunks, len(choice.cuts) - 1
        held = in_flight(choice.schedule, pp=pp, chunks=chunks, microbatches=most)
        parts = self._estimator.slices(frame.cut, frame.layout)[0]
        rooms = [self._estimator.usable_bytes(frame.layout, place) for place in range(pp)]
        shards = choice.mesh.shards if choice.zero else 1

        @cache
        def need(part: Slice, in_use: int, first: int, end: int) -> int:
            return stage_memory(
                self._space.model,
                part,
                first=first,
                end=end,
                zero=choice.zero,
                shards=shards,
                microbatches=most,
                held=in_use,
            ).total_bytes

        if chunks == 1:

            def lacks(place: int, first: int, end: int) -> int:
                return need(parts[place], held[place][0], first, end) - rooms[place]

            return roomiest([partial(lacks, place) for place in range(pp)], self._units, first=choice.cuts)
        places = stage_ranks(stages, pp, choice.schedule)

        def fullest(cuts: tuple[int, ...]) -> int:
            lacking_bytes = [-room for room in rooms]
            for stage, place in enumerate(places):
                in_use = held[place][stage // pp]
                lacking_bytes[place] += need(parts[place], in_use, cuts[stage], cuts[stage + 1])
            return max(lacking_bytes)

        if partition.ways(self._units, stages) <= FEW_CUTS:
            inner = itertools.combinations(range(1, self._units), stages - 1)
            return min(((0, *ends, self._units) for ends in inner), key=fullest)
        return min((choice.cuts, self._refiner.best_cut(frame, choice.schedule, stages)), key=fullest)


def roomiest(lacks: Sequence[Callable[[int, int], int]], units: int, *, first: tuple[int, ...]) -> tuple[int, ...]:
    """The cut whose largest `lacks[stage](first, end)` is least, which grows with the stage; `first` is any cut.

    Filling stages from the front within a limit finds a cut if there is one; where none is, the least that stood in the
    way is what every cut has to exceed.
    """

    def most(cuts: tuple[int, ...]) -> int:
        return max(lack(a, b) for lack, (a, b) in zip(lacks, itertools.pairwise(cuts), strict=True))

    best, highest = first, most(first)
    lowest = max(lacks[0](0, 1), lacks[-1](units - 1, units))
    while lowest < highest:
        cuts, blocked = _within(lacks, units, (lowest + highest) // 2)
        if cuts is None:
            lowest = blocked
        else:
            best, highest = cuts, most(cuts)
    return best


def _within(lacks: Sequence[Callable[[int, int], int]], units: int, limit: int) -> tuple[tuple[int, ...] | None, int]:
    """Stages from the front, each as long as `limit` allows, or None; and the least above it that was in the way."""
    cuts, blocked = [0], 1 << 62
    for stage, lack in enumerate(lacks):
        low, high = cuts[-1], units - (len(lacks) - stage - 1)
        if lack(low, high) <= limit:
            cuts.append(high)
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if lack(cuts[-1], middle) <= limit else (low, middle)
        if low == cuts[-1]:  # too large for this stage alone: one before may have to leave it something smaller
            return _within_any(lacks, units, limit)
        blocked = min(blocked, lack(cuts[-1], high))
        cuts.append(low)
    return (tuple(cuts) if cuts[-1] == units else None), blocked


def _within_any(
    lacks: Sequence[Callable[[int, int], int]], units: int, limit: int
) -> tuple[tuple[int, ...] | None, int]:
    """The same where stages from the front are not enough: every end that each stage can have, and whence."""
    blocked, since = 1 << 62, list[dict[int, int]]()
    starts = [0]
    for stage, lack in enumerate(lacks):
        reached: dict[int, int] = {}
        for end in range(starts[0] + 1, units - (len(lacks) - stage - 1) + 1):
            start = max(at for at in starts if at < end)
            size = lack(start, end)
            if size <= limit:
                reached[end] = start
            else:
                blocked = min(blocked, size)
        since.append(reached)
        starts = sorted(reached)
        if not starts:
            return None, blocked
    if units not in since[-1]:
        return None, blocked
    cuts = [units]
    for reached in reversed(since):
        cuts.append(reached[cuts[-1]])
    return tuple(reversed(cuts)), blocked


def remedies(space: Space, least: Estimate) -> str:
    """What would hold the model, in words: more such devices, larger ones, or less to do at once."""
    ways = [_larger(space, least), *_fewer_rows(space)]
    enough, floor_bytes = _more(space, least)
    if enough is None:
        ways += _shorter(space)
        said = f"sharding further does not help: what cannot be sharded needs {readable_bytes(floor_bytes)}; "
    else:
        batch = enough.global_batch if enough.global_batch > space.config.global_batch else 0
        ways.insert(
            0, f"{enough.ranks} such devices{f' with a global_batch of {batch}' if batch else ''}{enough.without}"
        )
        said = ""
    return f"{said}{', or '.join(ways)}{',' if len(ways) > 1 else ''} would hold it"


def _larger(space: Space, least: Estimate) -> str:
    """As many devices as `least` is on, with as much memory each as it needs."""
    rank = least.layout.columns[0].ranks[least.tightest]
    need = max(memory.total_bytes for memory in least.memory) / space.hints.memory_share
    devices = max(1, round(least.choice.mesh.world * rank.share))
    return f"{devices} with {_at_least(need / rank.share)} each"


def _more(space: Space, least: Estimate) -> tuple[_Enough | None, int]:
    """The least power of two times as many such devices that hold it, and the least that one needs on any number.

    What was asked for is kept to if that is possible; what says how replicas and stages are divided is given up else.
    """
    hints, at = space.hints, least.tightest
    rank = min((column.ranks[at] for column in least.layout.columns), key=lambda rank: rank.memory_bytes)
    node = next(n for n in space.cluster.nodes if rank.device in n.devices)
    devices = (rank.device,) * node.devices.count(rank.device)
    node, each = replace(node, devices=devices, health=()), round(len(devices) / rank.share)
    floor_bytes, fixed = least.memory[at].total_bytes, [a for a in ("pp", "dp", "fsdp") if getattr(hints, a)]
    free = replace(hints, pp=0, dp=0, fsdp=0)
    for asked, without in ((hints, ""), (free, f" and no {', '.join(fixed)} asked for"))[: 2 if fixed else 1]:
        ranks, in_vain = least.choice.mesh.world, 0
        while (ranks := 2 * ranks) <= MOST_RANKS and in_vain < PATIENCE:
            before, in_vain = floor_bytes, in_vain + 1
            cluster = replace(space.cluster, nodes=(node,) * -(-ranks // each))
            for config in _batches(space.config, ranks):
                tried = Space(space.model, cluster, config, hints=asked, limits=space.limits, ranks=ranks)
                found = smallest(tried, any_that_fits=True)
                if found is None:
                    continue
                floor_bytes = min(floor_bytes, found.estimate.memory[found.estimate.tightest].total_bytes)
                if found.estimate.fits:
                    return _Enough(max(1, round(ranks * rank.share)), config.global_batch, without), floor_bytes
            in_vain = 0 if floor_bytes < before else in_vain
    return None, floor_bytes


def _batches(config: TrainConfig, ranks: int) -> Iterator[TrainConfig]:
    """The batch as it is, and one that `ranks` can share."""
    yield config
    shared = math.lcm(config.global_batch, ranks * max(1, config.microbatch))
    if shared > config.global_batch:
        yield replace(config, global_batch=shared)


def _fewer_rows(space: Space) -> Iterator[str]:
    """The largest micro-batch below what was asked for with which the model fits."""
    for rows in reversed(divisors(space.config.microbatch or 1)[:-1]):
        if _fits(space, replace(space.config, microbatch=rows)):
            yield f"a microbatch of {rows}"
            return


def _shorter(space: Space) -> Iterator[str]:
    """The longest of sequences of a half, a quarter ... with which the model fits."""
    length = space.config.seq_len
    while (length := length // 2) >= 1:
        if _fits(space, replace(space.config, seq_len=length)):
            yield f"a seq_len of {length}"
            return


def _fits(space: Space, config: TrainConfig) -> bool:
    tried = Space(space.model, space.cluster, config, hints=space.hints, limits=space.limits, ranks=space.ranks)
    found = smallest(tried, any_that_fits=True)
    return found is not None and found.estimate.fits


def _at_least(size: float) -> str:
    """`size` in words, rounded up, so that as much is enough."""
    step = 1.0
    while size / step >= 1024:
        step *= 1024
    step *= 10 ** (math.floor(math.log10(max(1.0, size / step))) + 1 - DIGITS)
    return readable_bytes(math.ceil(size / step) * step)
