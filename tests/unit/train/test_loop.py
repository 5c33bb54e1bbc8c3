"""The loop on real gangs: every layout computes what plain PyTorch computes."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_gang import (
    CONFIG,
    GLOBAL_BATCH,
    LOSSES,
    MODELS,
    VOCAB,
    Order,
    Outcome,
    RandomBatches,
    plan_of,
    run_gang,
    task_of,
    train_rank,
)

from mainspring.spec import Mesh, SpecError, TrainConfig
from mainspring.train.loop import lr_factor
from mainspring.train.parallel import repeated_blocks, share_of

DP2, FSDP2 = Mesh(dp=2), Mesh(fsdp=2)


@dataclass
class Oracle:
    steps: list[tuple[float, float]]
    state: dict[str, np.ndarray]


def plain_pytorch(model_name: str, loss_name: str, config: TrainConfig = CONFIG) -> Oracle:
    """The oracle: the loop everybody writes, whole batches, one process, torch's own clipping and schedule."""
    torch.manual_seed(config.seed)
    model, batches, steps = MODELS[model_name](VOCAB), RandomBatches(), []
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), foreach=False)
    for step in range(config.steps):
        optimizer.zero_grad()
        total = LOSSES[loss_name](model, torch.from_numpy(batches.batch(step)))
        loss = total if isinstance(total, torch.Tensor) else total[0] / total[1]
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * lr_factor(step, config)
        optimizer.step()
        steps.append((loss.item(), norm.item()))
    return Oracle(steps, {name: p.detach().numpy() for name, p in model.named_parameters()})


def assert_agrees(outcome: Outcome | None, oracle: Oracle) -> None:
    assert outcome is not None
    assert not outcome.error
    for found, (loss, norm) in zip(outcome.steps, oracle.steps, strict=True):
        assert abs(found.loss - loss) <= 1e-5
        assert abs(found.grad_norm - norm) <= 1e-5 * max(1.0, norm)
    for name, value in oracle.state.items():
        np.testing.assert_allclose(outcome.state[name], value, atol=1e-5)


@pytest.mark.parametrize(("model", "loss"), [("decoder", "masked"), ("tied", "mean")])
@pytest.mark.parametrize("microbatch", [1, 2, GLOBAL_BATCH])
def test_one_rank_computes_what_plain_pytorch_computes_whatever_the_micro_batch(tmp_path, model, loss, microbatch):
    order = Order(plan_of(microbatch=microbatch), tmp_path, model=model, loss=loss)
    assert_agrees(train_rank(task_of(folder=tmp_path), order), plain_pytorch(model, loss))


@pytest.mark.parametrize(
    ("plan", "model"),
    [
        (plan_of(DP2), "tied"),
        (plan_of(DP2, counts=(1, 3)), "decoder"),
        (plan_of(FSDP2), "tied"),
        (plan_of(FSDP2, recompute="full"), "decoder"),
        (plan_of(FSDP2, regather=False, counts=(3, 1)), "tied"),
        (plan_of(Mesh(dp=2, fsdp=2)), "decoder"),
    ],
    ids=["ddp", "ddp-uneven", "zero3", "zero3-recompute", "zero2-uneven", "hybrid"],
)
def test_every_layout_computes_what_plain_pytorch_computes(tmp_path, plan, model):
    """Losses, gradient norms before clipping, and clipped updates, with rows of unequal weight."""
    oracle = plain_pytorch(model, "masked")
    assert any(norm > CONFIG.clip_norm for _, norm in oracle.steps), "clipping must matter in this test"
    outcomes = run_gang(Order(plan, tmp_path, model=model))
    assert_agrees(outcomes[0], oracle)
    for outcome in outcomes[1:]:
        assert outcome is not None
        assert outcome.losses == outcomes[0].losses
        assert outcome.state == {}


@pytest.mark.parametrize(("mesh", "model"), [(DP2, "rare"), (FSDP2, "rare")], ids=["ddp", "zero3"])
def test_layers_that_a_batch_does_not_use_are_no_problem_on_several_ranks(tmp_path, mesh, model):
    """One is never used, one by some micro-batches of some ranks; plain PyTorch on one device does not mind either."""
    plan = plan_of(mesh, microbatch=1)
    alone = train_rank(task_of(folder=tmp_path), Order(plan_of(microbatch=1), tmp_path / "one", model=model))
    outcome = run_gang(Order(plan, tmp_path / "two", model=model))[0]
    assert outcome is not None
    assert not outcome.error
    np.testing.assert_allclose(outcome.losses, alone.losses, atol=1e-5)
    for name, value in alone.state.items():
        if not name.endswith("seen"):  # each rank counts its own calls
            np.testing.assert_allclose(outcome.state[name], value, atol=1e-5)


def test_an_evaluation_leaves_what_the_recipe_has_frozen_frozen(tmp_path):
    def losses(every: int) -> list[float]:
        config = replace(CONFIG, eval_every=every)
        order = Order(plan_of(), tmp_path / str(every), model="frozen", config=config)
        return train_rank(task_of(folder=tmp_path), order).losses

    assert losses(1) == losses(0)


def test_numpys_global_generator_is_a_function_of_the_step_too(tmp_path):
    one, again = (
        train_rank(task_of(folder=tmp_path), Order(plan_of(), tmp_path / name, loss="numpy")) for name in "ab"
    )
    assert one.losses == again.losses
    assert len(set(one.losses)) == CONFIG.steps


