"""What a plan must not lose: buffers, frozen parameters, what an optimiser keeps, and a checkpoint one rank fails."""

import logging
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import parallel_pool
import pytest
import torch
import torch.distributed as dist
from parallel_pool import CONFIG, LAYERS, SEQ_LEN, VOCAB, Homemade, Unnamed, batches, masked_loss, plan_of, untied_qwen3
from torch import Tensor, nn
from torch.optim import Optimizer

from mainspring.models.structure import ghost, read_structure
from mainspring.spec import Mesh, Plan, Task, TrainConfig
from mainspring.testing.gangs import PATIENCE_S, FileGroup, Pool
from mainspring.train.loop import Trainer, TrainingData
from mainspring.train.marks import MARKER
from mainspring.train.muon import muon
from mainspring.train.parallel import local
from mainspring.train.parallel.clip import square_part
from mainspring.train.parallel.loss import LossModule
from mainspring.train.recipe import LoadedRecipe, Recipe, adamw
from mainspring.train.worker import _keep_last_checkpoint

SHORT = replace(CONFIG, steps=3)
ONE = plan_of(Mesh(), stages=(LAYERS + 2,))


class Turned(Unnamed):
    """A block whose result lies in memory the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(1, 2).contiguous().transpose(1, 2)


class Places(nn.Embedding):
    """A table that is looked up in a manner of its own."""

    def forward(self, mask: Tensor, offset: int = 0, *, places: Tensor) -> Tensor:
        return super().forward(places + offset) * mask[..., None]


class Measured(Homemade):
    """Statistics after the blocks, in a module and in a buffer of the model's own; a first parameter of integers."""

    def __init__(self, vocab: int) -> None:
        super().__init__(vocab)
        self.places = nn.Parameter(torch.arange(vocab), requires_grad=False)
        self.positions = Places(SEQ_LEN, 32)
        self.tower = nn.Sequential(*(Turned() for _ in range(LAYERS)))
        self.statistics = nn.ModuleList([nn.BatchNorm1d(32) for _ in range(6)])
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        x = self.words(self.places[ids]) + self.positions(torch.ones_like(ids), places=places)
        x = self.norm(self.tower(x)).transpose(1, 2)
        for module in self.statistics:
            x = module(x)
        self.calls += 1
        return self.score(x.transpose(1, 2))


def frozen_ends(vocab: int) -> nn.Module:
    """Both ends of the pipeline hold its tied table and its positions, and train neither."""
    model = Homemade(vocab)
    model.words.weight.requires_grad_(False)
    model.places.requires_grad_(False)
    return model


def frozen_bottom(vocab: int) -> nn.Module:
    """A chain of two blocks: what comes before them has nothing to train."""
    model = untied_qwen3(vocab)
    model.model.embed_tokens.requires_grad_(False)
    for layer in list(model.model.layers)[:2]:
        layer.requires_grad_(False)
    return model


