"""What a plan is told to be: broken down, compared, drawn."""

import itertools
import re
from dataclasses import replace

import pytest

from mainspring.plan.explain import difference, explain, steps_of
from mainspring.plan.page import page
from mainspring.plan.search import plan_training
from mainspring.spec import Hints, Plan, TrainConfig
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
    assert sum(stage.blocks for stage in told.stages) == 18
    by_rank = [sum(s.memory.total_bytes for s in told.stages if s.pipeline_rank == rank) for rank in range(4)]
    assert pipeline.memory.total_bytes in by_rank
    assert told.spare_bytes == pipeline.device_memory_bytes - pipeline.memory.total_bytes > 0
    assert {stage.device_memory_bytes for stage in told.stages} <= {24 * GIB, 8 * GIB}
    assert "send" in {each.operation for each in told.traffic}


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
    assert len(re.findall(r'<rect class="[FBW]( later)?" x=', drawn)) == len(steps_of(pipeline))
    assert drawn.count('class="limit"') == 4
    assert "color-scheme: light dark" in drawn
    assert "http" not in drawn  # needs nothing else
    widths = [float(w) for w in re.findall(r'<rect class="activations" x="[\d.]+" y="\d+" width="([\d.]+)"', drawn)]
    held = [stage.memory.activations_bytes for stage in explain(pipeline).stages]
    by_rank = [sum(held[rank::4]) for rank in range(4)]
    assert [w / max(widths) for w in widths] == pytest.approx([b / max(by_rank) for b in by_rank], abs=0.01)


def test_names_cannot_break_the_page() -> None:
    assert "<script>" not in page(replace(planned(pp=1), model="<script>alert(1)</script>"))


def test_a_plan_without_stage_times_is_told_without_a_timeline(pipeline: Plan) -> None:
    bare = replace(pipeline, stages=tuple(replace(s, forward_s=(), backward_s=()) for s in pipeline.stages))
    assert steps_of(bare) == ()
    assert "<h2>Pipeline</h2>" not in page(bare)
    assert explain(bare).stages[0].forward_s == 0
