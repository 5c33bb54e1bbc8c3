"""Checkpoints know nothing of the plan that wrote them: any plan goes on from any other's, and to the hub's layout."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parallel_pool import CONFIG, MODELS, VOCAB, Expected, Order, even_stages, plain_pytorch, plan_of, train

from mainspring.spec import Mesh, Plan
from mainspring.testing.gangs import Pool

TWICE = even_stages(4)
PLANS: dict[str, Plan] = {
    "one": plan_of(Mesh()),
    "zero-3": plan_of(Mesh(fsdp=2), zero=3),
    "tp": plan_of(Mesh(tp=2)),
    "tp x zero-1": plan_of(Mesh(fsdp=2, tp=2), zero=1, sequence_parallel=True),
    "zbv": plan_of(Mesh(pp=2), schedule="zbv", stages=TWICE),
    "uneven pp x zero-2": plan_of(Mesh(pp=2, fsdp=2), zero=2, stages=(2, 4)),
    "3d": plan_of(Mesh(pp=2, fsdp=2, tp=2), zero=3),
}
FIRST = replace(CONFIG, checkpoint_every=CONFIG.steps)


@pytest.fixture(scope="module")
def oracles() -> dict[str, Expected]:
    return {model: plain_pytorch(model) for model in ("gpt2", "decoder", "moving")}


def assert_same(found: list, expected: Expected, first: int) -> None:
    np.testing.assert_allclose(found[0].losses, expected.losses[first:], rtol=0, atol=2e-6)
    for name, value in expected.state.items():
        np.testing.assert_allclose(found[0].state[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("model", ["decoder", "gpt2"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("one", "3d"),
        ("3d", "zbv"),
        ("zbv", "tp x zero-1"),
        ("tp x zero-1", "uneven pp x zero-2"),
        ("uneven pp x zero-2", "tp"),
        ("tp", "zero-3"),
        ("zero-3", "one"),
    ],
)
def test_a_plan_goes_on_where_another_stopped(
    pool: Pool, oracles: dict[str, Expected], model: str, before: str, after: str, tmp_path: Path
) -> None:
    """Two steps under one plan, three under the other: weights, both moments and counters travel."""
    one, other = PLANS[before], PLANS[after]
    pool.run(one.mesh.world, train, Order(one, tmp_path, model=model, config=FIRST, stop_at=2))
    found = pool.run(other.mesh.world, train, Order(other, tmp_path, model=model, config=FIRST))
    assert len(found[0].losses) == 3
    assert_same(found, oracles[model], 2)


@pytest.mark.parametrize(("before", "after"), [(Mesh(ep=4), Mesh(dp=2)), (Mesh(dp=2), Mesh(ep=2, fsdp=2))])
def test_experts_that_were_moved_are_found_again(
    pool: Pool, oracles: dict[str, Expected], before: Mesh, after: Mesh, tmp_path: Path
) -> None:
    one, other = plan_of(before), plan_of(after)
    stopped = pool.run(one.mesh.world, train, Order(one, tmp_path, model="moving", config=FIRST, stop_at=2))
    if before.ep > 1:
        assert any(slots != sorted(slots) for slots in stopped[0].slots.values())
    assert_same(
        pool.run(other.mesh.world, train, Order(other, tmp_path, model="moving", config=FIRST)), oracles["moving"], 2
    )


def test_a_run_that_is_resumed_under_its_own_plan_repeats_every_bit(pool: Pool, tmp_path: Path) -> None:
    plan = PLANS["3d"]
    straight = pool.run(8, train, Order(plan, tmp_path / "a", config=FIRST))
    pool.run(8, train, Order(plan, tmp_path / "b", config=FIRST, stop_at=2))
    resumed = pool.run(8, train, Order(plan, tmp_path / "b", config=FIRST))
    assert resumed[0].losses == straight[0].losses[2:]
    for name, value in straight[0].state.items():
        np.testing.assert_array_equal(resumed[0].state[name], value)


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_what_is_gathered_is_what_transformers_loads(pool: Pool, model: str, tmp_path: Path) -> None:
    found = pool.run(4, train, Order(plan_of(Mesh(pp=2, tp=2)), tmp_path, model=model))
    theirs = MODELS[model](VOCAB)
    missing, unexpected = theirs.load_state_dict(
        {name: torch.from_numpy(value) for name, value in found[0].state.items()}, strict=False
    )
    assert not unexpected
    tied = {"lm_head.weight"} if model == "gpt2" else set()
    assert set(missing) <= tied
