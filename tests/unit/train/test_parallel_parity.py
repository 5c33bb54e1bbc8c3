"""Every plan computes what one process computes, and every rank sends and holds what the planner says it does.

Five AdamW steps of plain PyTorch are the oracle of the first. Messages are compared one by one, and byte by byte.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from parallel_pool import (
    CONFIG,
    MODELS,
    SEQ_LEN,
    VOCAB,
    Expected,
    Order,
    Outcome,
    even_stages,
    masked_loss,
    plain_pytorch,
    plan_of,
    train,
)

from mainspring.models.profile import profile_module
from mainspring.models.structure import set_cache
from mainspring.plan.collectives import Key, collectives, held_bytes, moving
from mainspring.spec import Mesh, ModelSpec, Plan
from mainspring.testing.gangs import Pool
from mainspring.train.parallel.axes import Axes
from mainspring.train.parallel.loss import LossModule

LOSS_TOLERANCE, WEIGHT_TOLERANCE = 2e-6, 1e-5
# Beside what is predicted: which parameters replicas have used, and the other end of what is sent.
HARMLESS = {"used", "recv_"}

Trained = Callable[[str], tuple[list[Outcome], float]]
TWICE = even_stages(4)  # two stages on each of two pipeline ranks

CASES: dict[str, tuple[Plan, str]] = {
    "ddp": (plan_of(Mesh(dp=2)), "decoder"),
    "ddp uneven": (plan_of(Mesh(dp=2), counts=(2, 6)), "homemade"),
    "zero-1": (plan_of(Mesh(fsdp=2), zero=1), "decoder"),
    "zero-2": (plan_of(Mesh(fsdp=2), zero=2), "llama"),
    "zero-2 uneven": (plan_of(Mesh(fsdp=2), zero=2, counts=(6, 2)), "decoder"),
    "zero-1 on three": (plan_of(Mesh(fsdp=3), zero=1, counts=(3, 3, 2)), "qwen3"),
    "zero-2 on three": (plan_of(Mesh(fsdp=3), zero=2, counts=(2, 3, 3)), "gpt2"),
    "zero-1 on three, experts": (plan_of(Mesh(fsdp=3), zero=1, counts=(3, 3, 2)), "moe"),
    "zero-3": (plan_of(Mesh(fsdp=2), microbatch=2, zero=3), "gpt2"),
    "zero-3, encoder and decoder": (plan_of(Mesh(fsdp=2), zero=3), "t5"),
    "ddp, encoder and decoder": (plan_of(Mesh(dp=2)), "t5"),
    "hybrid": (plan_of(Mesh(dp=2, fsdp=2), zero=3), "qwen2"),
    "tp": (plan_of(Mesh(tp=2)), "decoder"),
    "tp qwen3": (plan_of(Mesh(tp=2)), "qwen3"),
    "tp llama": (plan_of(Mesh(tp=2)), "llama"),
    "tp gpt2": (plan_of(Mesh(tp=2)), "gpt2"),
    "tp of a user's module": (plan_of(Mesh(tp=2)), "homemade"),
    "tp but for the words": (plan_of(Mesh(tp=2), replicate=("embedding",)), "llama"),
    "tp sequence": (plan_of(Mesh(tp=2), sequence_parallel=True), "decoder"),
    "tp sequence gpt2": (plan_of(Mesh(tp=2), microbatch=2, sequence_parallel=True), "gpt2"),
    "tp sequence user's": (plan_of(Mesh(tp=2), sequence_parallel=True), "homemade"),
    "tp recompute": (plan_of(Mesh(tp=2), recompute="full"), "llama"),
    "tp sequence selective": (plan_of(Mesh(tp=2), sequence_parallel=True, recompute="selective"), "qwen3"),
    "tp in 2 copies": (plan_of(Mesh(tp=2), microbatch=2, copies=2), "decoder"),
    "tp sequence in 2 copies": (plan_of(Mesh(tp=2), microbatch=4, copies=2, sequence_parallel=True), "gpt2"),
    "tp recompute in 2 copies": (plan_of(Mesh(tp=2), microbatch=2, copies=2, recompute="full"), "llama"),
    "2d ddp x tp in 2 copies": (plan_of(Mesh(dp=2, tp=2), microbatch=2, copies=2), "qwen3"),
    "2d ddp x tp": (plan_of(Mesh(dp=2, tp=2)), "gpt2"),
    "2d zero-3 x tp": (plan_of(Mesh(fsdp=2, tp=2), zero=3), "decoder"),
    "2d zero-1 x tp sequence": (plan_of(Mesh(fsdp=2, tp=2), zero=1, sequence_parallel=True), "qwen3"),
    "gpipe": (plan_of(Mesh(pp=2), schedule="gpipe"), "decoder"),
    "1f1b": (plan_of(Mesh(pp=2)), "llama"),
    "1f1b gpt2": (plan_of(Mesh(pp=2), microbatch=2), "gpt2"),
    "1f1b user's": (plan_of(Mesh(pp=2)), "homemade"),
    "1f1b on 4": (plan_of(Mesh(pp=4)), "decoder"),
    "1f1b recompute": (plan_of(Mesh(pp=2), recompute="full"), "qwen2"),
    "1f1b selective": (plan_of(Mesh(pp=2), recompute="selective"), "decoder"),
    "interleaved": (plan_of(Mesh(pp=2), schedule="interleaved", stages=TWICE), "decoder"),
    "zero bubble": (plan_of(Mesh(pp=2), schedule="zero_bubble", stages=TWICE), "decoder"),
    "zbv": (plan_of(Mesh(pp=2), schedule="zbv", stages=TWICE), "gpt2"),
    "dualpipev": (plan_of(Mesh(pp=2), schedule="dualpipev", stages=TWICE), "decoder"),
    "only a head on the last stage": (plan_of(Mesh(pp=2), stages=(5, 1)), "decoder"),
    "only words on the first stage": (plan_of(Mesh(pp=2), stages=(1, 5)), "qwen3"),
    "pp x ddp": (plan_of(Mesh(pp=2, dp=2)), "decoder"),
    "pp x ddp, both uneven": (plan_of(Mesh(pp=2, dp=2), counts=(2, 6), stages=(4, 2)), "decoder"),
    "pp x zero-3": (plan_of(Mesh(pp=2, fsdp=2), zero=3), "decoder"),
    "pp x zero-1 uneven": (plan_of(Mesh(pp=2, fsdp=2), zero=1, counts=(2, 6)), "qwen3"),
    "zbv x zero-2": (plan_of(Mesh(pp=2, fsdp=2), zero=2, schedule="zbv", stages=TWICE), "decoder"),
    "pp x tp sequence": (plan_of(Mesh(pp=2, tp=2), sequence_parallel=True), "decoder"),
    "zero bubble x tp": (plan_of(Mesh(pp=2, tp=2), schedule="zero_bubble", stages=TWICE), "qwen3"),
    "cp": (plan_of(Mesh(cp=2)), "llama"),
    "cp gpt2": (plan_of(Mesh(cp=2), microbatch=2), "gpt2"),
    "cp zero-3": (plan_of(Mesh(cp=2), zero=3), "decoder"),
    "cp recompute": (plan_of(Mesh(cp=2), recompute="full"), "decoder"),
    "cp x fsdp": (plan_of(Mesh(cp=2, fsdp=2), zero=2), "qwen3"),
    "pp x cp x tp": (plan_of(Mesh(pp=2, cp=2, tp=2), microbatch=2, sequence_parallel=True), "decoder"),
    "frozen ddp": (plan_of(Mesh(dp=2), counts=(2, 6)), "tuned"),
    "frozen hybrid x tp sequence": (plan_of(Mesh(dp=2, fsdp=2, tp=2), zero=3, sequence_parallel=True), "tuned"),
    "frozen 1f1b x ddp": (plan_of(Mesh(pp=2, dp=2)), "tuned"),
    "frozen words on the first stage": (plan_of(Mesh(pp=2), stages=(1, 5)), "tuned"),
    "frozen pp x ep x zero-1 moving": (plan_of(Mesh(pp=2, ep=2, fsdp=2), zero=1), "tuned moe"),
    "experts on one rank": (plan_of(Mesh(dp=2)), "moe"),
    "ep": (plan_of(Mesh(ep=2)), "moe"),
    "ep, nothing for one rank": (plan_of(Mesh(ep=2)), "lopsided"),
    "ep moving": (plan_of(Mesh(ep=4)), "moving"),
    "ep recompute": (plan_of(Mesh(ep=2), recompute="full"), "moe"),
    "ep x dp": (plan_of(Mesh(ep=2, dp=2)), "moe"),
    "ep x zero-3": (plan_of(Mesh(ep=2, fsdp=2), zero=3), "moe"),
    "ep x zero-1 moving": (plan_of(Mesh(ep=2, fsdp=2), zero=1), "moving"),
    "ep x tp sequence": (plan_of(Mesh(ep=2, tp=2), microbatch=2, sequence_parallel=True), "moe"),
    "ep x cp": (plan_of(Mesh(ep=2, cp=2)), "moe"),
    "pp x ep zbv moving": (plan_of(Mesh(pp=2, ep=2), schedule="zbv", stages=TWICE), "moving"),
    "pp x ep x zero-2 moving": (plan_of(Mesh(pp=2, ep=2, fsdp=2), zero=2), "moving"),
    "3d": (plan_of(Mesh(pp=2, fsdp=2, tp=2), zero=3, recompute="full"), "decoder"),
    "3d interleaved sequence": (
        plan_of(Mesh(pp=2, fsdp=2, tp=2), zero=2, sequence_parallel=True, schedule="interleaved", stages=TWICE),
        "decoder",
    ),
}


@dataclass(frozen=True)
class Row:
    """How far a plan's numbers were from the oracle's, and what its five steps took."""

    case: str
    model: str
    mesh: str
    loss: float
    weights: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.case:34}{self.model:10}{self.mesh:22}{self.loss:9.1e}{self.weights:10.1e}{self.seconds:7.1f}"


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """Rows of a table that is printed when all plans have run."""
    rows: list[Row] = []
    yield rows
    head = f"{'plan':34}{'model':10}{'mesh':22}{'loss off':>9}{'weights':>10}{'s':>7}"
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        print("", head, *rows, f"{len(rows)} plans in {sum(row.seconds for row in rows):.0f} s", sep="\n")


@pytest.fixture(scope="module")
def trained(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What each rank of a case saw, and the seconds that took; a case is run once."""

    @cache
    def run(case: str) -> tuple[list[Outcome], float]:
        plan, model = CASES[case]
        started = time.perf_counter()
        found = pool.run(plan.mesh.world, train, Order(plan, tmp_path_factory.mktemp("case"), model=model, counts=True))
        return found, time.perf_counter() - started

    return run


