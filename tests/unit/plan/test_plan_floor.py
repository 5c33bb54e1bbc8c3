"""What a model needs at the least, and that what is named as a remedy is one."""

import itertools
import re
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mainspring.plan.floor import roomiest, smallest
from mainspring.plan.limits import EVERYTHING
from mainspring.plan.outcome import lacking
from mainspring.plan.search import plan_training
from mainspring.plan.space import Space
from mainspring.spec import Cluster, DoesNotFit, Hints, Recompute, TrainConfig
from mainspring.testing.machines import GIB, build_cluster, build_device, build_model

UNITS = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": GIB, "TiB": 1024 * GIB}
CONFIG = TrainConfig(steps=1, global_batch=8, seq_len=1024)
DEEP = build_model(layers=24, hidden=2048, vocab=32000)


def machines(memory_bytes: float, devices: int) -> Cluster:
    return build_cluster((build_device(memory_bytes=int(memory_bytes)), devices, 1))


def size_of(words: str) -> float:
    number, unit = words.split()
    return float(number) * UNITS[unit]


def refused(*args: object, **options: object) -> DoesNotFit | None:
    try:
        plan_training(*args, **options)
    except DoesNotFit as error:
        return error
    return None


@settings(max_examples=12, deadline=None)
@given(
    layers=st.sampled_from([1, 3, 16, 24]),
    hidden=st.sampled_from([512, 2048]),
    vocab=st.sampled_from([1000, 50000]),
    experts=st.sampled_from([0, 0, 8]),
    devices=st.sampled_from([1, 2, 3, 8]),
    size=st.sampled_from([2, 6, 8]),
    scarce=st.floats(0.05, 0.99),
    recompute=st.sampled_from([None, "none"]),
)
def test_each_remedy_that_is_named_is_one_and_no_more_than_is_needed(
    layers: int,
    hidden: int,
    vocab: int,
    experts: int,
    devices: int,
    size: int,
    scarce: float,
    recompute: Recompute | None,
) -> None:
    model = build_model(layers=layers, hidden=hidden, vocab=vocab, experts=experts)
    config, hints = replace(CONFIG, global_batch=size), Hints(recompute=recompute)
    space = Space(model, machines(GIB, devices), config, hints=hints, limits=EVERYTHING, ranks=None)
    floor = smallest(space)
    assert floor is not None
    need = floor.estimate.memory[floor.estimate.tightest].total_bytes
    memory = scarce * need / 0.9
    error = refused(model, machines(memory, devices), config, hints=hints)
    assert error is not None
    larger = re.search(r"(\d+) with ([\d.]+ \w+) each", error.hint)
    assert larger is not None
    count, each = int(larger[1]), size_of(larger[2])
    assert refused(model, machines(each, count), config, hints=hints) is None
    assert refused(model, machines(0.95 * each, devices), config, hints=hints) is not None
    more = re.search(r"(\d+) such devices(?: with a global_batch of (\d+))?", error.hint)
    if more is not None:
        enough = replace(config, global_batch=int(more[2] or size))
        assert refused(model, machines(memory, int(more[1])), enough, hints=hints) is None
    shorter = re.search(r"a seq_len of (\d+)", error.hint)
    assert shorter is not None or more is not None or "sharding further does not help" in error.hint
    if shorter is not None:
        assert refused(model, machines(memory, devices), replace(config, seq_len=int(shorter[1])), hints=hints) is None


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=2, max_size=8),
    rooms=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 4), min_size=4, max_size=4),
)
def test_stages_are_cut_so_that_the_fullest_lacks_least(sizes: list[int], rooms: list[int], weights: list[int]) -> None:
    units, stages = len(sizes), len(rooms)
    assume(stages <= units)

    def lacks(stage: int, first: int, end: int) -> int:
        return weights[stage] * sum(sizes[first:end]) + max(sizes[first:end]) - rooms[stage]

    def fullest(cuts: tuple[int, ...]) -> int:
        return max(lacks(stage, a, b) for stage, (a, b) in enumerate(itertools.pairwise(cuts)))

    every = [(0, *inner, units) for inner in itertools.combinations(range(1, units), stages - 1)]
    one = [lambda a, b, stage=stage: lacks(stage, a, b) for stage in range(stages)]
    assert fullest(roomiest(one, units, first=every[-1])) == min(map(fullest, every))


def test_a_pipeline_counts_among_what_needs_least() -> None:
    """A model that tensor parallelism cannot divide: its stages are what makes it smaller."""
    model = replace(DEEP, blocks=tuple(replace(block, divisions=()) for block in DEEP.blocks))
    space = Space(model, machines(GIB, 8), CONFIG, hints=Hints(cp=1), limits=EVERYTHING, ranks=8)
    found = smallest(space)
    assert found is not None
    assert found.estimate.choice.mesh.pp > 1
    for pp in (1, 2, 4, 8):
        narrowed = Space(model, machines(GIB, 8), CONFIG, hints=Hints(pp=pp, cp=1), limits=EVERYTHING, ranks=8)
        other = smallest(narrowed)
        assert other is not None
        assert lacking(found.estimate) <= lacking(other.estimate)


def test_nothing_that_a_search_sees_needs_less_than_the_least() -> None:
    model = build_model(layers=3, hidden=1024)
    space = Space(model, machines(2 * GIB, 4), CONFIG, hints=Hints(), limits=EVERYTHING, ranks=None)
    floor = smallest(space)
    assert floor is not None
    fitting = plan_training(model, machines(16 * GIB, 4), CONFIG)
    assert floor.estimate.memory[floor.estimate.tightest].total_bytes <= fitting.memory.total_bytes


def test_wishes_are_kept_to_by_a_remedy_and_named_where_they_stand_in_its_way() -> None:
    error = refused(DEEP, machines(4 * GIB, 4), CONFIG, hints=Hints(pp=2))
    assert error is not None
    more = re.search(r"(\d+) such devices( and no pp asked for)?", error.hint)
    assert more is not None
    asked = Hints() if more[2] else Hints(pp=2)
    assert refused(DEEP, machines(4 * GIB, int(more[1])), CONFIG, hints=asked) is None
    fixed = refused(DEEP, machines(4 * GIB, 4), CONFIG, hints=Hints(pp=2, dp=1, fsdp=1, tp=1, cp=1))
    assert fixed is not None
    assert "and no pp, dp, fsdp asked for" in fixed.hint


def test_a_micro_batch_that_is_too_large_is_named() -> None:
    model = build_model(layers=4, hidden=256, vocab=50000)
    config = replace(CONFIG, global_batch=8, microbatch=8)
    error = refused(model, machines(3 * GIB, 1), config)
    assert error is not None
    fewer = re.search(r"a microbatch of (\d+)", error.hint)
    assert fewer is not None, error.hint
    assert refused(model, machines(3 * GIB, 1), replace(config, microbatch=int(fewer[1]))) is None
