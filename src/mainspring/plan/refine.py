"""Stages for a frame: every cut that could be fast enough, or the one that is best by a dynamic programme.

The cuts of small models are enumerated depth first; a branch ends as soon as the work of one pipeline rank, after what
it must wait for, cannot be done in the time to beat.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import itemgetter

from mainspring.plan import partition
from mainspring.plan.bounds import Bounds
from mainspring.plan.estimate import Choice, Estimate, Line
from mainspring.plan.limits import refusal
from mainspring.plan.pipeline import SPLIT, in_flight, stage_ranks
from mainspring.plan.slices import Slice
from mainspring.plan.space import Frame, Space
from mainspring.spec import V_SHAPED, Mesh, Schedule, Zero

CLOSE = 1 + 1e-9  # times the best, what is a tie
NEARLY_EVEN = 0.97  # of the time of even stages, which the best cut of a long model is not below


class Refiner:
    """Refines frames of one space; cuts are remembered: what is fastest hardly depends on the micro-batch."""

    def __init__(self, space: Space, bounds: Bounds) -> None:
        self._space, self._bounds, self._estimator = space, bounds, bounds.estimator
        self._units = space.unit_count
        self._known: dict[object, tuple[int, ...]] = {}
        self._beat_s = math.inf

    def estimates(self, frame: Frame, *, beat_s: float) -> Iterator[Estimate]:
        """Estimates of the ways to arrange `frame` that could take less than `beat_s`."""
        best = self._beat_s = beat_s
        if self._bounds.hopeless(frame.cut, frame.layout, frame.mesh):
            return
        floor_s = self._bounds.floor_s(frame.cut, frame.layout)
        may = (way for way in self._space.schedules(frame) if self._may_run(frame, *way))
        ways = [(self._floor_s(frame, *way, floor_s), *way) for way in may]
        if all(least_s >= best for least_s, _, _ in ways):
            return
        arrangements = self._space.arrangements(frame)
        floors = self._bounds.exchange_floors_s(frame.cut, frame.layout, arrangements)
        meshes = sorted(floors, key=itemgetter(0))
        if not meshes:
            return
        for least_s, schedule, chunks in ways:
            if least_s + meshes[0][0] >= best:
                continue
            if frame.mesh.pp > 1 and self._bounds.overfull(frame.cut, frame.layout, frame.mesh, schedule):
                continue
            for cuts in self._cuts(frame, schedule, chunks, exchange_s=meshes[0][0]):
                if self._busiest_s(frame, schedule, cuts) + meshes[0][0] >= best:
                    continue
                line = self._line(frame, Choice(frame.mesh, frame.cut, 0, schedule, cuts), beat_s=best - meshes[0][0])
                if line is None:
                    continue
                for exchange_s, mesh, zero in meshes:
                    if line.bound_s + exchange_s >= best:
                        break
                    for estimate in self._arranged(frame, line, mesh, zero, beat_s=best):
                        yield estimate
                        if estimate.fits:
                            best = self._beat_s = min(best, estimate.time.step_s * CLOSE)

    def _may_run(self, frame: Frame, schedule: Schedule, chunks: int) -> bool:
        """Whether any sharing of the micro-batches lets `schedule` run; of uneven ones some replica has no more."""
        mesh = frame.mesh
        each, rest = divmod(self._space.config.global_batch // frame.cut.rows, mesh.replicas)
        if len(frame.layout.columns) == 1:
            if rest:
                return False
        else:
            each -= each % mesh.pp
        recompute = frame.cut.recompute != "none"
        return not refusal(mesh, zero=0, schedule=schedule, chunks=chunks, recompute=recompute, microbatches=(each,))

    def _floor_s(self, frame: Frame, schedule: Schedule, chunks: int, floor_s: float) -> float:
        """A step that no cut into these stages beats, given the least that the frame could take.

        With one stage a rank, rank r waits for t_0 + ... + t_(r-1) and then works m t_r: the least maximum of these is
        sum(t) / (1 - (1 - 1/m)^p). Of models too long to try every cut, stages are taken to be nearly even.
        """
        pp = frame.mesh.pp
        if pp == 1:
            return floor_s
        count = self._space.config.global_batch / frame.cut.rows / frame.mesh.replicas
        split = schedule in SPLIT
        if len(frame.layout.columns) > 1:
            # Of each column some rank has a mean share or more of as many micro-batches as the schedule needs.
            fewest = pp * (chunks if schedule == "dualpipev" else 1)
            floor_s = max(floor_s, fewest / pp * self._bounds.slowest_s(frame.cut, frame.layout))
        if not self._enumerable(pp * chunks):
            return floor_s * (1 + (pp - 1) / (count * chunks * (3 if split else 1))) * NEARLY_EVEN
        if chunks > 1 or split or count <= 1 or len(frame.layout.columns) > 1:
            return floor_s
        parts = self._parts(frame)
        if any(part is not parts[0] for part in parts):
            return floor_s
        return parts[0].all_s / (1 - (1 - 1 / count) ** pp)

    def _busiest_s(self, frame: Frame, schedule: Schedule, cuts: tuple[int, ...]) -> float:
        """A step that stages at `cuts` do not beat: what the last rank of a column waits for and computes."""
        places = stage_ranks(len(cuts) - 1, frame.mesh.pp, schedule)
        left, pace = self._space.config.global_batch / frame.cut.rows, 0.0
        for column, parts in zip(frame.layout.columns, self._estimator.slices(frame.cut, frame.layout), strict=True):
            work = [0.0] * frame.mesh.pp
            for place, first, end in zip(places, cuts, cuts[1:], strict=False):
                both = parts[place].both_s
                work[place] += both[end] - both[first]
            waited, waits = 0.0, [0.0]
            for part, first, end in zip(parts, cuts, cuts[1:], strict=False):
                sums = part.forward_s if schedule in SPLIT else part.both_s
                waited += sums[end] - sums[first]
                waits.append(waited)
            count = self._space.config.global_batch / frame.cut.rows / frame.mesh.replicas
            busiest = max(range(len(work)), key=lambda place: waits[place] + count * work[place])
            each = column.replicas / max(work[busiest], 1e-12)
            left, pace = left + waits[busiest] * each, pace + each
        return left / pace

    def _enumerable(self, stages: int) -> bool:
        return self._units <= partition.FEW_UNITS and stages <= self._units

    def _line(self, frame: Frame, choice: Choice, *, beat_s: float) -> Line | None:
        """The pipeline of `choice`, cut anew if its activations do not fit; None when it cannot be fast enough."""
        line = self._estimator.line(choice, frame.layout)
        if line is None or line.bound_s >= beat_s:
            return None
        thinnest = self._estimator.thinnest(frame.mesh)
        if not self._estimator.crammed(line, thinnest):
            return line
        cuts = self._roomier(line, thinnest)
        if cuts is None:
            return None
        line = self._estimator.line(replace(choice, cuts=cuts), frame.layout)
        return line if line is not None and line.bound_s < beat_s else None

    def _arranged(self, frame: Frame, line: Line, mesh: Mesh, zero: Zero, *, beat_s: float) -> Iterator[Estimate]:
        """The estimate of one arrangement, and of one that is cut anew if it does not fit."""
        each = self._estimator.state_bytes(mesh, zero, line)
        if not self._estimator.crammed(line, each):
            estimate = self._estimator.arranged(line, mesh, zero, beat_s=beat_s)
            if estimate is None:
                return
            yield estimate
            if estimate.fits:
                return
        cuts = self._roomier(line, each)
        if cuts is not None and cuts != line.choice.cuts:
            again = self._estimator.line(replace(line.choice, cuts=cuts), frame.layout)
            estimate = again and self._estimator.arranged(again, mesh, zero, beat_s=beat_s)
            if estimate is not None:
                yield estimate

    def _cuts(self, frame: Frame, schedule: Schedule, chunks: int, *, exchange_s: float) -> Iterator[tuple[int, ...]]:
        """Cuts worth trying for their time, the most promising first."""
        stages = frame.mesh.pp * chunks
        if stages == 1:
            yield (0, self._units)
            return
        first, beat_s = self._fastest(frame, schedule, stages), self._beat_s
        yield first
        if self._enumerable(stages):
            yield from (cuts for cuts in self._all(frame, schedule, stages, exchange_s) if cuts != first)
        elif self._beat_s < beat_s and (own := self.best_cut(frame, schedule, stages)) != first:
            yield own  # what is remembered was for another micro-batch

    def _all(self, frame: Frame, schedule: Schedule, stages: int, exchange_s: float) -> Iterator[tuple[int, ...]]:
        """Every cut whose ranks could all be done, and exchange state, within the time to beat; depth first."""
        pp, grid = frame.mesh.pp, self._estimator.slices(frame.cut, frame.layout)
        places = stage_ranks(stages, pp, schedule)
        total = self._space.config.global_batch / frame.cut.rows
        replicas = [column.replicas for column in frame.layout.columns]
        distinct = [[part.both_s for part in dict.fromkeys(parts)] for parts in grid]

        def least_s(each: Sequence[float], waited: Sequence[float]) -> float:
            """A step that nothing beats if a rank of each column waits and then takes `each` for a micro-batch."""
            paces = [count / max(seconds, 1e-12) for count, seconds in zip(replicas, each, strict=True)]
            return (total + sum(wait * pace for wait, pace in zip(waited, paces, strict=True))) / sum(paces)

        still = [0.0] * len(grid)

        def grow(
            cuts: tuple[int, ...], work: tuple[tuple[float, ...], ...], waited: Sequence[float]
        ) -> Iterator[tuple[int, ...]]:
            stage = len(cuts) - 1
            if stage == stages:
                yield cuts
                return
            first, place, left = cuts[-1], places[stage], stages - stage - 1
            parts = [column[place] for column in grid]
            for end in (self._units,) if not left else range(first + 1, self._units - left + 1):
                beat_s = self._beat_s - exchange_s
                took = [part.both_s[end] - part.both_s[first] for part in parts]
                done = [sums[place] + more for sums, more in zip(work, took, strict=True)]
                if least_s(done, waited if stage < pp else still) >= beat_s:
                    return
                # Some rank of those to come has at least a mean share of what is left.
                if stages == pp and left:
                    rest = [min(sums[-1] - sums[end] for sums in column) / left for column in distinct]
                    if least_s(rest, still) >= beat_s:
                        continue
                if schedule in SPLIT:
                    took = [part.forward_s[end] - part.forward_s[first] for part in parts]
                longer = [wait + more for wait, more in zip(waited, took, strict=True)] if stage < pp else waited
                added = tuple((*w[:place], d, *w[place + 1 :]) for w, d in zip(work, done, strict=True))
                yield from grow((*cuts, end), added, longer)

        yield from grow((0,), ((0.0,) * pp,) * len(grid), still)

    def _fastest(self, frame: Frame, schedule: Schedule, stages: int) -> tuple[int, ...]:
        cut = frame.cut
        ranks = tuple(column.ranks for column in frame.layout.columns)
        key = (ranks, cut.tp, cut.cp, cut.ep, cut.recompute, stages, schedule in V_SHAPED)
        if key not in self._known:
            self._known[key] = self.best_cut(frame, schedule, stages)
        return self._known[key]

    def best_cut(self, frame: Frame, schedule: Schedule, stages: int) -> tuple[int, ...]:
        """The cut whose slowest rank is fastest, whatever fits."""
        parts, places = self._parts(frame), stage_ranks(stages, frame.mesh.pp, schedule)
        found = partition.best_cut(
            [parts[place].both_s for place in places],
            least_s=self._bounds.slowest_stage_s([*Counter(parts[place] for place in places).items()]),
        )
        return found or partition.even_cut(self._units, stages)

    def _parts(self, frame: Frame) -> list[Slice]:
        """The slowest column's slice for each pipeline rank."""
        grid = self._estimator.slices(frame.cut, frame.layout)
        return [max(parts, key=lambda part: part.all_s) for parts in zip(*grid, strict=True)]

    def _roomier(self, line: Line, each: float) -> tuple[int, ...] | None:
        """The fastest cut whose stages fit when a parameter's state takes `each` bytes; None when there is none."""
        choice = line.choice
        pp = choice.mesh.pp
        if pp == 1 or choice.chunks > 1 or each >= line.bytes_too_many or self._enumerable(pp):
            return None
        counts = in_flight(choice.schedule, pp=pp, chunks=1, microbatches=max(line.most))
        parts = [max(column, key=lambda part: part.all_s) for column in zip(*line.grid, strict=True)]
        rooms = [float(self._estimator.usable_bytes(line.layout, place)) for place in range(pp)]
        rooms[-1] -= self._estimator.logits_bytes(parts[-1])
        fewest = min(count for (count,) in counts)
        most = max(_room_for(part, sum(rooms), held=fewest) for part in dict.fromkeys(parts))
        line.bytes_too_many = min(line.bytes_too_many, most)
        if each > most:
            return None
        held = [_bytes(part, each=each, held=count) for part, (count,) in zip(parts, counts, strict=True)]
        least_s = self._bounds.slowest_stage_s([*Counter(parts).items()])
        found = partition.best_cut([part.both_s for part in parts], held, rooms, least_s=least_s)
        if found is None:
            line.bytes_too_many = each
        return found


def _bytes(part: Slice, *, each: float, held: int) -> list[float]:
    """Running sums of what units need on a rank, without what is gathered for a moment."""
    return [each * weighed + held * kept for weighed, kept in zip(part.weighed, part.kept_bytes, strict=True)]


def _room_for(part: Slice, room: float, *, held: int) -> float:
    """Bytes for the state of a parameter above which a rank with `room` could not hold the whole model."""
    return (room - held * part.kept_bytes[-1]) / max(1.0, part.weighed[-1]) * partition.ROUNDED