@pytest.fixture(scope="module")
def oracles() -> dict[str, Expected]:
    return {}


@pytest.mark.parametrize("case", CASES)
def test_a_plan_computes_what_plain_pytorch_computes(
    trained: Trained, oracles: dict[str, Expected], table: list[Row], case: str
) -> None:
    plan, model = CASES[case]
    if model not in oracles:
        oracles[model] = plain_pytorch(model)
    expected = oracles[model]
    assert max(expected.norms) > CONFIG.clip_norm, "clipping must matter in this test"
    found, seconds = trained(case)
    loss = max(abs(a - b) for a, b in zip(found[0].losses, expected.losses, strict=True))
    weights = max(float(np.abs(found[0].state[name] - value).max()) for name, value in expected.state.items())
    table.append(Row(case, model, plan.mesh.label, loss, weights, seconds))
    np.testing.assert_allclose(found[0].losses, expected.losses, rtol=0, atol=LOSS_TOLERANCE)
    np.testing.assert_allclose(found[0].norms, expected.norms, rtol=1e-5)
    assert found[0].state.keys() == expected.state.keys()
    for name, value in expected.state.items():
        np.testing.assert_allclose(found[0].state[name], value, rtol=0, atol=WEIGHT_TOLERANCE, err_msg=name)
    for other in found[1:]:
        assert other.losses == found[0].losses
        assert not other.state


