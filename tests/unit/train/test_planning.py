"""From a recipe to what the planner is told: annotations, wishes, and what cannot be planned."""

from pathlib import Path

import pytest

from mainspring.plan.search import plan_training
from mainspring.spec import DoesNotFit, Settings, SpecError
from mainspring.testing.machines import GIB, build_cluster, build_device
from mainspring.train import launch
from mainspring.train.dryrun import dry_run
from mainspring.train.recipe import load_recipe
from mainspring.workspace import connect

CLUSTER = build_cluster((build_device(), 8, 2))
FACTS = {"vocab": 512, "eos_id": None, "bos_id": None}
HEAD = """
from dataclasses import replace
import torch
from torch import nn
import mainspring as ms
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig, MoeConfig

SIZES = DecoderConfig(vocab=512, hidden=64, layers=4, heads=8, kv_heads=4, ffn=128, context=32, tied=False)
"""
TAIL = "\nrecipe = ms.Recipe(model=model, config=ms.TrainConfig(steps=1, global_batch=16, seq_len=32))\n"


@pytest.fixture
def written(tmp_path: Path):
    def write(body: str) -> Path:
        path = tmp_path / "recipe.py"
        path.write_text(HEAD + body + TAIL)
        return path

    return write


def planned(recipe: Path, *overrides: str):
    return launch.plan_for(recipe, cluster=CLUSTER, facts=FACTS, overrides=overrides)


SPLIT = """
def model(vocab):
    whole = Decoder(SIZES)
    with ms.split(4):
        whole.model.layers = whole.model.layers
    return whole
"""
WHOLE = """
def model(vocab):
    whole = Decoder(SIZES)
    for layer in whole.model.layers:
        with ms.replicate():
            layer.mlp = layer.mlp
    return whole
"""

SHARED = """
class Shared(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.embed = nn.Embedding(vocab, 64)
        self.block = nn.Linear(64, 64)
        self.head = nn.Linear(64, vocab)

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(6):
            x = x + self.block(x).relu()
        return self.head(x)

def model(vocab):
    return Shared(vocab)
"""
MOODY = """
class Moody(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.embed = nn.Embedding(vocab, 64)
        self.head = nn.Linear(64, vocab)

    def forward(self, ids):
        x = self.embed(ids)
        if x.sum() > 0:
            x = x * 2
        return self.head(x)

def model(vocab):
    return Moody(vocab)
"""
EMPTY_EXPERTS = """
from mainspring.models.moe import MoeDecoder

def model(vocab):
    return MoeDecoder(MoeConfig(decoder=SIZES, experts=4, experts_per_token=2, expert_ffn=0))
"""
PLAIN_EXPERTS = EMPTY_EXPERTS.replace("expert_ffn=0", "expert_ffn=32")
PLAIN = "def model(vocab):\n    return Decoder(SIZES)\n"
VAST = "def model(vocab):\n    return Decoder(replace(SIZES, hidden=1 << 15, layers=400))\n"


def test_split_fixes_the_degree_of_tensor_parallelism(written) -> None:
    assert planned(written(SPLIT)).mesh.tp == 4
    with pytest.raises(SpecError, match="tp 2 was asked for, the recipe splits parts of the model over 4"):
        planned(written(SPLIT), "tp=2")
    with pytest.raises(SpecError, match=r"tp 3 does not divide .*heads 8 of layer"):
        planned(written(SPLIT.replace("split(4)", "split(3)")))


def test_replicate_keeps_a_part_whole_in_the_plan_and_in_its_execution(written) -> None:
    recipe = written(WHOLE)
    plan = planned(recipe, "tp=4", "pp=1", "zero=3", "fsdp=4", "dp=1", "cp=1")
    assert plan.replicate == ("model.layers.*.mlp",)
    loaded = load_recipe(recipe).recipe
    model, _, hints = launch.study(recipe, facts=FACTS, overrides=("tp=4",))
    assert hints.replicate == ("model.layers.*.mlp",)
    assert model.blocks[1].divisions == (("heads", 8), ("kv_heads", 4))
    found = dry_run(loaded, model, plan, rank=3, facts=FACTS)
    shapes = {held.name: held for held in found.held}
    up = shapes["model.layers.0.mlp.up_proj.weight"]
    q = shapes["model.layers.0.self_attn.q_proj.weight"]
    assert up.here[0] * 4 == up.whole[0]  # ZeRO's shards alone
    assert q.here[0] * 16 == q.whole[0]
    assert all(m.payload_bytes == m.predicted_bytes for m in found.messages)


