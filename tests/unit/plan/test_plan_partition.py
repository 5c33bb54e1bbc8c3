"""Cuts into stages against every cut there is."""

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.plan.partition import best_cut, even_cut, ways


def sums(values: Sequence[float]) -> list[float]:
    return [0.0, *itertools.accumulate(values)]


@settings(deadline=None)
@given(
    units=st.lists(st.floats(0.1, 10), min_size=2, max_size=10),
    stages=st.integers(1, 5),
    speeds=st.lists(st.floats(0.2, 5), min_size=5, max_size=5),
    sizes=st.lists(st.integers(1, 30), min_size=10, max_size=10),
    rooms=st.lists(st.integers(5, 200), min_size=5, max_size=5),
)
def test_the_slowest_stage_is_as_fast_as_in_any_cut_that_fits(
    units: list[float], stages: int, speeds: list[float], sizes: list[int], rooms: list[int]
) -> None:
    if stages > len(units):
        return
    seconds = [sums([u / speed for u in units]) for speed in speeds[:stages]]
    held = [sums(sizes[: len(units)])] * stages

    def slowest(cuts: tuple[int, ...]) -> float:
        if any(held[s][b] - held[s][a] > rooms[s] for s, (a, b) in enumerate(itertools.pairwise(cuts))):
            return float("inf")
        return max(seconds[s][b] - seconds[s][a] for s, (a, b) in enumerate(itertools.pairwise(cuts)))

    every = [(0, *inner, len(units)) for inner in itertools.combinations(range(1, len(units)), stages - 1)]
    assert len(every) == ways(len(units), stages)
    best = min(map(slowest, every))
    found = best_cut(seconds, held, rooms[:stages])
    if found is None:
        assert best == float("inf")
    else:
        assert found in every
        assert slowest(found) <= best * (1 + 1e-6)


@settings(deadline=None)
@given(
    units=st.lists(st.floats(0.5, 2), min_size=2, max_size=12),
    stages=st.integers(1, 6),
    speeds=st.lists(st.floats(0.5, 2), min_size=6, max_size=6),
)
def test_where_all_units_fit_anywhere_the_slowest_stage_is_as_fast_as_in_any_cut(
    units: list[float], stages: int, speeds: list[float]
) -> None:
    if stages > len(units):
        return
    seconds = [sums([u / speed for u in units]) for speed in speeds[:stages]]

    def slowest(cuts: tuple[int, ...]) -> float:
        return max(seconds[s][b] - seconds[s][a] for s, (a, b) in enumerate(itertools.pairwise(cuts)))

    every = [(0, *inner, len(units)) for inner in itertools.combinations(range(1, len(units)), stages - 1)]
    found = best_cut(seconds)
    assert found in every
    assert slowest(found) <= min(map(slowest, every)) * (1 + 1e-6)


def test_a_device_twice_as_fast_gets_twice_the_blocks() -> None:
    seconds = [sums([1.0] * 12), sums([2.0] * 12)]
    assert best_cut(seconds) == (0, 8, 12)


def test_what_fits_nowhere_is_no_cut() -> None:
    assert best_cut([sums([1.0] * 4)] * 2, [sums([3.0] * 4)] * 2, [4.0, 4.0]) is None


@settings(deadline=None)
@given(units=st.integers(1, 200), stages=st.integers(1, 50))
def test_an_even_cut_loses_no_unit(units: int, stages: int) -> None:
    if stages <= units:
        sizes = [b - a for a, b in itertools.pairwise(even_cut(units, stages))]
        assert sum(sizes) == units
        assert max(sizes) - min(sizes) <= 1
