"""What one choice of mesh, micro-batch, recomputation, schedule and sharding costs in bytes and seconds.

The communication is what `train` performs. Replicas reduce whole gradients once a step. ZeRO-1 and ZeRO-2 scatter
once and gather once a step; ZeRO-3 gathers twice and scatters once for each micro-batch; shards are then reduced
across the replicas outside. Accelerators hide part of it behind arithmetic: scattering behind the backward it belongs
to, gathering behind the forward. A host CPU hides nothing: its cores do both.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mainspring.plan import blocks, network
from mainspring.plan.blocks import Cut, Rank, Rings
from mainspring.plan.layout import HOST, Layout, even_count, fastest_counts
from mainspring.plan.limits import refusal
from mainspring.plan.memory import USABLE, logits_bytes, rank_memory, stage_memory
from mainspring.plan.pipeline import StageTimes, in_flight, least_s, stage_ranks
from mainspring.plan.simulate import simulated_s
from mainspring.plan.slices import Load, Slice, Spent, Sync, sync_rings
from mainspring.plan.stack import HOSTED, TORCH, Stack
from mainspring.spec import MemoryEstimate, Mesh, ModelSpec, Schedule, TimeEstimate, Zero


@dataclass(frozen=True, slots=True)
class Choice:
    """One point of the search space. `cuts[i]` is the first unit of stage `i`, and the last entry ends the last."""

    mesh: Mesh
    cut: Cut
    zero: Zero
    schedule: Schedule
    cuts: tuple[int, ...]

    @property
    def chunks(self) -> int:
        """Stages of each pipeline rank."""
        return (len(self.cuts) - 1) // self.mesh.pp


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a choice costs on a layout.

    `shares` has `(count, extra)` for each column: micro-batches of every replica, and how many run one more.
    `spent[c][s]` are the seconds of column c in stage s; `memory[p]` the bytes of pipeline rank p on its fullest
    column, of which it may fill `usable_bytes[p]`; `stage_memory[s]` its part for stage s.
    """

    choice: Choice
    layout: Layout
    shares: tuple[tuple[int, int], ...]
    spent: tuple[tuple[Spent, ...], ...]
    memory: tuple[MemoryEstimate, ...]
    stage_memory: tuple[MemoryEstimate, ...]
    usable_bytes: tuple[int, ...]
    time: TimeEstimate

    @property
    def counts(self) -> tuple[int, ...]:
        """Micro-batches of each replica."""
        found: list[int] = []
        for column, (count, extra) in zip(self.layout.columns, self.shares, strict=True):
            found += [count + 1] * extra + [count] * (column.replicas - extra)
        return tuple(found)

    @property
    def tightest(self) -> int:
        """The pipeline rank with least to spare."""
        spare = [usable - m.total_bytes for m, usable in zip(self.memory, self.usable_bytes, strict=True)]
        return spare.index(min(spare))

    @property
    def fits(self) -> bool:
        """Whether every rank stays within what it may use."""
        at = self.tightest
        return self.memory[at].total_bytes <= self.usable_bytes[at]