def test_a_loss_that_counts_nothing_is_told_as_that(tmp_path):
    outcome = train_rank(task_of(folder=tmp_path), Order(plan_of(), tmp_path, loss="blind"))
    assert outcome.error.startswith("Failed: step 1: the recipe's loss counted nothing")


def test_dropout_falls_alike_on_one_rank_and_on_two(tmp_path):
    one = train_rank(task_of(folder=tmp_path), Order(plan_of(), tmp_path / "one", model="dropped"))
    two = run_gang(Order(plan_of(DP2), tmp_path / "two", model="dropped"))[0]
    assert two is not None
    np.testing.assert_allclose(two.losses, one.losses, atol=1e-5)
    undropped = train_rank(task_of(folder=tmp_path), Order(plan_of(), tmp_path / "three", model="tied"))
    assert abs(undropped.losses[0] - one.losses[0]) > 1e-3


@pytest.mark.parametrize("plan", [plan_of(DP2), plan_of(FSDP2, regather=False)], ids=["ddp", "zero2"])
def test_rebuilding_the_process_groups_changes_no_bit(tmp_path, plan):
    config = replace(CONFIG, eval_every=2)
    straight = run_gang(Order(plan, tmp_path / "a", config=config))[0]
    rebuilt = run_gang(Order(plan, tmp_path / "b", config=config, rebuild_at=2))[0]
    assert straight is not None
    assert rebuilt is not None
    assert rebuilt.steps == straight.steps
    assert [step.held_out_loss is not None for step in straight.steps] == [False, True, False, True, False]
    for name, value in straight.state.items():
        np.testing.assert_array_equal(rebuilt.state[name], value)


def test_bf16_stays_near_fp32_and_keeps_fp32_weights(tmp_path):
    order = Order(plan_of(precision="bf16"), tmp_path, config=replace(CONFIG, precision="bf16"))
    narrow = train_rank(task_of(folder=tmp_path), order)
    wide = plain_pytorch("decoder", "masked")
    errors = [abs(found.loss - loss) for found, (loss, _) in zip(narrow.steps, wide.steps, strict=True)]
    assert 0 < max(errors) < 0.05
    assert {value.dtype for value in narrow.state.values()} == {np.dtype("float32")}


def test_a_loss_that_is_not_finite_stops_every_rank_naming_the_step(tmp_path):
    bad = next(s for s in range(CONFIG.steps) if (RandomBatches().batch(s)[::2, 0] % 5 == 2).any())
    for outcome in run_gang(Order(plan_of(DP2), tmp_path, loss="exploding")):
        assert outcome is not None
        assert outcome.error.startswith(f"Failed: step {bad + 1}: the loss is nan")
        assert len(outcome.steps) == bad


@given(
    steps=st.integers(1, 300),
    warmup=st.integers(0, 300),
    low=st.floats(0, 1),
)
def test_the_schedule_warms_up_to_its_peak_and_falls_to_its_floor(steps, warmup, low):
    config = TrainConfig(steps=steps, global_batch=1, seq_len=1, warmup_steps=warmup, min_lr_ratio=low)
    factors = [lr_factor(step, config) for step in range(steps)]
    peak = min(warmup, steps)
    assert factors[:peak] == pytest.approx([(step + 1) / warmup for step in range(peak)])
    assert all(after <= before + 1e-12 for before, after in zip(factors[peak:], factors[peak + 1 :], strict=False))
    if steps > warmup:
        assert factors[-1] == pytest.approx(low)
    assert all(0 <= factor <= 1 + 1e-12 for factor in factors)


def test_the_schedule_is_half_way_down_half_way_through():
    config = TrainConfig(steps=110, global_batch=1, seq_len=1, warmup_steps=10, min_lr_ratio=0.2)
    assert lr_factor(59, config) == pytest.approx(0.6)
    assert lr_factor(34, config) == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5))
def test_the_shares_of_all_ranks_make_up_the_global_batch(counts, rows):
    plan = plan_of(Mesh(dp=len(counts)), counts=tuple(counts), microbatch=rows, global_batch=sum(counts) * rows)
    seen: list[int] = []
    for rank in range(len(counts)):
        share = share_of(plan, rank)
        seen += range(share.first, share.first + share.all_rows)
    assert seen == list(range(plan.global_batch))


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (plan_of(DP2, counts=(4, 0)), "at least one"),
        (plan_of(DP2, counts=(1, 2)), "make 6 rows, the global batch has 8"),
        (plan_of(FSDP2, counts=(1, 3)), "wait for ever"),
    ],
)
def test_a_plan_this_loop_cannot_run_is_refused_before_anything_starts(plan, complaint):
    with pytest.raises(SpecError, match=complaint):
        share_of(plan, 0)


def test_blocks_that_share_a_parameter_with_the_outside_are_not_sharded_on_their_own():
    model = MODELS["tied"](VOCAB)
    assert len(repeated_blocks(model)) == 2
    model.blocks[1].inner.weight = model.blocks[0].inner.weight
    assert repeated_blocks(model) == []


def test_nothing_is_left_of_a_gang_in_this_process(tmp_path: Path):
    train_rank(task_of(folder=tmp_path), Order(plan_of(), tmp_path, config=replace(CONFIG, steps=1)))
    assert not torch.distributed.is_initialized()
