"""Real gangs of rank processes over gloo for the tests of this room: what each rank runs, and how it is started."""

from __future__ import annotations

import multiprocessing as mp
import os
import resource
import signal
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mainspring.models.transformer import Decoder
from mainspring.spec import (
    DecoderConfig,
    MainspringError,
    MemoryEstimate,
    Mesh,
    Plan,
    Recompute,
    Stage,
    Task,
    TimeEstimate,
    TrainConfig,
)
from mainspring.train.loop import StepResult, Trainer, TrainingData
from mainspring.train.marks import step_of
from mainspring.train.muon import muon
from mainspring.train.parallel import Group
from mainspring.train.place import LocalPlace
from mainspring.train.recipe import LoadedRecipe, Recipe, adamw

LADING = 10_000_000
VOCAB, SEQ_LEN, GLOBAL_BATCH = 48, 12, 8
CONFIG = TrainConfig(
    steps=5, global_batch=GLOBAL_BATCH, seq_len=SEQ_LEN, lr=1e-2, warmup_steps=2, clip_norm=0.5, checkpoint_every=0
)
CONTEXT = mp.get_context("forkserver")
# The first optimizer.step imports torch._dynamo, which takes seconds: once here instead of in every rank.
CONTEXT.set_forkserver_preload(["training_gang", "torch._dynamo"])


class RandomBatches:
    """Rows that depend on the step alone."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.position = 0

    def batch(self, step: int, first: int = 0, count: int = GLOBAL_BATCH) -> np.ndarray:
        rows = np.random.default_rng((self.seed, step)).integers(0, VOCAB, (GLOBAL_BATCH, SEQ_LEN + 1), np.int64)
        return rows[first : first + count]

    def state(self) -> Mapping[str, int | str]:
        return {"position": self.position, "seed": self.seed}

    def load_state(self, state: Mapping[str, int | str]) -> None:
        assert state["seed"] == self.seed
        self.position = int(state["position"])


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x + self.norm(torch.tanh(self.inner(x)))


class TiedModel(nn.Module):
    """Blocks between an embedding and a head that are one registered parameter; odd sizes; optional dropout."""

    def __init__(self, vocab: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, 13)
        self.blocks = nn.ModuleList(Residual(13) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(13, vocab, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = self.dropout(block(x))
        return self.head(x)


def decoder(vocab: int) -> nn.Module:
    return Decoder(DecoderConfig(vocab=vocab, hidden=16, layers=2, heads=2, kv_heads=1, ffn=24, context=16))


def tied(vocab: int) -> nn.Module:  # house: a recipe names a function, and forked ranks find it by name
    return TiedModel(vocab)


def dropped(vocab: int) -> nn.Module:
    return TiedModel(vocab, dropout=0.3)


def frozen(vocab: int) -> nn.Module:
    """Dropout that the recipe has switched off for good."""
    model = TiedModel(vocab, dropout=0.3)
    model.dropout.eval()
    return model


class SpareModel(TiedModel):
    """Has a layer that no forward uses."""

    def __init__(self, vocab: int) -> None:
        super().__init__(vocab)
        self.spare = nn.Linear(13, 13)


class RareModel(SpareModel):
    """Has a layer that only some batches use, too."""

    def __init__(self, vocab: int) -> None:
        super().__init__(vocab)
        self.rare = nn.Linear(13, 13)

    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids)
        return logits + self.head(self.rare(self.embed(ids))) if ids[0, 0] % 3 == 0 else logits


class LadenModel(TiedModel):
    """Carries a large parameter that no forward touches and only the optimiser changes."""

    def __init__(self, vocab: int) -> None:
        super().__init__(vocab)
        self.lading = nn.Parameter(torch.zeros(LADING), requires_grad=False)


class Counting(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(1.0)


def counting(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    return Counting(model.parameters(), lr=config.lr)


def masked_loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Counts only targets below a third of the vocabulary, so that every row weighs differently."""
    targets = batch[:, 1:].flatten()
    kept = targets < VOCAB // 3
    losses = cross_entropy(model(batch[:, :-1]).flatten(0, 1), targets, reduction="none")
    return (losses * kept).sum(), kept.sum()


def mean_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def blind_loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
    return model(batch[:, :-1]).sum() * 0, 0


def numpy_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return mean_loss(model, batch) * float(np.random.rand())


def exploding_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return mean_loss(model, batch) * (float("nan") if batch[0, 0] % 5 == 2 else 1.0)


MODELS = {
    "decoder": decoder,
    "tied": tied,
    "dropped": dropped,
    "frozen": frozen,
    "laden": LadenModel,
    "rare": RareModel,
}
OPTIMIZERS = {"adamw": adamw, "muon": muon}
LOSSES = {
    "masked": masked_loss,
    "mean": mean_loss,
    "exploding": exploding_loss,
    "blind": blind_loss,
    "numpy": numpy_loss,
}