class Line:
    """A pipeline with its stages: what all ways to spread its replicas' state share.

    `shares` has `(count, extra)` for each column, `most` the micro-batches of its busiest replica; `bound_s` is a time
    that no order of the passes beats. Its stages fit with up to `room_for` bytes for the state of a parameter, and with
    `bytes_too_many` no cut does.
    """

    __slots__ = (
        "_ends_s",
        "_loads",
        "_times",
        "bound_s",
        "bytes_too_many",
        "choice",
        "grid",
        "layout",
        "most",
        "places",
        "room_for",
        "shares",
        "spent",
    )

    def __init__(
        self,
        choice: Choice,
        layout: Layout,
        grid: tuple[tuple[Slice, ...], ...],
        spent: tuple[tuple[Spent, ...], ...],
        shares: tuple[tuple[int, int], ...],
    ) -> None:
        self.choice, self.layout, self.grid, self.spent, self.shares = choice, layout, grid, spent, shares
        self.places = _places(choice)
        self.most = [count + (extra > 0) for count, extra in shares]
        self._times = [[each.times for each in column] for column in spent]
        self.bound_s = max(_bound_s(choice, column, n) for column, n in zip(self._times, self.most, strict=True))
        self._ends_s: list[float] | None = None
        self._loads: list[list[Load]] | None = None
        self.room_for: float | None = None
        self.bytes_too_many = math.inf

    @property
    def ends_s(self) -> list[float]:
        """When each column has run its last pass."""
        if self._ends_s is None:
            pairs = zip(self._times, self.most, strict=True)
            self._ends_s = [pipeline_s(self.choice, column, count) for column, count in pairs]
        return self._ends_s

    @property
    def loads(self) -> list[list[Load]]:
        """What each pipeline rank of each column holds."""
        if self._loads is None:
            cuts = self.choice.cuts
            ranges: list[list[tuple[int, int]]] = [[] for _ in range(self.choice.mesh.pp)]
            for stage, place in enumerate(self.places):
                ranges[place].append((cuts[stage], cuts[stage + 1]))
            self._loads = [[part.load(mine) for part, mine in zip(parts, ranges, strict=True)] for parts in self.grid]
        return self._loads


