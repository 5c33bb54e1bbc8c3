"""Where to cut a model into stages: so that the slowest stage is as fast as can be.

A dynamic programme over (stage, units so far) says whether any cut has no stage longer than a given time; halving
finds the least time that works (the linear partition problem). Stages may differ in speed and memory, so that mixed
devices get uneven shares (Whale, Jia et al. 2022, section 3.4). Equal stages are filled from the front, where heavy
ones delay fewest others.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence

MOST_TRIED = 500
HALVINGS = 24  # to a relative width of 6e-8, below any two sums of units that differ


def ways(units: int, stages: int) -> int:
    """How many cuts there are."""
    return math.comb(units - 1, stages - 1)


def even_cut(units: int, stages: int) -> tuple[int, ...]:
    """Stages of equal size, the first ones one larger where it does not work out."""
    each, rest = divmod(units, stages)
    ends = itertools.accumulate(each + (stage < rest) for stage in range(stages))
    return (0, *ends)


def best_cut(
    seconds: Sequence[Sequence[float]], held: Sequence[Sequence[float]] = (), rooms: Sequence[float] = ()
) -> tuple[int, ...] | None:
    """The cut whose slowest stage is fastest; None when nothing fits.

    `seconds[s]` are running sums of the units' times on the devices of stage s, `held[s]` of their bytes there, of
    which `rooms[s]` may be used.
    """
    longest = max(sums[-1] for sums in seconds)
    best = _packed(seconds, held, rooms, longest)
    if best is None:
        return None
    low, high = min(sums[-1] for sums in seconds) / len(seconds) / 2, _slowest(seconds, best)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = _packed(seconds, held, rooms, middle)
        if found is None:
            low = middle
        else:
            best, high = found, min(middle, _slowest(seconds, found))
    return best


def _packed(
    seconds: Sequence[Sequence[float]], held: Sequence[Sequence[float]], rooms: Sequence[float], longest: float
) -> tuple[int, ...] | None:
    """A cut with no stage above `longest` or its room; None when there is none."""
    stages, units = len(seconds), len(seconds[0]) - 1
    if not held and all(sums is seconds[0] for sums in seconds):
        return _filled(seconds[0], longest, stages)
    # From which unit each stage can start to end at another: both ends move on together, so each is seen once.
    reached: list[dict[int, int]] = [{0: 0}]
    for stage, sums in enumerate(seconds):
        ends: dict[int, int] = {}
        done = stage
        for first in reached[-1]:
            end = min(units - (stages - stage - 1), bisect_right(sums, sums[first] + longest * (1 + 1e-12)) - 1)
            if held:
                end = min(end, bisect_right(held[stage], held[stage][first] + rooms[stage]) - 1)
            for number in range(max(first, done) + 1, end + 1):
                ends[number] = first
            done = max(done, end)
        reached.append(ends)
    if units not in reached[-1]:
        return None
    cuts = [units]
    for ends in reversed(reached[1:]):
        cuts.append(ends[cuts[-1]])
    return tuple(reversed(cuts))


def _filled(sums: Sequence[float], longest: float, stages: int) -> tuple[int, ...] | None:
    """Equal stages, each as full as `longest` allows, leaving a unit for each that follows."""
    units = len(sums) - 1
    cuts = [0]
    for stage in range(stages):
        last = units - (stages - stage - 1)
        end = min(last, bisect_right(sums, sums[cuts[-1]] + longest * (1 + 1e-12)) - 1)
        if end <= cuts[-1]:
            return None
        cuts.append(end)
    return tuple(cuts) if cuts[-1] == units else None


def _slowest(seconds: Sequence[Sequence[float]], cuts: tuple[int, ...]) -> float:
    return max(sums[b] - sums[a] for sums, (a, b) in zip(seconds, itertools.pairwise(cuts), strict=True))