def plan_of(
    mesh: Mesh = Mesh(),  # noqa: B008  frozen
    *,
    microbatch: int = 2,
    counts: tuple[int, ...] | None = None,
    regather: bool = True,
    recompute: Recompute = "none",
    **changes: Any,
) -> Plan:
    ranks = mesh.dp * mesh.fsdp
    counts = counts or (GLOBAL_BATCH // microbatch // ranks,) * ranks
    stage = Stage(blocks=1, device="cpu", ranks=tuple(range(ranks)), microbatches=counts, recompute=recompute)
    nothing = MemoryEstimate(params_bytes=0, grads_bytes=0, optimizer_bytes=0, activations_bytes=0, logits_bytes=0)
    plan = Plan(
        model="tiny",
        cluster="here",
        mesh=mesh,
        stages=(stage,),
        global_batch=GLOBAL_BATCH,
        microbatch=microbatch,
        seq_len=SEQ_LEN,
        precision="fp32",
        zero=0 if mesh.fsdp == 1 else 3 if regather else 2,
        memory=nothing,
        device_memory_bytes=1 << 30,
        time=TimeEstimate(compute_s=1.0, communication_s=0.0, bubble_s=0.0, optimizer_s=0.0),
        steps=CONFIG.steps,
        watts=1.0,
        price_usd_per_hour=0.0,
        mfu=0.1,
        objective="time",
    )
    return replace(plan, **changes)


@dataclass(frozen=True)
class Order:
    """What a gang does. After step `kill_at` rank `victim` sends itself SIGKILL; after `full_at` its disk is full.

    Until `unreadable_until` it cannot read back what it saves.
    """

    plan: Plan
    folder: Path | str
    model: str = "decoder"
    loss: str = "masked"
    config: TrainConfig = CONFIG
    kill_at: int = 0
    full_at: int = 0
    unreadable_until: int = 0
    victim: int = 0
    rebuild_at: int = 0
    optimizer: str = "adamw"
    waits_for_saves: bool = False


@dataclass
class Outcome:
    """What one rank saw."""

    steps: list[StepResult] = field(default_factory=list)
    state: dict[str, np.ndarray] = field(default_factory=dict)
    error: str = ""
    resumed_at: int = 0
    save_errors: tuple[str, ...] = ()

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.steps]


def recipe_of(order: Order) -> LoadedRecipe:
    parts = {"model": MODELS[order.model], "loss": LOSSES[order.loss], "optimizer": OPTIMIZERS[order.optimizer]}
    recipe = Recipe(**parts, config=order.config)
    return LoadedRecipe(recipe=recipe, path=Path("recipe.py"), digest="0" * 64)


def train_rank(task: Task, order: Order) -> Outcome:
    """One rank's life; also called directly for a gang of one."""
    torch.set_num_threads(1)
    data = TrainingData(train=RandomBatches(), facts={"vocab": VOCAB}, held_out=RandomBatches(seed=1))
    if order.unreadable_until and task.rank == order.victim:
        _damage_disk(order.unreadable_until)
    trainer = Trainer(recipe_of(order), order.plan, Group(task), data=data, folder=order.folder)
    outcome = Outcome()
    try:
        trainer.restore()
        outcome.resumed_at = trainer.step
        for result in trainer.steps():
            outcome.steps.append(result)
            if result.step == order.rebuild_at:
                trainer.rebuild(1)
            if order.waits_for_saves:
                trainer.wait()
            if result.step == order.full_at and task.rank == order.victim:
                trainer.wait()
                resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
            if result.step == order.kill_at and task.rank == order.victim:
                os.kill(os.getpid(), signal.SIGKILL)
        outcome.state = {name: tensor.numpy() for name, tensor in trainer.full_state().items()}
    except (MainspringError, RuntimeError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    outcome.save_errors = trainer.save_errors
    trainer.close()
    return outcome


def _damage_disk(until: int) -> None:
    """Have this process fail to read its files of checkpoints before step `until`."""
    whole = LocalPlace.digests

    def digests(place: LocalPlace, writer: Any, rank: int) -> dict[str, str]:
        if step_of(Path(writer.path).name.removeprefix(".")) < until:
            raise OSError(5, "Input/output error")
        return whole(place, writer, rank)

    LocalPlace.digests = digests


def run_gang(order: Order) -> list[Outcome | None]:
    """Every rank's outcome in a process of its own; None for a rank that died."""
    world = order.plan.mesh.world
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{probe.getsockname()[1]}"
    pipes, processes = [], []
    for rank in range(world):
        ours, theirs = CONTEXT.Pipe(duplex=False)
        task = task_of(rank, world=world, master=master, folder=Path(str(order.folder)))
        processes.append(CONTEXT.Process(target=_report, args=(theirs, task, order), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    outcomes = [_received(pipe) for pipe in pipes]
    for process in processes:
        process.join(20)
        process.kill()
    return outcomes


def task_of(rank: int = 0, *, world: int = 1, master: str = "", folder: Path) -> Task:
    return Task(
        job_id="gang",
        rank=rank,
        world=world,
        local_rank=rank,
        local_world=world,
        run_dir=str(folder),
        master=master,
    )


def _report(pipe: Connection, task: Task, order: Order) -> None:
    pipe.send(asdict(train_rank(task, order)))


def _received(pipe: Connection) -> Outcome | None:
    try:
        found = pipe.recv()
    except EOFError:
        return None
    found["steps"] = [StepResult(**step) for step in found["steps"]]
    return Outcome(**found)