class Estimator:
    """Estimates choices for one model and batch under one software stack; shared parts are worked out once."""

    def __init__(
        self, model: ModelSpec, *, global_batch: int, memory_share: float = USABLE, stack: Stack = TORCH
    ) -> None:
        self.model = model
        self.batch = global_batch
        self.memory_share = memory_share
        self._stack = stack
        self._slices: dict[tuple[Cut, Rank, int], Slice] = {}
        self._rings: dict[tuple[network.Fabric, int, int, int], Rings] = {}
        self._syncs: dict[tuple[network.Fabric, Mesh], Sync] = {}
        self._last: tuple[Cut, Layout, tuple[tuple[Slice, ...], ...]] | None = None

    def __call__(self, choice: Choice, layout: Layout) -> Estimate | None:
        """Bytes and seconds of `choice`; None when it cannot run or the batch cannot be shared this way."""
        line = self.line(choice, layout)
        return None if line is None else self.arranged(line, choice.mesh, choice.zero)

    def line(self, choice: Choice, layout: Layout) -> Line | None:
        """The pipeline of `choice`, whatever its ZeRO stage; None when it cannot run."""
        total, rest = divmod(self.batch, choice.cut.rows)
        if rest or total < sum(column.replicas for column in layout.columns):
            return None
        if len(layout.columns) == 1:
            each = even_count(layout.columns[0].replicas, total)
            if each is None or _refused(choice, ((each, 0),), zero=0):
                return None
        grid = self.slices(choice.cut, layout)
        spent = self._spent(choice, layout, grid, None)
        shares = _shares(layout, choice, spent, total)
        if shares is None or _refused(choice, shares, zero=0):
            return None
        return Line(choice, layout, grid, spent, shares)

    def arranged(self, line: Line, mesh: Mesh, zero: Zero, *, beat_s: float = math.inf) -> Estimate | None:
        """`line` with its replicas as `mesh` has them and state spread as `zero` says.

        None when that cannot run, or no order of the passes could beat `beat_s`.
        """
        layout = line.layout
        choice = Choice(mesh=mesh, cut=line.choice.cut, zero=zero, schedule=line.choice.schedule, cuts=line.choice.cuts)
        if line.bound_s >= beat_s or _refused(choice, line.shares, zero=zero):
            return None
        sync = self.sync(layout, mesh)
        if zero == 3:
            line = Line(choice, layout, line.grid, self._spent(choice, layout, line.grid, sync), line.shares)
        once = _once_s(choice, line, sync=sync, hidden=self.hidden(layout))
        if line.bound_s + sum(once) >= beat_s:
            return None
        stages, ranks, usable = self._memory(choice, line)
        fits = all(memory.total_bytes <= room for memory, room in zip(ranks, usable, strict=True))
        if fits and max(line.ends_s) + sum(once) >= beat_s:
            return None
        return Estimate(
            choice=choice,
            layout=layout,
            shares=line.shares,
            spent=line.spent,
            memory=ranks,
            stage_memory=stages,
            usable_bytes=usable,
            time=_time(line, once, line.ends_s if fits else None),
        )

    def crammed(self, line: Line, each: float) -> bool:
        """Whether activations, and `each` bytes for a parameter, leave some rank of `line` without room."""
        if line.room_for is None:
            line.room_for = min(room / max(weighed, 1.0) for weighed, room in self._rooms(line))
        return each > line.room_for

    def _rooms(self, line: Line) -> Iterator[tuple[float, float]]:
        """The parameters of each rank of a pipeline, weighed, and the bytes that activations leave for them."""
        choice, mesh = line.choice, line.choice.mesh
        held = in_flight(choice.schedule, pp=mesh.pp, chunks=choice.chunks, microbatches=max(line.most))
        rooms = [float(self.usable_bytes(line.layout, place)) for place in range(mesh.pp)]
        weighed = [0.0] * mesh.pp
        for stage, place in enumerate(line.places):
            sums = line.grid[0][place].kept_bytes
            rooms[place] -= held[place][stage // mesh.pp] * (sums[choice.cuts[stage + 1]] - sums[choice.cuts[stage]])
            weighed[place] += line.grid[0][place].weighed_part(choice.cuts[stage], choice.cuts[stage + 1])
        yield from zip(weighed, rooms, strict=True)

    def usable_bytes(self, layout: Layout, place: int) -> int:
        """What pipeline rank `place` may fill, on its smallest device."""
        return int(self.memory_share * min(column.ranks[place].memory_bytes for column in layout.columns))

    def thinnest(self, mesh: Mesh) -> float:
        """Bytes of a trained parameter's state when all replicas share it."""
        return sum(self._state_sizes()) / (mesh.replicas * mesh.cp)

    def state_bytes(self, mesh: Mesh, zero: Zero, line: Line) -> float:
        """Bytes of a trained parameter's state and of its copy, without what is gathered for a moment.

        A frozen one takes `weight_bytes` of them, the share by which slices weigh it, or more: weights are spread last.
        """
        stack, cut = self._stack, line.choice.cut
        parts = [mesh.shards if zero >= stage else 1 for stage in (3, 2 if max(line.most) == 1 else 3, 1)]
        each = sum(size / part for size, part in zip(self._state_sizes(), parts, strict=True))
        return each + (stack.copy_bytes if cut.precision == "bf16" and cut.recompute != "full" else 0)

    def _state_sizes(self) -> tuple[float, float, float]:
        stack = self._stack
        return stack.weight_bytes, stack.gradient_bytes, stack.master_bytes + self.model.optimizer_bytes

    def logits_bytes(self, part: Slice) -> int:
        """Bytes of the scores of one micro-batch."""
        return logits_bytes(self.model, part)

    def slices(self, cut: Cut, layout: Layout) -> tuple[tuple[Slice, ...], ...]:
        """The model under `cut` for each column and pipeline rank of `layout`."""
        if self._last is None or self._last[0] is not cut or self._last[1] is not layout:
            columns = [(self.slice_of(cut, rank, layout.fabric) for rank in column.ranks) for column in layout.columns]
            self._last = cut, layout, tuple(tuple(parts) for parts in columns)
        return self._last[2]

    def slice_of(self, cut: Cut, rank: Rank, fabric: network.Fabric) -> Slice:
        """The model under `cut` on one kind of rank."""
        within = (fabric, cut.tp, cut.cp, cut.ep)
        rings = self._rings.get(within)
        if rings is None:
            made = blocks.inner_rings(fabric, Mesh(tp=cut.tp, cp=cut.cp, ep=cut.ep))
            rings = self._rings[within] = next((known for known in self._rings.values() if known == made), made)
        key = (cut, rank, id(rings))
        found = self._slices.get(key)
        if found is None:
            on_host = rank.device.vendor == HOST and self._stack is TORCH
            stack = HOSTED if on_host else self._stack
            found = self._slices[key] = Slice(self.model, cut, rank=rank, rings=rings, stack=stack)
        return found

    def sync(self, layout: Layout, mesh: Mesh) -> Sync:
        """The groups that gradients and shards of `mesh` travel in."""
        key = (layout.fabric, mesh)
        if key not in self._syncs:
            self._syncs[key] = sync_rings(layout.fabric, mesh)
        return self._syncs[key]

    def hidden(self, layout: Layout) -> float:
        """How much of the arithmetic collectives may hide behind."""
        on_host = any(rank.device.vendor == HOST for rank in layout.distinct)
        return 0.0 if on_host else self._stack.hidden

    def _spent(
        self, choice: Choice, layout: Layout, grid: tuple[tuple[Slice, ...], ...], sync: Sync | None
    ) -> tuple[tuple[Spent, ...], ...]:
        """Seconds of one micro-batch in each stage of each column; with `sync`, gathering its parameters too."""
        mesh, ends, hidden = choice.mesh, choice.cuts, self.hidden(layout)
        places = _places(choice)
        found: list[tuple[Spent, ...]] = []
        for parts in grid:
            send_s = self._send_s(parts[0], layout, mesh) if mesh.pp > 1 else 0.0
            found.append(
                tuple(
                    parts[place].stage(
                        ends[s],
                        ends[s + 1],
                        sync=sync,
                        hidden=hidden,
                        send_s=send_s,
                        handover_s=parts[place].handover_s() if mesh.pp > 1 else 0.0,
                    )
                    for s, place in enumerate(places)
                )
            )
        return tuple(found)

    def _send_s(self, part: Slice, layout: Layout, mesh: Mesh) -> float:
        fabric = layout.fabric
        # Where several stages share a node some hand on to another one all the same, and the slowest sets the pace.
        link = fabric.inner if mesh.world <= fabric.per_node else fabric.outer
        divided = mesh.tp if self._stack.divides_sends or part.cut.sequence_parallel else 1
        return network.send_s(link, blocks.widening(part.cut, self._stack) * part.stream_bytes / divided)

    def _memory(
        self, choice: Choice, line: Line
    ) -> tuple[tuple[MemoryEstimate, ...], tuple[MemoryEstimate, ...], tuple[int, ...]]:
        """Bytes of each stage, of each pipeline rank, and what each rank may use."""
        pp, microbatches = choice.mesh.pp, max(line.most)
        held = in_flight(choice.schedule, pp=pp, chunks=choice.chunks, microbatches=microbatches)
        stages: list[MemoryEstimate] = []
        by_rank: list[list[MemoryEstimate]] = [[] for _ in range(pp)]
        for stage, place in enumerate(line.places):
            found = stage_memory(
                self.model,
                line.grid[0][place],
                first=choice.cuts[stage],
                end=choice.cuts[stage + 1],
                zero=choice.zero,
                shards=choice.mesh.shards if choice.zero else 1,
                microbatches=microbatches,
                held=held[place][stage // pp],
            )
            stages.append(found)
            by_rank[place].append(found)
        usable = tuple(self.usable_bytes(line.layout, place) for place in range(pp))
        runtime = self._stack.runtime_bytes
        return tuple(stages), tuple(rank_memory(each, runtime_bytes=runtime) for each in by_rank), usable


def _places(choice: Choice) -> tuple[int, ...]:
    """The pipeline rank of each stage."""
    return stage_ranks(len(choice.cuts) - 1, choice.mesh.pp, choice.schedule)


def _refused(choice: Choice, shares: Sequence[tuple[int, int]], *, zero: Zero) -> str:
    counts = {count + more for count, extra in shares for more in ((0, 1) if extra else (0,))}
    return refusal(
        choice.mesh,
        zero=zero,
        schedule=choice.schedule,
        chunks=choice.chunks,
        recompute=choice.cut.recompute != "none",
        microbatches=tuple(counts),
    )


def _once_s(choice: Choice, line: Line, *, sync: Sync, hidden: float) -> tuple[float, float]:
    """Seconds of exchanging gradients and parameters once a step, and of the optimiser, on the slowest rank."""
    shards = choice.mesh.shards if choice.zero else 1
    after = optimizer = 0.0
    for parts, loads in zip(line.grid, line.loads, strict=True):
        for part, load in dict.fromkeys(zip(parts, loads, strict=True)):
            count = max(line.most)
            after = max(after, part.step_sync_s(load, zero=choice.zero, sync=sync, hidden=hidden, count=count))
            optimizer = max(optimizer, part.update_s((load.trained + load.trained_experts) / shards))
    return after, optimizer


def _time(line: Line, once: tuple[float, float], ends: list[float] | None) -> TimeEstimate:
    """The slowest column's step, by where it goes; of what does not fit, the least that it could take."""
    ends = ends or [line.bound_s]
    slowest = ends.index(max(ends))
    compute, exposed = _mean_work(line.choice, line.spent[slowest], line.most[slowest])
    after, optimizer = once
    return TimeEstimate(
        compute_s=compute,
        communication_s=exposed + after,
        bubble_s=max(0.0, ends[slowest] - compute - exposed),
        optimizer_s=optimizer,
    )


def pipeline_s(choice: Choice, times: Sequence[StageTimes], microbatches: int) -> float:
    """Seconds of a column's forwards and backwards of a step."""
    pp = choice.mesh.pp
    if pp == 1:
        return microbatches * sum(each.forward_s + each.backward_s for each in times)
    found = simulated_s(times, pp=pp, schedule=choice.schedule, microbatches=microbatches)
    return max(found, _bound_s(choice, times, microbatches))


def _bound_s(choice: Choice, times: Sequence[StageTimes], microbatches: int) -> float:
    """A step of a column that no order beats."""
    return least_s(times, pp=choice.mesh.pp, schedule=choice.schedule, microbatches=microbatches)


def _mean_work(choice: Choice, spent: Sequence[Spent], microbatches: int) -> tuple[float, float]:
    """Seconds that a rank of the column computes and that it waits for the network, on average over its ranks."""
    pp = choice.mesh.pp
    compute = sum(each.forward_s + each.backward_s for each in spent)
    exposed = sum(each.forward_network_s + each.backward_network_s for each in spent)
    exposed += 2 * sum(each.send_s for each in spent[:-1])
    return microbatches * compute / pp, microbatches * exposed / pp


def _shares(
    layout: Layout, choice: Choice, spent: Sequence[Sequence[Spent]], total: int
) -> tuple[tuple[int, int], ...] | None:
    """Micro-batches for each column: evenly on one kind of replica, by speed on several."""
    if len(layout.columns) == 1:
        each = even_count(layout.columns[0].replicas, total)
        return None if each is None else ((each, 0),)
    speeds = [(_pace_s(choice, times), c.replicas) for times, c in zip(spent, layout.columns, strict=True)]
    return fastest_counts(speeds, total)


def _pace_s(choice: Choice, spent: Sequence[Spent]) -> float:
    """Seconds between two micro-batches of a full pipeline: its slowest rank's work."""
    times = [each.times for each in spent]
    return max(_bound_s(choice, times, 2) - _bound_s(choice, times, 1), 1e-12)
