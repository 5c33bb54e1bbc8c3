"""Muon beside AdamW as one optimiser: who moves what, on any layout, and across a resume."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from muon_gang import matrices, move_sharded, moved
from training_gang import CONFIG, Order, RandomBatches, decoder, mean_loss, plan_of, run_gang, task_of, tied, train_rank

from mainspring.spec import Mesh
from mainspring.testing.gangs import Pool
from mainspring.train.muon import REST, muon


def test_matrices_of_blocks_move_by_orthogonal_steps_and_the_rest_faster():
    """Muon's update has singular values near one; scaled by 0.2 sqrt(longer side) its elements have RMS 0.2 lr."""
    model = decoder(48)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = muon(model, replace(CONFIG, weight_decay=0.0))
    mean_loss(model, torch.from_numpy(RandomBatches().batch(0))).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]) / CONFIG.lr
        if parameter.ndim == 2 and "layers" in name:
            values = torch.linalg.svdvals(moved / (0.2 * max(moved.shape) ** 0.5))
            assert values.median() > 0.5, name
            assert values.max() < 1.3, name
        else:
            # The first step of Adam is the sign of the gradient.
            assert 0.9 * REST < moved.abs().max() < 1.001 * REST, name


def test_every_parameter_has_one_owner_and_shared_ones_are_adamws():
    model = tied(48)
    first, second = muon(model, CONFIG).param_groups
    owned = [id(parameter) for group in (first, second) for parameter in group["params"]]
    assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())
    assert id(model.embed.weight) in {id(parameter) for parameter in second["params"]}
    assert {parameter.ndim for parameter in first["params"]} == {2}


@pytest.mark.parametrize("world", [2, 3])
def test_shards_move_bit_for_bit_like_whole_matrices_in_two_messages_a_step(world):
    pool = Pool()
    try:
        answers = pool.run(world, move_sharded, None)
    finally:
        pool.close()
    for found, counts in answers:
        for ours, whole in zip(found, moved(matrices()), strict=True):
            torch.testing.assert_close(ours, whole.detach(), rtol=0, atol=0)
        assert {key: messages for key, (messages, _) in counts.items()} == {("all_to_all", world): 2}


@pytest.mark.parametrize("mesh", [Mesh(dp=2), Mesh(fsdp=2)], ids=["ddp", "zero3"])
def test_two_ranks_learn_what_one_learns(tmp_path, mesh):
    """Loosely: the orthogonalisation is in bf16, which turns a last bit of a gradient into a third digit."""
    alone = train_rank(task_of(folder=tmp_path), Order(plan_of(), tmp_path / "one", optimizer="muon"))
    outcome = run_gang(Order(plan_of(mesh), tmp_path / "two", optimizer="muon"))[0]
    assert outcome is not None
    assert not outcome.error
    np.testing.assert_allclose(outcome.losses, alone.losses, atol=5e-3)
    adamw = train_rank(task_of(folder=tmp_path), Order(plan_of(), tmp_path / "adamw"))
    assert abs(adamw.losses[-1] - alone.losses[-1]) > 2e-2


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    saving = replace(CONFIG, steps=6, checkpoint_every=2)
    plan = replace(plan_of(Mesh(dp=2)), steps=6)
    straight = run_gang(Order(plan, tmp_path / "a", config=saving, optimizer="muon"))[0]
    order = Order(plan, tmp_path / "b", config=saving, optimizer="muon", kill_at=5, waits_for_saves=True)
    assert run_gang(order)[0] is None
    resumed = run_gang(replace(order, kill_at=0))[0]
    assert straight is not None
    assert resumed is not None
    assert resumed.resumed_at == 4
    assert resumed.steps == straight.steps[4:]