def test_patterns_may_be_given_on_the_command_line_and_must_mean_something(written) -> None:
    recipe = written(PLAIN)
    plan = planned(recipe, "tp=2", 'replicate=["*.mlp"]')
    assert plan.replicate == ("*.mlp",)
    assert planned(recipe, "tp=2", 'replicate=["embedding"]').replicate == ("embedding",)
    with pytest.raises(SpecError, match="no module of the model is called 'nowhere'"):
        planned(recipe, 'replicate=["nowhere"]')
    with pytest.raises(SpecError, match="shall be split, and nothing in it can be divided"):
        planned(recipe, 'split=["model.norm"]')


def test_a_block_that_is_used_twice_is_planned_without_a_pipeline(written) -> None:
    recipe = written(SHARED)
    model, _, _ = launch.study(recipe, facts=FACTS)
    assert model.params == 512 * 64 + 64 * 64 + 64 + 64 * 512 + 512  # the shared block once
    assert model.flops_per_token >= 6 * 2 * 64 * 64
    assert not model.chain
    assert planned(recipe).mesh.pp == 1
    with pytest.raises(SpecError, match=r"could be cut: model\.block is one module that runs 6 times"):
        planned(recipe, "pp=2")


def test_a_forward_that_depends_on_values_is_refused_before_anything_starts(written) -> None:
    recipe = written(MOODY)
    with pytest.raises(SpecError, match="cannot be profiled without computing") as caught:
        planned(recipe)
    assert "tensor values" in caught.value.hint


@pytest.mark.parametrize(
    ("overrides", "words", "hint"),
    [
        (("dp=32",), "a global batch of 16 sequences is smaller than 32 replicas", "multiple of 32"),
        (("pp=9",), "pp 9 was asked for, recipe has 6 blocks to cut between", ""),
        (("ep=2",), "ep 2 was asked for, recipe has no experts", "divide"),
        (("tp=16",), "tp 16 does not divide heads 8", "2, 4"),
        (("schedule=1b1f",), "schedule", "1f1b"),
        (("sp=1",), "sp", ""),
    ],
)
def test_wishes_that_cannot_be_are_refused_with_their_numbers(
    written, overrides: tuple[str, ...], words: str, hint: str
) -> None:
    recipe = written(PLAIN)
    with pytest.raises(SpecError) as caught:
        planned(recipe, *overrides)
    assert words in str(caught.value)
    assert hint in f"{caught.value} {caught.value.hint}"


TUNED = """
def model(vocab):
    tuned = Decoder(SIZES)
    for name, parameter in tuned.named_parameters():
        parameter.requires_grad_("norm" in name or "lm_head" in name)
    return tuned
"""


def test_what_a_recipe_freezes_is_planned_without_gradients_and_optimiser_state(written) -> None:
    whole, tuned = (launch.plan_for(written(b), cluster=CLUSTER, facts=FACTS, ranks=1) for b in (PLAIN, TUNED))
    trained = 512 * 64 + (2 * 4 + 1) * 64
    assert tuned.memory.params_bytes == whole.memory.params_bytes
    assert tuned.memory.grads_bytes == 4 * trained
    assert tuned.memory.optimizer_bytes == 8 * trained
    assert tuned.time.step_s < whole.time.step_s


def test_experts_of_no_size_are_refused(written) -> None:
    recipe = written(EMPTY_EXPERTS)
    with pytest.raises(SpecError, match="expert_ffn must be at least 1, got 0"):
        planned(recipe)


def test_what_does_not_fit_says_by_how_much(written) -> None:
    recipe = written(PLAIN)
    model, config, _ = launch.study(recipe, facts=FACTS)
    tiny = build_cluster((build_device(memory_bytes=GIB // 4096), 2, 1))
    with pytest.raises(DoesNotFit, match="short") as caught:
        plan_training(model, tiny, config)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("body", "overrides", "words"),
    [
        (PLAIN, ("dp=32",), "a global batch of 16 sequences is smaller than 32 replicas"),
        (PLAIN, ("tp=16",), "tp 16 does not divide heads 8"),
        (PLAIN, ("schedule=1b1f",), "schedule"),
        (SHARED, ("pp=2",), "is one module that runs 6 times"),
        (MOODY, (), "cannot be profiled without computing"),
        (EMPTY_EXPERTS, (), "expert_ffn must be at least 1, got 0"),
        (PLAIN_EXPERTS, (), "Qwen3-MoE normalises queries and keys"),
        (VAST, (), "TiB short"),
    ],
)
def test_training_refuses_the_same_before_a_run_is_begun(
    written, settings: Settings, tmp_path: Path, body: str, overrides: tuple[str, ...], words: str
) -> None:
    (tmp_path / "docs.jsonl").write_text("{}\n")
    with connect(settings=settings) as workspace:
        data = workspace.store.publish("dataset", "docs", tmp_path / "docs.jsonl")
        with pytest.raises((SpecError, DoesNotFit)) as caught:
            workspace.train(written(body), data=data, overrides=overrides)
        assert words in str(caught.value)
        assert workspace.store.runs() == ()
    assert not list((Path(settings.home) / "runs").glob("*"))
