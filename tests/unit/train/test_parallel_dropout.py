"""Dropout falls where it falls on one device, whatever the plan, and nowhere twice."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from parallel_pool import CONFIG, Order, even_stages, plan_of, train, trainer_of
from torch import nn

from mainspring.spec import Mesh, Plan, Task
from mainspring.testing.gangs import Pool

FREE = replace(CONFIG, clip_norm=0.0, steps=2)  # norms would be scaled alike, and hide a difference
TIMES = {"microbatch": 2}
COPIES = plan_of(Mesh(tp=2), copies=2, **TIMES)


@pytest.fixture(scope="module")
def alone(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> list:
    return pool.run(1, train, Order(plan_of(Mesh(), **TIMES), tmp_path_factory.mktemp("one"), "dropping", FREE))


def drops(task: Task, order: Order) -> dict[str, np.ndarray]:
    """What each dropout of this rank makes zero in the first forward that counts."""
    seen: dict[str, np.ndarray] = {}
    with trainer_of(task, order) as trainer:
        for piece in trainer._parallel._pieces.values():
            for name, module in piece.model.named_modules():
                if isinstance(module, nn.Dropout) and module.p:
                    module.register_forward_hook(lambda _, __, out, n=name: seen.update({n: (out == 0).numpy()}))
        next(trainer.steps())
    return seen


@pytest.mark.parametrize(
    "plan",
    [
        plan_of(Mesh(dp=2), **TIMES),
        plan_of(Mesh(fsdp=2), zero=3, recompute="full", **TIMES),
        plan_of(Mesh(tp=2), **TIMES),
        plan_of(Mesh(pp=2), **TIMES),
        plan_of(Mesh(pp=2), schedule="zbv", stages=even_stages(4), **TIMES),
    ],
    ids=["replicas", "zero-3, recomputed", "tensor", "stages", "zbv"],
)
def test_losses_are_those_of_one_device(pool: Pool, alone: list, plan: Plan, tmp_path: Path) -> None:
    found = pool.run(plan.mesh.world, train, Order(plan, tmp_path, "dropping", FREE))
    np.testing.assert_allclose(found[0].losses, alone[0].losses, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found[0].norms, alone[0].norms, rtol=1e-5)


def test_copies_that_are_computed_again_drop_the_same(pool: Pool, tmp_path: Path) -> None:
    kept = pool.run(2, train, Order(COPIES, tmp_path / "kept", "dropping", FREE))
    stages = tuple(replace(stage, recompute="full") for stage in COPIES.stages)
    again = pool.run(2, train, Order(replace(COPIES, stages=stages), tmp_path / "again", "dropping", FREE))
    assert kept[0].losses[0] == again[0].losses[0]
    np.testing.assert_allclose(kept[0].norms, again[0].norms, rtol=1e-6)


@pytest.mark.parametrize(
    "plan",
    [plan_of(Mesh(tp=2), sequence_parallel=True), plan_of(Mesh(cp=2))],
    ids=["tensor and sequence", "context"],
)
def test_two_parts_of_a_sequence_drop_apart(pool: Pool, plan: Plan, tmp_path: Path) -> None:
    one, other = pool.run(2, drops, Order(plan, tmp_path, "dropping", FREE))
    names = [name for name in one if ".h." in name]
    assert len(names) >= 4
    for name in names:
        assert not (one[name] == other[name]).all(), name
    for first, second in pairwise(names):
        assert not (one[first] == one[second]).all(), (first, second)


def test_heads_of_two_ranks_drop_apart_and_the_rest_alike(pool: Pool, tmp_path: Path) -> None:
    one, other = pool.run(2, drops, Order(plan_of(Mesh(tp=2)), tmp_path, "inside", FREE))
    inside = [name for name in one if name.endswith("widen.drop")]
    outside = [name for name in one if name not in inside]
    assert inside
    assert outside
    for name in inside:
        assert not (one[name] == other[name]).all(), name
    for name in outside:
        assert (one[name] == other[name]).all(), name
