"""Schedules against their published bubbles and activations, and the simulation against hand-made cases."""

from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.plan.pipeline import SPLIT, StageTimes, in_flight, least_s, most_held, order, rank_of
from mainspring.plan.simulate import simulated_s, timeline, timeline_s
from mainspring.spec import Schedule

CASES: list[tuple[Schedule, int]] = [
    ("gpipe", 1),
    ("1f1b", 1),
    ("interleaved", 2),
    ("interleaved", 3),
    ("zero_bubble", 1),
    ("zero_bubble", 2),
    ("zbv", 2),
    ("dualpipev", 2),
]


def even(pp: int, chunks: int) -> list[StageTimes]:
    """Stages whose rank takes 1 s forward, 1 s for the input's gradient and 1 s for the weights'."""
    return [StageTimes(1 / chunks, 2 / chunks, 1 / chunks, 0.0)] * (pp * chunks)


@pytest.mark.parametrize(
    ("schedule", "chunks", "bubble_s"),
    [
        ("gpipe", 1, 3 * 3.0),  # (p - 1) (f + b)
        ("1f1b", 1, 3 * 3.0),
        ("interleaved", 3, 3 * 3.0 / 3),  # Narayanan et al. 2021: a v-th
        ("zero_bubble", 1, 3 * 1.0),  # Qi et al. 2023: a third of 1F1B's
        ("zbv", 2, 3 * 0.5),  # nothing but the way to the last rank, half as long where each holds two stages
        ("dualpipev", 2, 3 * 0.5),
    ],
)
def test_even_stages_wait_as_long_as_published(schedule: Schedule, chunks: int, bubble_s: float) -> None:
    took = timeline_s(even(4, chunks), pp=4, schedule=schedule, microbatches=16)
    assert took - 16 * 3.0 == pytest.approx(bubble_s)


@pytest.mark.parametrize(("schedule", "chunks"), CASES)
@pytest.mark.parametrize(("pp", "rounds"), [(2, 2), (4, 3), (8, 2)])
def test_an_order_does_everything_once_and_each_pass_after_its_input(
    schedule: Schedule, chunks: int, pp: int, rounds: int
) -> None:
    count = pp * rounds
    spans = timeline(even(pp, chunks), pp=pp, schedule=schedule, microbatches=count)
    done = {(s.kind, s.stage, s.microbatch): s for s in spans}
    kinds = 3 if schedule in SPLIT else 2
    assert len(done) == len(spans) == kinds * pp * chunks * count
    for span in spans:
        assert span.rank == rank_of(span.stage, pp=pp, schedule=schedule)
        before = done.get(("F", span.stage - 1, span.microbatch)) if span.kind == "F" else None
        if span.kind == "B":
            before = done[("F", span.stage, span.microbatch)]
            after = done.get(("B", span.stage + 1, span.microbatch))
            assert after is None or after.end_s <= span.start_s + 1e-9
        assert before is None or before.end_s <= span.start_s + 1e-9
    for _, mine in groupby(sorted(spans, key=lambda s: (s.rank, s.start_s)), key=lambda s: s.rank):
        row = list(mine)
        assert all(a.end_s <= b.start_s + 1e-9 for a, b in pairwise(row))


@pytest.mark.parametrize(
    ("schedule", "chunks", "first", "last"),
    [("gpipe", 1, 16, 16), ("1f1b", 1, 4, 1), ("zero_bubble", 1, 4, 4), ("interleaved", 2, 11, 5), ("zbv", 2, 8, 8)],
)
def test_activations_in_flight_are_those_published(schedule: Schedule, chunks: int, first: int, last: int) -> None:
    held = in_flight(schedule, pp=4, chunks=chunks, microbatches=16)
    assert (sum(held[0]), sum(held[-1])) == (first, last)


@settings(deadline=None)
@given(
    case=st.sampled_from(CASES),
    pp=st.integers(2, 5),
    rounds=st.integers(1, 3),
    seconds=st.lists(st.tuples(*[st.floats(0.01, 5)] * 4), min_size=15, max_size=15),
    faster=st.lists(st.floats(0.1, 1), min_size=15, max_size=15),
)
def test_no_order_beats_the_bound_and_faster_parts_are_never_slower(
    case: tuple[Schedule, int],
    pp: int,
    rounds: int,
    seconds: list[tuple[float, float, float, float]],
    faster: list[float],
) -> None:
    schedule, chunks = case
    count = 2 * pp * rounds

    def stages(scale: list[float]) -> list[StageTimes]:
        return [
            StageTimes(f * k, (b + w) * k, w * k, send * k)
            for (f, b, w, send), k in zip(seconds[: pp * chunks], scale, strict=False)
        ]

    took = simulated_s(stages([1.0] * 15), pp=pp, schedule=schedule, microbatches=count)
    assert took >= least_s(stages([1.0] * 15), pp=pp, schedule=schedule, microbatches=count) * (1 - 1e-9)
    assert simulated_s(stages(faster), pp=pp, schedule=schedule, microbatches=count) <= took * (1 + 1e-9)


@pytest.mark.parametrize(("schedule", "chunks"), CASES)
def test_a_long_step_extends_a_short_one_by_its_busiest_rank(schedule: Schedule, chunks: int) -> None:
    stages = [StageTimes(1 + 0.1 * s, 2.0, 1.0, 0.05) for s in range(4 * chunks)]
    whole = timeline_s(stages, pp=4, schedule=schedule, microbatches=64)
    assert simulated_s(stages, pp=4, schedule=schedule, microbatches=64) == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize(("schedule", "chunks"), [*CASES[1:], ("interleaved", 8)])
@pytest.mark.parametrize("pp", [2, 3, 5, 8])
def test_no_rank_ever_holds_more_than_in_the_first_rounds(schedule: Schedule, chunks: int, pp: int) -> None:
    """Of a long step only a few rounds are looked at; here all of it is."""
    count, split = 12 * pp, schedule in SPLIT
    whole = tuple(
        most_held(actions, pp=pp, chunks=chunks, split=split) for actions in order(schedule, pp, chunks, count)
    )
    assert in_flight(schedule, pp=pp, chunks=chunks, microbatches=count) == whole


def test_slow_links_lengthen_every_micro_batch() -> None:
    slow = [StageTimes(1.0, 2.0, 1.0, 5.0)] * 2
    took = timeline_s(slow, pp=2, schedule="1f1b", microbatches=8)
    assert took >= 8 * (3.0 + 5.0)


def test_orders_are_the_same_objects_each_time() -> None:
    assert order("zbv", 4, 2, 8) is order("zbv", 4, 2, 8)
