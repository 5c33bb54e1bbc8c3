"""Where to cut a model into stages: so that the slowest stage is as fast as can be.

A dynamic programme over (stage, units so far) says whether any cut has no stage longer than a given time; halving
finds the least time that works (the linear partition problem). Stages may differ in speed and memory, so that mixed
devices get uneven shares (Whale, Jia et al. 2022, section 3.4). Equal stages are filled from the front, where heavy
ones delay fewest others.
"""

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

FEW_UNITS = 14  # of which every cut may be tried
HALVINGS = 40
PROBES = 3  # of the least time that could do, before halving
ROUNDED = 1 + 1e-9  # times a number that may be off in its last bits
TOLERANCE = 1e-7  # below any two sums of units that differ


def ways(units: int, stages: int) -> int:
    """How many cuts there are."""
    return math.comb(units - 1, stages - 1)


def even_cut(units: int, stages: int) -> tuple[int, ...]:
    """Stages of equal size, the first ones one larger where it does not work out."""
    each, rest = divmod(units, stages)
    ends = itertools.accumulate(each + (stage < rest) for stage in range(stages))
    return (0, *ends)


def best_cut(
    seconds: Sequence[Sequence[float]],
    held: Sequence[Sequence[float]] = (),
    rooms: Sequence[float] = (),
    *,
    least_s: float = 0.0,
) -> tuple[int, ...] | None:
    """The cut whose slowest stage is fastest; None when nothing fits.

    `seconds[s]` are running sums of the units' times on the devices of stage s, `held[s]` of their bytes there, of
    which `rooms[s]` may be used. Some stage takes `least_s` in any case.
    """
    pack = _Packing(seconds, held, rooms)
    best = pack.cut(max(sums[-1] for sums in seconds))
    if best is None:
        return None
    low = min(sums[-1] for sums in seconds) / len(seconds) / 2
    low = max(low, least_s, min(reach.largest_s for reach in pack.stages))
    high = _slowest(seconds, best)
    low = min(low, high)
    for turn in range(HALVINGS):
        if high - low <= high * TOLERANCE:
            break
        middle = low if turn < PROBES else (low + high) / 2
        found = pack.cut(middle)
        if found is None:
            low = max(middle, min(pack.next_s, high))
        else:
            best, high = found, min(middle, _slowest(seconds, found))
    return best


class _Packing:
    """Says whether any cut has no stage above a given time or its room.

    After a time that was too short, `next_s` is the least that could make a difference.
    """

    def __init__(
        self, seconds: Sequence[Sequence[float]], held: Sequence[Sequence[float]], rooms: Sequence[float]
    ) -> None:
        self._alike = seconds[0] if not held and all(sums is seconds[0] for sums in seconds) else None
        self._units = len(seconds[0]) - 1
        self.next_s = 0.0
        self._seconds, self._roomy = seconds, not held
        known: dict[int, float] = {}
        for sums in (*seconds, *held):
            if id(sums) not in known:
                known[id(sums)] = max(b - a for a, b in itertools.pairwise(sums))
        self.stages = [
            _Reach(sums, known[id(sums)], held[stage], known[id(held[stage])], rooms[stage])
            if held
            else _Reach(sums, known[id(sums)])
            for stage, sums in enumerate(seconds)
        ]
        self._largest_s = max(reach.largest_s for reach in self.stages)

    def _packed(self, longest: float) -> tuple[int, ...] | None:
        """`cut` where each unit fits each stage, so that a stage can start anywhere up to where the last ones end."""
        ends, more = [0], math.inf
        for number, sums in enumerate(self._seconds, start=1):
            first, most = ends[-1], self._units - (len(self._seconds) - number)
            until = sums[first] + longest
            end = most if sums[most] <= until else bisect_right(sums, until, first) - 1
            if end < most:
                more = min(more, sums[end + 1] - sums[first])
            ends.append(end)
        self.next_s = more
        if ends[-1] != self._units:
            return None
        cuts = [self._units]
        for number in range(len(self._seconds) - 1, -1, -1):
            sums, end = self._seconds[number], cuts[-1]
            last = min(ends[number], end - 1)
            first = max(number, min(last, bisect_left(sums, sums[end] - longest, number, last + 1)))
            # The same sums as forward: a difference may be off in its last bit.
            while first > number and sums[first - 1] + longest >= sums[end]:
                first -= 1
            while sums[first] + longest < sums[end]:
                first += 1
            cuts.append(first)
        return tuple(reversed(cuts))

    def cut(self, longest: float) -> tuple[int, ...] | None:
        """A cut with no stage above `longest` or its room; None when there is none."""
        if self._alike is not None:
            found, self.next_s = _filled(self._alike, longest, len(self.stages))
            return found
        self.next_s = math.inf
        if self._roomy and longest * (1 + 1e-12) * (1 - 1e-9) >= self._largest_s:
            return self._packed(longest * (1 + 1e-12))
        for reach in self.stages:
            reach.allow(longest * (1 + 1e-12))
        # Where each stage can start: runs of units, because a later start never ends earlier.
        starts: list[list[tuple[int, int]]] = [[(0, 0)]]
        for number, reach in enumerate(self.stages):
            ends: list[tuple[int, int]] = []
            most = self._units - (len(self.stages) - number - 1)
            for low, high in starts[-1]:
                ends += reach.ends(low, high, most)
                self.next_s = min(self.next_s, reach.next_s(min(high, most - 1), most))
            if not ends:
                return None
            starts.append(_joined(ends) if len(ends) > 1 else ends)
        if starts[-1][-1][1] != self._units:
            return None
        cuts = [self._units]
        for reach, possible in zip(reversed(self.stages), starts[-2::-1], strict=True):
            cuts.append(reach.earliest(cuts[-1], possible))
        return tuple(reversed(cuts))


