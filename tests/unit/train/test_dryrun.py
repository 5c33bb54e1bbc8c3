"""One rank on ranks that do not exist: what it would send is what the planner predicts, at any size."""

from dataclasses import replace
from pathlib import Path

import pytest

from mainspring.plan.search import plan_training
from mainspring.spec import DoesNotFit, Hints, Plan, SpecError
from mainspring.testing.machines import build_cluster, build_device
from mainspring.train import launch
from mainspring.train.dryrun import DryRun, dry_run
from mainspring.train.profile import study_recipe
from mainspring.train.recipe import load_recipe

RECIPE = """
import mainspring as ms
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig

def model(vocab):
    return Decoder(DecoderConfig(vocab=vocab, hidden=512, layers=6, heads=8, kv_heads=4, ffn=1024, context=64,
                                 tied=False))

recipe = ms.Recipe(model=model, config=ms.TrainConfig(steps=1, global_batch=4096, seq_len=64))
"""
FACTS = {"vocab": 4096, "eos_id": None, "bos_id": None}
CLUSTER = build_cluster((build_device(), 8, 512))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


def plan_and_run(recipe: Path, rank: int, *overrides: str, **hints: object) -> tuple[Plan, DryRun]:
    loaded = load_recipe(recipe, overrides).recipe
    model, asked = study_recipe(loaded, FACTS, name="small", hints=replace(Hints(), **hints))
    plan = plan_training(model, CLUSTER, loaded.config, hints=asked)
    return plan, dry_run(loaded, model, plan, rank=rank, facts=FACTS)


CASES = {
    "ZeRO-3 on 256": ({"fsdp": 256, "dp": 1, "tp": 1, "pp": 1, "cp": 1, "zero": 3}, 17),
    "hybrid with tp on 4,096": ({"fsdp": 64, "dp": 16, "tp": 4, "pp": 1, "cp": 1, "zero": 2}, 4095),
    "recomputed, 3D": ({"fsdp": 8, "dp": 1, "tp": 2, "pp": 4, "cp": 1, "zero": 3, "recompute": "full"}, 0),
    "zero bubble, last stage": ({"fsdp": 8, "dp": 1, "tp": 1, "pp": 4, "zero": 1, "schedule": "zero_bubble"}, 31),
    "replicas of a pipeline": ({"fsdp": 1, "dp": 4, "tp": 1, "pp": 2, "cp": 1, "zero": 0}, 5),
    "tp without sp": ({"fsdp": 8, "dp": 1, "tp": 4, "pp": 1, "zero": 1, "sequence_parallel": False}, 0),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_what_a_rank_sends_and_holds_is_what_was_predicted(recipe: Path, case: str, precision: str) -> None:
    hints, rank = CASES[case]
    plan, found = plan_and_run(recipe, rank, f"precision={precision}", "microbatch=1", **hints)
    assert found.messages
    for each in found.messages:
        assert (each.messages, each.payload_bytes) == (each.predicted_messages, each.predicted_bytes), each
    assert found.held_bytes == found.predicted_held_bytes
    assert all(plan.pipeline_rank(stage) == rank * plan.mesh.pp // plan.mesh.world for stage in found.stages)
    for held in found.held:
        assert len(held.whole) == len(held.here)


def test_replicas_send_their_gradients_once(recipe: Path) -> None:
    _, found = plan_and_run(recipe, 0, fsdp=1, dp=8, tp=1, pp=1, cp=1)
    (each,) = found.messages
    assert (each.operation, each.group_ranks) == ("all_reduce", 8)
    assert each.payload_bytes == each.predicted_bytes > found.held_bytes


TRANSFORMERS = """
import mainspring as ms
from transformers import GPT2Config, GPT2LMHeadModel

def model(vocab):
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_embd=64, n_layer=2, n_head=4, n_positions=1024,
                                      bos_token_id=0, eos_token_id=0))

recipe = ms.Recipe(model=model, config=ms.TrainConfig(steps=1, global_batch=8, seq_len=1024))
"""


def test_parts_of_sequences_are_tried_of_a_model_of_transformers_too(recipe: Path) -> None:
    recipe.write_text(TRANSFORMERS)
    _, found = plan_and_run(recipe, 3, fsdp=4, dp=1, tp=1, pp=1, cp=2, zero=2)
    assert {each.operation for each in found.messages} == {"all_gather", "all_reduce", "reduce_scatter"}
    for each in found.messages:
        assert (each.messages, each.payload_bytes) == (each.predicted_messages, each.predicted_bytes), each


def test_what_cannot_be_tried_is_said(recipe: Path) -> None:
    with pytest.raises(SpecError, match="rank 8 is none of the plan's 8"):
        plan_and_run(recipe, 8, fsdp=8, dp=1, tp=1, pp=1, cp=1)
    with pytest.raises(SpecError, match="needs a plan or a number of ranks"):
        launch.dry_run_of(recipe, facts=FACTS, plan=None, cluster=CLUSTER, world=0)


def test_a_cluster_is_repeated_until_it_is_large_enough(recipe: Path) -> None:
    small = build_cluster((build_device(), 8, 1))
    overrides = ("zero=3", "tp=1", "pp=1", "cp=1", "dp=1")
    found = launch.dry_run_of(recipe, facts=FACTS, plan=None, cluster=small, world=64, rank=63, overrides=overrides)
    assert found.plan.mesh.fsdp == 64
    assert found.plan.cluster == "8 x c"
    with pytest.raises(DoesNotFit, match="64 ranks were asked for"):
        launch.plan_for(recipe, facts=FACTS, cluster=small, ranks=64)