def of_everything(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Knows frozen parameters too, and would decay them if they had a gradient."""
    return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.1)


def of_trained(model: nn.Module, config: TrainConfig) -> Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=config.lr)


def adafactor(model: nn.Module, config: TrainConfig) -> Optimizer:
    return torch.optim.Adafactor(model.parameters(), lr=config.lr)


class Counting(torch.optim.SGD):
    """Counts its steps in its groups, as schedule-free optimisers do."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + self.amount

    @property
    def amount(self) -> int:
        return 1


class Divided(Counting):
    """Counts something else on each rank, from its second step on."""

    @property
    def amount(self) -> int:
        return 1 + dist.get_rank() * self.param_groups[0].get("k", 0)


OPTIMIZERS: dict[str, Any] = {
    "adamw": adamw,
    "muon": muon,
    "of everything": of_everything,
    "of trained": of_trained,
    "adafactor": adafactor,
    "counting": lambda model, config: Counting(model.parameters(), lr=config.lr),
    "divided": lambda model, config: Divided(model.parameters(), lr=config.lr),
}
MODELS: dict[str, Any] = {
    **parallel_pool.MODELS,
    "measured": Measured,
    "frozen ends": frozen_ends,
    "frozen bottom": frozen_bottom,
}


@dataclass(frozen=True)
class Order:
    """What a gang does. While it saves step `unstaged`, rank 1 has no memory for the copies."""

    plan: Plan
    folder: Path
    model: str = "decoder"
    optimizer: str = "adamw"
    config: TrainConfig = SHORT
    stop_at: int = 0
    unstaged: int = 0


@dataclass
class Outcome:
    """What one rank saw."""

    losses: list[float] = field(default_factory=list)
    before: dict[str, np.ndarray] = field(default_factory=dict)
    buffers: dict[str, np.ndarray] = field(default_factory=dict)
    state: dict[str, np.ndarray] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    gradients: set[str] = field(default_factory=set)
    save_errors: tuple[str, ...] = ()


def train(task: Task, order: Order) -> Outcome:
    """One rank's life."""
    torch.set_num_threads(1)
    recipe = Recipe(
        model=MODELS[order.model], loss=masked_loss, optimizer=OPTIMIZERS[order.optimizer], config=order.config
    )
    loaded = LoadedRecipe(recipe=recipe, path=Path("recipe.py"), digest="0" * 64)
    data, group = TrainingData(train=batches(), facts={"vocab": VOCAB}), FileGroup(task, timeout_s=PATIENCE_S / 2)
    trainer, outcome = Trainer(loaded, order.plan, group, data=data, folder=order.folder), Outcome()
    try:
        trainer.restore()
        outcome.before = arrays(trainer)
        if task.rank == 1 and order.unstaged:
            _forget_memory(trainer, order.unstaged)
        for result in trainer.steps():
            outcome.losses.append(result.loss)
            if result.step == order.stop_at:
                trainer.save()
                break
        named = dict(trainer.model.named_parameters())
        outcome.buffers = {name: value for name, value in arrays(trainer).items() if name not in named}
        outcome.gradients = {name for name, parameter in named.items() if parameter.grad is not None}
        outcome.groups = [{"k": group.get("k")} for group in trainer._optimizer.param_groups]
        outcome.state = {name: tensor.numpy() for name, tensor in trainer.full_state().items()}
        outcome.save_errors = trainer.save_errors
    finally:
        trainer.close()
    return outcome


def arrays(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: local(tensor).detach().clone().numpy() for name, tensor in trainer._parallel.tensors().items()}


def _forget_memory(trainer: Trainer, step: int) -> None:
    """The copies for the checkpoint of `step` fail here."""
    stager = trainer._checkpoints._stager
    stage = stager.stage

    def failing(tensors: Any) -> Any:
        if trainer.step != step:
            return stage(tensors)
        failed = Future[Any]()
        failed.set_exception(MemoryError("no memory for the copies"))
        return failed

    stager.stage = failing


def assert_same(found: list[Outcome], expected: list[Outcome], *, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found[0].losses, expected[0].losses, rtol=0, atol=2e-6)
    assert found[0].state.keys() == expected[0].state.keys()
    for name, value in expected[0].state.items():
        np.testing.assert_allclose(found[0].state[name], value, rtol=0, atol=tolerance, err_msg=name)


def test_buffers_of_a_checkpoint_are_all_of_one_replica(pool: Pool, tmp_path: Path) -> None:
    found = pool.run(2, train, Order(plan_of(Mesh(dp=2)), tmp_path, model="measured"))
    resumed = pool.run(1, train, Order(ONE, tmp_path, model="measured"))[0]
    running = [name for name in found[0].buffers if "running" in name]
    assert len(running) == 12
    for name in running:
        assert not np.array_equal(found[0].buffers[name], found[1].buffers[name]), "replicas see other rows"
        np.testing.assert_array_equal(resumed.before[name], found[0].buffers[name], err_msg=name)
        np.testing.assert_array_equal(found[0].state[name], found[0].buffers[name], err_msg=name)


@pytest.mark.parametrize("schedule", ["1f1b", "zbv"])
def test_what_follows_the_blocks_keeps_its_buffers_on_a_pipeline(pool: Pool, schedule: str, tmp_path: Path) -> None:
    """And its blocks may return tensors of any layout, and its tables be called in any way."""
    stages = (3, 3) if schedule == "1f1b" else (1, 2, 2, 1)
    plan = plan_of(Mesh(pp=2), schedule=schedule, stages=stages)
    expected = pool.run(1, train, Order(ONE, tmp_path / "one", model="measured"))
    found = pool.run(2, train, Order(plan, tmp_path / "two", model="measured"))
    assert expected[0].state["calls"] == SHORT.steps * len(batches().batch(0, 0, 8))
    # What a batch norm takes away has no gradient but noise, which Adam makes a step of.
    assert_same(found, expected, tolerance=2e-3)
    assert found[0].state["statistics.0.num_batches_tracked"] == expected[0].state["calls"]
    resumed = pool.run(1, train, Order(ONE, tmp_path / "two", model="measured"))
    for name in ("calls", "statistics.5.running_mean"):
        np.testing.assert_array_equal(resumed[0].state[name], found[0].state[name])


def test_buffers_belong_to_what_follows_the_blocks_when_it_alone_changes_them() -> None:
    row = torch.zeros((1, SEQ_LEN + 1), dtype=torch.int64, device="meta")
    with torch.device("meta"):
        model = ghost(Measured(VOCAB))
        found = read_structure(model, lambda module: LossModule(module, masked_loss)(row)[0])
    assert {name.rpartition(".")[2] for name in found.late} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
        "calls",
    }


