"""What no plan on a layout beats: least seconds and least bytes, known before stages are cut or schedules run."""

import math
from collections.abc import Iterator, Sequence

from mainspring.plan.blocks import Cut
from mainspring.plan.estimate import Estimator
from mainspring.plan.layout import Kinds, Layout
from mainspring.plan.network import Fabric
from mainspring.plan.partition import ROUNDED
from mainspring.plan.pipeline import least_held
from mainspring.plan.slices import Slice
from mainspring.spec import Mesh, Schedule, Zero

LEAST_S = 1e-15  # of a block, which could be nothing


class Bounds:
    """Bounds of what `estimator` would find; a search leaves out whatever they rule out."""

    def __init__(self, estimator: Estimator) -> None:
        self.estimator = estimator
        blocks = estimator.model.blocks
        self._repeated = max(range(len(blocks)), key=lambda at: (blocks[at].count, blocks[at].flops_per_token))
        self._longest_s: dict[tuple[Cut, Kinds, Fabric], float] = {}

    def floor_s(self, cut: Cut, layout: Layout) -> float:
        """A step that nothing on these ranks beats: all their work, balanced to a block and never waiting."""
        pace, fabric = 0.0, layout.fabric
        for column in layout.columns:
            key = (cut, column.kinds, fabric)
            longest = self._longest_s.get(key)
            if longest is None:
                parts = [(self.estimator.slice_of(cut, rank, fabric), count) for rank, count in column.kinds]
                longest = self._longest_s[key] = self.slowest_stage_s(parts)
            pace += column.replicas / longest
        return self.estimator.batch / cut.rows / pace

    def slowest_stage_s(self, parts: Sequence[tuple[Slice, int]]) -> float:
        """Seconds of a micro-batch that some stage, or all of a rank, takes at least, of so many of each kind."""
        rate, stages = 0.0, 0
        for part, count in parts:
            rate += count / part.all_s
            stages += count
        longest, at = 1 / rate, self._repeated
        blocks = self.estimator.model.blocks[at].count if stages > 1 else 0
        while True:
            held, more = 0, math.inf
            for part, count in parts:
                seconds = max(part.blocks_s[at], LEAST_S)
                whole = int(longest / seconds * ROUNDED)
                held += count * whole
                more = min(more, (whole + 1) * seconds)
            if held >= blocks:
                return longest
            longest = more

    def slowest_s(self, cut: Cut, layout: Layout) -> float:
        """Seconds of one micro-batch on the slowest kind of rank, had it the whole model."""
        kinds = (rank for column in layout.columns for rank, _ in column.kinds)
        return max(self.estimator.slice_of(cut, rank, layout.fabric).all_s for rank in kinds)

    def exchange_floors_s(
        self, cut: Cut, layout: Layout, arrangements: Sequence[tuple[Mesh, tuple[Zero, ...]]]
    ) -> Iterator[tuple[float, Mesh, Zero]]:
        """Seconds of exchanging state, and of the optimiser, that no stages avoid: some rank has a mean share or more.

        All arithmetic of a micro-batch may hide it.
        """
        hidden = self.estimator.hidden(layout)
        parts = [self.estimator.slice_of(cut, rank, layout.fabric) for rank in layout.distinct]
        pp = arrangements[0][0].pp if arrangements else 1
        loads = [(part, part.mean_load(pp)) for part in parts]
        for mesh, zeros in arrangements:
            sync = self.estimator.sync(layout, mesh)
            counts = self.estimator.batch / cut.rows / mesh.replicas if len(layout.columns) == 1 else 1
            exchanged = [part.sharding_s(load, sync=sync) if zeros != (0,) else (0.0, 0.0) for part, load in loads]
            for zero in zeros:
                least = math.inf
                for (part, load), (gather, reduce) in zip(loads, exchanged, strict=True):
                    shards = mesh.shards if zero else 1
                    seconds = part.update_s((load.trained + load.trained_experts) / shards)
                    if zero == 3:
                        seconds += counts * max(0.0, gather - hidden * load.forward_s)
                        seconds += counts * max(0.0, gather + reduce - hidden * load.backward_s)
                    elif zero:
                        seconds += part.once_s(load, zero=zero, exchanged=(gather, reduce), hidden=hidden)
                    else:
                        seconds += part.step_sync_s(load, zero=0, sync=sync, hidden=hidden)
                    least = min(least, seconds)
                yield least, mesh, zero

    def hopeless(self, cut: Cut, layout: Layout, mesh: Mesh) -> bool:
        """Whether not even an even share of all state and of one micro-batch's activations fits."""
        part = self.estimator.slice_of(cut, layout.columns[0].ranks[0], layout.fabric)
        state = self.estimator.thinnest(mesh) * part.weighed[-1]
        need = (state + part.kept_bytes[-1]) / mesh.pp
        room = max(rank.memory_bytes for column in layout.columns for rank, _ in column.kinds)
        return need > self.estimator.memory_share * room

    def overfull(self, cut: Cut, layout: Layout, mesh: Mesh, schedule: Schedule) -> bool:
        """Whether the repeated blocks alone do not fit into a pipeline, their state shared by all replicas.

        What counts is how many of them each rank has room for while it holds what the schedule makes it hold.
        """
        part = self.estimator.slice_of(cut, layout.columns[0].ranks[0], layout.fabric)
        first = sum(block.count for block in self.estimator.model.blocks[: self._repeated])
        state = self.estimator.thinnest(mesh) * (part.weighed[first + 1] - part.weighed[first])
        kept = part.kept_bytes[first + 1] - part.kept_bytes[first]
        fewest = max(1, self.estimator.batch // cut.rows // sum(column.replicas for column in layout.columns))
        held = least_held(schedule, pp=mesh.pp, microbatches=fewest)
        left = self.estimator.model.blocks[self._repeated].count
        for place, count in enumerate(held):
            left -= int(self.estimator.usable_bytes(layout, place) / max(1.0, state + count * kept) * ROUNDED)
        return left > 0
