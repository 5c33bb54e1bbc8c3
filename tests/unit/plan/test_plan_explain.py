"""What a plan is told to be: broken down, compared, drawn."""

import itertools
import re
from dataclasses import replace
from html import escape

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mainspring.plan.explain import difference, explain, steps_of
from mainspring.plan.page import page
from mainspring.plan.search import plan_training
from mainspring.spec import Hints, Plan, SpecError, TrainConfig
from mainspring.spec.plan import readable_bytes
from mainspring.testing.machines import GIB, build_cluster, build_device, build_model

MODEL = build_model(layers=16, hidden=1024)
CONFIG = TrainConfig(steps=10, global_batch=32, seq_len=512, microbatch=1)
FAST = build_device("fast", memory_bytes=24 * GIB)
SLOW = build_device("slow", memory_bytes=8 * GIB, bf16_flops_per_s=5e13, fp32_flops_per_s=1e13)


def planned(**hints: object) -> Plan:
    cluster = build_cluster((FAST, 4, 1), (SLOW, 4, 1), network_gbps=5)
    return plan_training(MODEL, cluster, CONFIG, hints=replace(Hints(), **hints))


@pytest.fixture(scope="module")
def pipeline() -> Plan:
    return planned(pp=4, schedule="interleaved")


def test_the_stages_add_up_to_the_model_and_to_the_fullest_rank(pipeline: Plan) -> None:
    told = explain(pipeline)
    mine = [stage for stage in told.stages if stage.device == "slow"]
    assert sum(stage.blocks for stage in mine) == 18
    by_rank = [sum(s.memory.total_bytes for s in mine if s.pipeline_rank == rank) for rank in range(4)]
    assert pipeline.memory.total_bytes in by_rank
    assert told.spare_bytes == int(0.9 * pipeline.device_memory_bytes) - pipeline.memory.total_bytes > 0
    assert {(s.device, s.device_memory_bytes) for s in told.stages} == {("fast", 24 * GIB), ("slow", 8 * GIB)}
    assert "send" in {each.operation for each in told.traffic}


@settings(max_examples=40, deadline=None)
@given(
    layers=st.sampled_from([1, 4, 9]),
    hidden=st.sampled_from([256, 1024]),
    experts=st.sampled_from([0, 0, 4]),
    slow=st.integers(0, 4),
    wishes=st.sampled_from(
        [
            {},
            {"fsdp": 2, "zero": 1},
            {"fsdp": 2, "zero": 2},
            {"fsdp": 4, "zero": 3},
            {"tp": 2},
            {"tp": 2, "copies": 2, "zero": 0},
            {"cp": 2},
            {"pp": 2, "schedule": "1f1b"},
            {"pp": 2, "schedule": "interleaved", "fsdp": 2},
            {"schedule": "zbv"},
        ]
    ),
    network=st.floats(0.1, 50),
    precision=st.sampled_from(["fp32", "bf16"]),
)
def test_the_parts_of_a_step_add_up_to_it_and_what_is_not_hidden_to_its_communication(
    layers: int, hidden: int, experts: int, slow: int, wishes: dict[str, object], network: float, precision: str
) -> None:
    kinds = [(FAST, 4, 1)] + ([(SLOW, slow, 1)] if slow else [])
    model = build_model(layers=layers, hidden=hidden, experts=experts)
    config = replace(CONFIG, precision=precision, seq_len=1024, microbatch=0)
    try:
        plan = plan_training(
            model, build_cluster(*kinds, network_gbps=network), config, hints=replace(Hints(), **wishes)
        )
    except SpecError:
        assume(False)  # what the model or the machines do not have
        raise
    told, time = explain(plan), plan.time
    seconds = {part.what: part.seconds for part in told.parts}
    assert all(each >= 0 for each in seconds.values())
    assert sum(seconds.values()) == pytest.approx(time.step_s)
    assert sum(each.exposed_s for each in told.traffic) == pytest.approx(time.communication_s)
    assert all(0 <= each.exposed_s <= each.seconds * (1 + 1e-9) for each in told.traffic)
    work_s = sum(seconds[what] for what in ("forward", "backward", "sending", "exchanging state"))
    assert work_s == pytest.approx(time.compute_s + time.communication_s)
    mine = [stage for stage in told.stages if stage.replica == told.slowest_replica]
    mine = [stage for stage in mine if stage.pipeline_rank == told.busiest_rank]
    assert seconds["forward"] == pytest.approx(sum(stage.forward_s for stage in mine))