@cache
def profile_of(model: str) -> ModelSpec:
    with torch.device("meta"):
        module = LossModule(set_cache(MODELS[model](VOCAB), used=True), masked_loss)
        row = torch.zeros((1, CONFIG.seq_len + 1), dtype=torch.int64)
        return profile_module(module, (row,), name=model, seq_len=SEQ_LEN)


@pytest.mark.parametrize("case", CASES)
def test_predicted_messages_and_bytes_are_those_sent(trained: Trained, case: str) -> None:
    plan, name = CASES[case]
    model = profile_of(name)
    found = [outcome.sent for outcome in trained(case)[0]]
    for rank, sent in enumerate(found):
        counts = dict(sent.counts)
        expected = predicted(model, plan, rank, sent.moved)
        exchange = ("all_to_all", plan.mesh.ep)
        if exchange in expected:  # how many bytes is the tokens' choice; how many in all is not
            line = Axes(plan.mesh, rank, torch.device("cpu")).ranks("ep")
            total = sum(found[other].counts[exchange][1] for other in line)
            assert total == expected[exchange][1] * plan.mesh.ep
            counts[exchange] = (counts[exchange][0], expected[exchange][1])
        assert counts == expected, f"rank {rank}"
        assert sent.held_bytes == held_bytes(model, plan, rank), f"rank {rank}"
        assert sent.other.keys() <= HARMLESS
    if "moving" in case:
        assert any(sent.moved for sent in found), "this test is about experts that move"