class _Reach:
    """How far a stage can go, given running sums of its units' seconds and bytes and the largest of each."""

    __slots__ = ("_every_unit_fits", "_held", "_largest_held", "_longest", "_room", "_sums", "largest_s")

    def __init__(
        self,
        sums: Sequence[float],
        largest_s: float,
        held: Sequence[float] = (),
        largest_held: float = 0.0,
        room: float = 0.0,
    ) -> None:
        self._sums, self.largest_s = sums, largest_s
        self._held, self._largest_held, self._room = held, largest_held, room
        self.allow(math.inf)

    def allow(self, longest: float) -> None:
        """From now on a stage may take `longest` seconds."""
        self._longest = longest
        # A hair less than the largest, whose sums may differ in their last bits from place to place.
        slack = 1 - 1e-9
        self._every_unit_fits = self.largest_s <= longest * slack and self._largest_held <= self._room * slack

    def end(self, first: int) -> int:
        """The last unit that a stage which starts at `first` can end before; `first` itself when it fits nothing."""
        end = bisect_right(self._sums, self._sums[first] + self._longest) - 1
        if self._held:
            end = min(end, bisect_right(self._held, self._held[first] + self._room) - 1)
        return end

    def next_s(self, first: int, most: int) -> float:
        """The least time at which a stage that starts at `first`, or one before it, could end later than now."""
        if not self._every_unit_fits:
            return self._longest
        end = bisect_right(self._sums, self._sums[first] + self._longest) - 1
        by_bytes = bisect_right(self._held, self._held[first] + self._room) - 1 if self._held else most
        return self._sums[end + 1] - self._sums[first] if end < min(most, by_bytes) else math.inf

    def ends(self, low: int, high: int, most: int) -> list[tuple[int, int]]:
        """Runs of units that a stage which starts between `low` and `high` can end before, `most` at most.

        Starts from which the very next unit fits reach one run together; a unit that does not fit parts them.
        """
        high = min(high, most - 1)
        if low <= high and self._every_unit_fits:
            return [(low + 1, min(self.end(high), most))]
        found: list[tuple[int, int]] = []
        while low <= high:
            end = self.end(low)
            if end <= low:
                low += 1
                continue
            while end <= high and (following := self.end(end)) > end:
                end = following
            last = min(high, end - 1)
            found.append((low + 1, min(self.end(last), most)))
            low = last + 1
        return found

    def earliest(self, end: int, starts: Sequence[tuple[int, int]]) -> int:
        """The first of `starts` from which a stage can end before `end`."""
        for low, high in starts:
            last = min(high, end - 1)
            if low <= last and self.end(last) >= end:
                return low + bisect_left(range(low, last + 1), end, key=self.end)
        raise AssertionError("a run of ends has no start")


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs in order, those that touch made one."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(runs):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found


def _filled(sums: Sequence[float], longest: float, stages: int) -> tuple[tuple[int, ...] | None, float]:
    """Equal stages, each as full as `longest` allows, leaving a unit for each that follows; and what allows more."""
    units = len(sums) - 1
    cuts = [0]
    more = math.inf
    for stage in range(stages):
        first, last = cuts[-1], units - (stages - stage - 1)
        end = bisect_right(sums, sums[first] + longest * (1 + 1e-12)) - 1
        if end < last:
            more = min(more, sums[end + 1] - sums[first])
        if end <= first:
            return None, more
        cuts.append(min(last, end))
    return (tuple(cuts) if cuts[-1] == units else None), more


def _slowest(seconds: Sequence[Sequence[float]], cuts: tuple[int, ...]) -> float:
    return max(sums[b] - sums[a] for sums, (a, b) in zip(seconds, itertools.pairwise(cuts), strict=True))