def test_a_rank_with_several_stages_is_told_the_traffic_of_all_of_them(pipeline: Plan) -> None:
    told = explain(pipeline)
    sent = next(each for each in told.traffic if each.operation == "send")
    mine = [each for each in pipeline.traffic if each.operation == "send"]
    mine = [each for each in mine if pipeline.pipeline_rank(each.stage) == told.busiest_rank]
    assert len(mine) == pipeline.chunks > 1
    assert sent.messages == sum(each.messages for each in mine)


def test_what_is_to_spare_is_what_may_still_be_filled() -> None:
    plan = planned(pp=1, recompute="full")
    told = explain(plan)
    usable = int(0.9 * plan.device_memory_bytes)
    assert told.spare_bytes == usable - plan.memory.total_bytes
    assert explain(replace(plan, memory_share=0.5)).spare_bytes < told.spare_bytes
    computing = explain(replace(plan, time=replace(plan.time, compute_s=99.0)))
    assert readable_bytes(told.spare_bytes) in computing.advice


def test_why_gradients_are_whole_under_zero_2_is_said() -> None:
    plan = plan_training(MODEL, build_cluster((FAST, 4, 1)), CONFIG, hints=Hints(fsdp=4, zero=2))
    (note,) = explain(plan).notes
    assert "spread over 4 ranks" in note
    assert f"gradients are whole while {max(plan.microbatches)} micro-batches add up" in note
    assert escape(note) in page(plan)
    once = plan_training(MODEL, build_cluster((FAST, 4, 1)), replace(CONFIG, microbatch=8), hints=Hints(fsdp=4, zero=2))
    assert "gradients are spread with them" in explain(once).notes[0]


@pytest.mark.parametrize(
    ("parts", "word", "advice"),
    [
        ({"compute_s": 9.0}, "computing", "MFU"),
        ({"communication_s": 9.0}, "communication", "a faster network"),
        ({"bubble_s": 9.0}, "waiting", "more micro-batches than 16"),
        ({"optimizer_s": 9.0}, "the optimiser", "MFU"),
    ],
)
def test_the_largest_part_of_a_step_is_what_limits_it(
    pipeline: Plan, parts: dict[str, float], word: str, advice: str
) -> None:
    few = replace(pipeline, stages=tuple(replace(s, microbatches=(16,) * 2) for s in pipeline.stages))
    told = explain(replace(few, time=replace(few.time, **parts)))
    assert told.bottleneck.startswith(f"{word}: 9")
    assert advice in told.advice


def test_the_timeline_has_every_pass_once_and_none_overlaps(pipeline: Plan) -> None:
    spans = steps_of(pipeline)
    assert len({(s.kind, s.stage, s.microbatch) for s in spans}) == len(spans)
    for rank in range(4):
        mine = sorted((s.start_s, s.end_s) for s in spans if s.rank == rank)
        assert all(later[0] >= earlier[1] - 1e-12 for earlier, later in itertools.pairwise(mine))


def test_a_plan_differs_from_itself_in_nothing_and_from_another_in_what_is_named(pipeline: Plan) -> None:
    assert difference(pipeline, pipeline) == ()
    found = {row.what: (row.first, row.second) for row in difference(pipeline, planned(pp=1))}
    assert found["mesh"][0].startswith("pp4")
    assert {"schedule", "step", "memory a rank"} <= found.keys()
    assert "model" not in found


def test_the_page_draws_every_pass_and_every_rank_with_its_own_memory(pipeline: Plan) -> None:
    drawn = page(pipeline)
    assert len(re.findall(r'<rect class="[FBW]( later)?" x=', drawn)) == sum(len(steps_of(pipeline, r)) for r in (0, 1))
    assert drawn.count('class="limit"') == 8
    assert "color-scheme: light dark" in drawn
    assert "http" not in drawn  # needs nothing else
    widths = [float(w) for w in re.findall(r'<rect class="activations" x="[\d.]+" y="\d+" width="([\d.]+)"', drawn)]
    held = [stage.memory.activations_bytes for stage in explain(pipeline).stages if stage.replica == 0]
    by_rank = 2 * [sum(held[rank::4]) for rank in range(4)]
    assert [w / max(widths) for w in widths] == pytest.approx([b / max(by_rank) for b in by_rank], abs=0.01)