def predicted(model: ModelSpec, plan: Plan, rank: int, moved: frozenset[str]) -> dict[Key, tuple[int, int]]:
    """Messages and bytes of a step at whose end the experts of layers `moved` change places."""
    blocks = {int(name.split(".")[2]) + 1 for name in moved}  # model.layers.0.mlp follows the embedding
    total: Counter[Key] = Counter()
    sizes: Counter[Key] = Counter()
    for part in (collectives(model, plan, rank), moving(model, plan, rank, blocks=blocks)):
        for key, amount in part.items():
            total[key] += amount.messages
            sizes[key] += amount.payload_bytes
    return {key: (total[key], sizes[key]) for key in total}


@pytest.mark.parametrize("case", ["tp", "1f1b on 4", "zbv", "3d interleaved sequence"])
def test_a_held_out_batch_is_tested_alike(pool: Pool, case: str, tmp_path: Path) -> None:
    plan, model = CASES[case]
    config = replace(CONFIG, steps=2, eval_every=2)
    alone = pool.run(1, train, Order(plan_of(Mesh()), tmp_path / "alone", model=model, config=config))[0]
    found = pool.run(plan.mesh.world, train, Order(plan, tmp_path / "plan", model=model, config=config))
    assert alone.held_out is not None
    assert abs(found[0].held_out - alone.held_out) <= LOSS_TOLERANCE


def test_moving_experts_between_ranks_changes_no_bit(pool: Pool, tmp_path: Path) -> None:
    """But of the gradient's norm, which is a sum over ranks in their order."""
    plan, config = plan_of(Mesh(ep=4)), replace(CONFIG, clip_norm=0.0)
    stays = pool.run(4, train, Order(plan, tmp_path / "a", model="staying", config=config))
    moves = pool.run(4, train, Order(plan, tmp_path / "b", model="moving", config=config))
    assert moves[0].slots != stays[0].slots
    assert moves[0].losses == stays[0].losses
    np.testing.assert_allclose(moves[0].norms, stays[0].norms, rtol=1e-6)
    for name, value in stays[0].state.items():
        np.testing.assert_array_equal(moves[0].state[name], value)