def test_what_is_frozen_stays_as_it_is_at_both_ends_of_a_pipeline(pool: Pool, tmp_path: Path) -> None:
    """And a schedule that computes gradients of weights apart does so after a stage that has nothing to train."""
    plan = plan_of(Mesh(pp=2), schedule="zero_bubble", stages=(1, 2, 2, 1))
    expected = pool.run(1, train, Order(ONE, tmp_path / "one", model="frozen ends", optimizer="of everything"))
    found = pool.run(2, train, Order(plan, tmp_path / "two", model="frozen ends", optimizer="of everything"))
    assert_same(found, expected)
    for outcome in found:
        assert not outcome.gradients & {"words.weight", "places"}
        for name in {"words.weight", "places"} & outcome.before.keys():
            np.testing.assert_array_equal(found[0].state[name], outcome.before[name])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stage_may_have_nothing_to_train(pool: Pool, optimizer: str, tmp_path: Path) -> None:
    """Nor need another have a matrix."""
    plan = plan_of(Mesh(pp=2), stages=(1, 3))
    one = plan_of(Mesh(), stages=(4,))
    expected = pool.run(1, train, Order(one, tmp_path / "one", model="frozen bottom", optimizer=optimizer))
    found = pool.run(2, train, Order(plan, tmp_path / "two", model="frozen bottom", optimizer=optimizer))
    assert_same(found, expected, tolerance=1e-5 if optimizer == "adamw" else 1e-3)


def test_an_optimiser_that_wants_parameters_is_told_which_stage_has_none(pool: Pool, tmp_path: Path) -> None:
    plan = plan_of(Mesh(pp=2), stages=(1, 3))
    with pytest.raises(RuntimeError, match="SpecError: stage 0 of the pipeline has no parameter to train"):
        pool.run(2, train, Order(plan, tmp_path, model="frozen bottom", optimizer="of trained"))


def test_a_rank_without_memory_for_the_copies_spoils_one_checkpoint_for_all(pool: Pool, tmp_path: Path) -> None:
    plan, config = plan_of(Mesh(dp=2)), replace(SHORT, checkpoint_every=1, keep_checkpoints=5)
    for outcome in pool.run(2, train, Order(plan, tmp_path, config=config, unstaged=2)):
        assert len(outcome.losses) == SHORT.steps
        (told,) = outcome.save_errors
        assert told == "step 2: Unavailable: rank 1 cannot copy its state: MemoryError: no memory for the copies"
    assert sorted(path.parent.name for path in tmp_path.glob(f"*/{MARKER}")) == ["step-00000001", "step-00000003"]


def test_slots_that_are_of_one_ranks_part_are_refused_and_those_of_the_whole_are_not(
    pool: Pool, tmp_path: Path
) -> None:
    complaint = r"keeps row_var of \(32, 1\) for model.embed_tokens.weight of \(32, 32\), which the plan tp2 cuts"
    with pytest.raises(RuntimeError, match=complaint):
        pool.run(2, train, Order(plan_of(Mesh(tp=2)), tmp_path / "tp", optimizer="adafactor"))
    straight = pool.run(2, train, Order(plan_of(Mesh(pp=2)), tmp_path / "a", optimizer="adafactor"))
    pool.run(2, train, Order(plan_of(Mesh(pp=2)), tmp_path / "b", optimizer="adafactor", stop_at=2))
    resumed = pool.run(1, train, Order(ONE, tmp_path / "b", optimizer="adafactor"))
    np.testing.assert_allclose(resumed[0].losses, straight[0].losses[2:], rtol=0, atol=2e-6)


def test_numbers_that_an_optimiser_counts_in_its_groups_survive_a_resume(pool: Pool, tmp_path: Path) -> None:
    order = Order(plan_of(Mesh(dp=2)), tmp_path, optimizer="counting")
    pool.run(2, train, replace(order, stop_at=2))
    resumed = pool.run(2, train, order)
    assert len(resumed[0].losses) == 1
    assert [outcome.groups for outcome in resumed] == [[{"k": 3}]] * 2


def test_numbers_in_groups_that_differ_from_rank_to_rank_are_refused_before_the_first_checkpoint(
    pool: Pool, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="SpecError: the optimiser keeps k in its groups"):
        pool.run(2, train, Order(plan_of(Mesh(dp=2)), tmp_path, optimizer="divided"))
    assert not list(tmp_path.iterdir())


def test_the_norm_of_gradients_in_16_bits_is_computed_in_32() -> None:
    gradient = torch.full((300,), 3e4, dtype=torch.float16)  # their norm is above what 16 bits hold
    assert square_part([(gradient, 1)]).item() == pytest.approx(float((gradient.double() ** 2).sum()), rel=1e-5)
    single = torch.randn(300)
    whole = torch.nn.utils.get_total_norm([single, single]).double().square() / 2
    assert torch.equal(square_part([(single, 2), (single, 2)]), whole)


def test_a_checkpoint_that_is_lost_does_not_hide_what_ended_the_rank(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def wait(self) -> None:
            raise RuntimeError("the connection was closed")

    with caplog.at_level(logging.ERROR):
        _keep_last_checkpoint(Broken())  # pyright: ignore[reportArgumentType]
    assert "the last checkpoint was not written" in caplog.text