def test_a_comparison_shows_every_part_of_memory_and_no_price_of_nothing(pipeline: Plan) -> None:
    grown = replace(pipeline, memory=replace(pipeline.memory, logits_bytes=GIB, gathered_bytes=2 * GIB))
    found = {row.what: (row.first, row.second) for row in difference(pipeline, grown)}
    assert found["  logits"][1] == "1 GiB"
    assert found["  gathered"][1] == "2 GiB"
    dear = replace(pipeline, price_usd_per_hour=0.001)
    prices = {row.what: row for row in difference(pipeline, dear)}["price"]
    assert prices.first == "unknown"
    assert "0.00 USD" not in prices.second
    assert "0.00 USD" not in str(dear)
    assert {row.what: row for row in difference(pipeline, planned(pp=1))}["schedule"].second == "no pipeline"


def test_waiting_for_nothing_is_not_shown_as_a_moment() -> None:
    for size in (6, 10, 14, 22):
        plan = plan_training(MODEL, build_cluster((FAST, 1, 1)), replace(CONFIG, global_batch=size))
        assert plan.time.bubble_s == 0


def test_each_kind_of_replica_is_told_with_its_own_device_memory_and_work() -> None:
    plan = planned(pp=1, fsdp=1, tp=1)
    fast, slow = explain(plan).stages
    assert (fast.device, fast.device_memory_bytes, fast.replicas) == ("fast", 24 * GIB, 4)
    assert (slow.device, slow.device_memory_bytes, slow.replicas) == ("slow", 8 * GIB, 4)
    assert fast.replicas * fast.microbatches + slow.replicas * slow.microbatches == 32
    assert fast.microbatches > slow.microbatches
    assert fast.forward_s / fast.microbatches < slow.forward_s / slow.microbatches
    later = max(fast.forward_s + fast.backward_s, slow.forward_s + slow.backward_s)
    assert later == pytest.approx(sum(part.seconds for part in explain(plan).parts[:2]))
    again = Plan(**{name: getattr(plan, name) for name in plan.__dataclass_fields__})
    assert explain(again) == explain(plan)


def test_the_page_of_two_kinds_of_replica_draws_both_and_tells_what_it_draws() -> None:
    plan = planned(pp=1, fsdp=1, tp=1)
    drawn = page(plan)
    for name in ("fast", "slow"):
        assert drawn.count(f">0  {name}<") == 2  # once for its time, once for its memory
    assert drawn.count('aria-label="pipeline timeline"') == 2
    assert drawn.count('class="limit"') == 2
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in drawn
    assert "<th>not hidden" in drawn
    assert "<h2>Stages</h2>" in drawn
    assert re.search(r"What limits a step\.</b> [A-Z]", drawn)
    told = re.findall(r"The slowest of 4 replicas on (fast|slow): its (\d+) micro-batches", drawn)
    assert [(name, int(count)) for name, count in told] == [(s.device, s.microbatches) for s in explain(plan).stages]


def test_a_long_pipeline_is_drawn_from_its_start() -> None:
    plan = planned(pp=8, fsdp=1, tp=1, schedule="1f1b")
    shown, count = map(int, re.search(r"its first (\d+) of (\d+) micro-batches", page(plan)).groups())
    assert shown < count == plan.microbatches[0]
    assert "The replica on fast | slow: " in page(plan)


def test_names_cannot_break_the_page() -> None:
    assert "<script>" not in page(replace(planned(pp=1), model="<script>alert(1)</script>"))


def test_a_plan_without_stage_times_is_told_without_a_timeline(pipeline: Plan) -> None:
    bare = replace(pipeline, stages=tuple(replace(s, forward_s=(), backward_s=()) for s in pipeline.stages))
    assert steps_of(bare) == ()
    assert "<h2>Pipeline</h2>" not in page(bare)
    assert explain(bare).stages[0].forward_s == 0
