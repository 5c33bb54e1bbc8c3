"""A step of one rank of a plan on ranks that do not exist: what it holds, and every message it would send.

The rank's part of the model is laid out exactly as `train` does it, in a process group whose other members are made up
(torch's "fake" backend) and on tensors that hold nothing (torch's FakeTensor), so that 4,096 ranks of a model of 70
billion parameters take seconds on a laptop. Messages are counted as torch dispatches them and stand beside what the
planner predicted.

A pipeline's schedule is not run, because ranks learn shapes at the cuts from each other; its micro-batches are, each
forward followed by its backward, which sends the same messages. Experts on several ranks cannot be tried like this:
how many tokens an expert gets depends on values.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from mainspring.plan import blocks, collectives
from mainspring.spec import ModelSpec, Plan, SpecError, Unavailable, spec
from mainspring.train.messages import Counter, Counts
from mainspring.train.parallel import Parallel, local
from mainspring.train.parallel.share import Share, share_of
from mainspring.train.parallel.stages import StageModule
from mainspring.train.recipe import Facts, Recipe

CPU = torch.device("cpu")


@spec
class Held:
    """A parameter: its shape in the model, and in this rank's memory."""

    name: str
    whole: tuple[int, ...]
    here: tuple[int, ...]


@spec
class Messages:
    """Messages of one kind in a step, as counted and as the planner predicted them."""

    operation: str
    group_ranks: int
    messages: int
    payload_bytes: int
    predicted_messages: int
    predicted_bytes: int


@spec
class DryRun:
    """What rank `rank` of `plan` holds and sends. `seconds` is how long finding that out took."""

    plan: Plan
    rank: int
    stages: tuple[int, ...]
    held: tuple[Held, ...]
    held_bytes: int
    predicted_held_bytes: int
    messages: tuple[Messages, ...]
    seconds: float


def dry_run(recipe: Recipe, model: ModelSpec, plan: Plan, *, rank: int, facts: Facts) -> DryRun:
    """Lay `rank` of `plan` out and run one step of it. `model` is the recipe's profile.

    Raises `SpecError` for a rank the plan does not have and for what cannot be tried, and `Unavailable` in a process
    that is a member of a group already.
    """
    _check(plan, rank)
    started = time.monotonic()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    say = sys.excepthook  # which joining a group changes
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=plan.mesh.world)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            parallel = _laid_out(recipe, model, plan, rank=rank, facts=facts, fake=fake)
            counts = _counted(parallel, plan, rank=rank, fake=fake)
    finally:
        dist.destroy_process_group()
        sys.excepthook = say
    held = tuple(_held(parallel))
    return DryRun(
        plan=plan,
        rank=rank,
        stages=tuple(parallel.numbers),
        held=held,
        held_bytes=sum(local(p).nbytes for p in parallel.parameters.values()),
        predicted_held_bytes=collectives.held_bytes(model, plan, rank),
        messages=tuple(_beside(counts, collectives.collectives(model, plan, rank))),
        seconds=time.monotonic() - started,
    )


def _check(plan: Plan, rank: int) -> None:
    mesh = plan.mesh
    if not 0 <= rank < mesh.world:
        raise SpecError(f"rank {rank} is none of the plan's {mesh.world}", hint=f"0 to {mesh.world - 1}")
    if mesh.ep > 1:
        raise SpecError(
            f"a dry run cannot spread experts over {mesh.ep} ranks: their tokens depend on values",
            hint="plan with -s ep=1, or read the predicted exchange in `plan explain`",
        )
    if dist.is_initialized():
        raise Unavailable("this process is a member of a process group", hint="make dry runs in a process of their own")


class _Unfilled(TorchDispatchMode):
    """While a model on meta is laid out: what is given memory gets none, and is filled with nothing."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self._fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        placed = func is torch.ops.aten.empty_like.default and args[0].is_meta and kwargs.get("device") == CPU
        if placed and isinstance(args[0], DTensor):
            whole = args[0]
            return DTensor.from_local(
                self._empty(whole.to_local()),
                whole.device_mesh,
                whole.placements,
                run_check=False,
                shape=whole.shape,
                stride=whole.stride(),
            )
        if placed:
            return self._empty(args[0])
        if func is torch.ops.aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)

    def _empty(self, like: Tensor) -> Tensor:
        with self._fake:
            return torch.empty_strided(like.size(), like.stride(), dtype=like.dtype, device=CPU)


class _Rank(Parallel):
    """A rank whose pipeline is walked through instead of scheduled."""

    model_spec: ModelSpec
    counter: Counter | None = None

    @property
    def numbers(self) -> list[int]:
        """The stages here."""
        return list(self._pieces)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """This rank's parameters."""
        return self._state.parameters

    def take(self, count: int) -> Share:
        """From now on a step has `count` micro-batches."""
        self._share = replace(self._share, count=count)
        return self._share

    @staticmethod
    def replicated(root: nn.Module, _: dist.ProcessGroup) -> nn.Module:
        """DistributedDataParallel wants real memory: gradients are added up as other replicas' are, after backward."""
        return root

    def _make_pipeline(self) -> Any:
        group = self._axes.group("pp")
        assert group is not None
        return _Walk(self, {number: piece.root for number, piece in self._pieces.items()}, group)


class _Walk:
    """Runs every micro-batch of every stage of a rank, forward and backward, and counts what is handed on."""

    def __init__(self, rank: _Rank, stages: Mapping[int, nn.Module], group: dist.ProcessGroup) -> None:
        self._rank, self._stages, self._group = rank, stages, group

    def run(self, rows: Tensor) -> None:
        """One step."""
        plan, share = self._rank._plan, self._rank._share  # noqa: SLF001 our own
        for number, stage in self._stages.items():
            assert isinstance(stage, StageModule)
            stage._rehearses = False  # noqa: SLF001 shapes are known
            if isinstance(stage, FSDPModule):
                stage.set_is_last_backward(False)
                stage.set_reshard_after_backward(False)
                stage.set_requires_gradient_sync(False)
            for index, batch in enumerate(rows.split(share.rows)):
                self._once(number, stage, batch, index)
            made = PipelineStage(stage, number, len(plan.stages), CPU, group=self._group)
            made.perform_reduce_grad(1)

    def _once(self, number: int, stage: StageModule, batch: Tensor, index: int) -> None:
        plan, counter = self._rank._plan, self._rank.counter  # noqa: SLF001 our own
        given = [self._received(number, len(batch))] if number else []
        out = stage(*given, rows=batch, index=torch.tensor(index))
        out.backward() if stage.is_last else out.backward(torch.empty_like(out))
        if counter is None:
            return
        here = plan.pipeline_rank(number)
        if not stage.is_last and plan.pipeline_rank(number + 1) != here:
            counter.add("send", plan.mesh.pp, out.nbytes)
        if given and plan.pipeline_rank(number - 1) != here:
            counter.add("send", plan.mesh.pp, given[0].nbytes)

    def _received(self, number: int, rows: int) -> Tensor:
        """The hidden state that arrives at a stage: float32, because autocast leaves the residual stream so."""
        plan, model = self._rank._plan, self._rank.model_spec  # noqa: SLF001 our own
        first = sum(stage.blocks for stage in plan.stages[:number])
        between = 1 < first < sum(stage.blocks for stage in plan.stages) - 1
        length = plan.seq_len // plan.mesh.cp // (plan.mesh.tp if plan.sequence_parallel and between else 1)
        width = round(blocks.stream_bytes(model) / model.element_bytes)
        return torch.empty((rows, length, width), requires_grad=True)


def _laid_out(recipe: Recipe, model: ModelSpec, plan: Plan, *, rank: int, facts: Facts, fake: FakeTensorMode) -> _Rank:
    def make() -> nn.Module:
        with torch.device("meta"):
            return recipe.build({**facts, "seq_len": plan.seq_len, "seed": recipe.config.seed})

    @contextlib.contextmanager
    def around(_: int) -> Iterator[None]:
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bf16"):
            yield

    # That a model on meta cannot be put off is as it should be.
    with _Unfilled(fake), _quiet(logging.getLogger("mainspring.train.deferred")):
        found = _Rank(make, recipe.loss, plan, rank=rank, device=CPU, around=around)
    found.model_spec = model
    return found


@contextlib.contextmanager
def _quiet(log: logging.Logger) -> Iterator[None]:
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _counted(parallel: _Rank, plan: Plan, *, rank: int, fake: FakeTensorMode) -> Counts:
    """The messages of a step. Of more micro-batches than three, each after them sends what the third has sent."""
    count = share_of(plan, rank).count
    few = min(count, 3)
    _step(parallel, plan, few, fake)  # in the first one sharding sets itself up
    found = _step(parallel, plan, few, fake)
    if count == few:
        return found
    before = _step(parallel, plan, few - 1, fake)
    more = count - few
    return {
        kind: (
            messages + more * (messages - before.get(kind, (0, 0))[0]),
            size + more * (size - before.get(kind, (0, 0))[1]),
        )
        for kind, (messages, size) in found.items()
    }


def _step(parallel: _Rank, plan: Plan, count: int, fake: FakeTensorMode) -> Counts:
    """The messages of a step of `count` micro-batches."""
    share = parallel.take(count)
    counter = Counter()
    parallel.counter = counter
    for parameter in parallel.parameters.values():
        parameter.grad = None
    with fake:
        batch = torch.zeros((count * share.rows, plan.seq_len + 1), dtype=torch.int64)
        with counter:
            parallel.accumulate(batch)
            if plan.mesh.world > 1:
                dist.all_reduce(torch.zeros(4, dtype=torch.float64))  # the loop's sums
    return counter.counts


def _held(parallel: _Rank) -> Iterator[Held]:
    for name, parameter in sorted(parallel.parameters.items()):
        yield Held(name=name, whole=parallel.layouts[name].shape, here=tuple(local(parameter).shape))


def _beside(counts: Counts, predicted: Mapping[Any, collectives.Amount]) -> Iterator[Messages]:
    for operation, ranks in sorted({*counts, *predicted}):
        seen = counts.get((operation, ranks), (0, 0))
        expected = predicted.get((operation, ranks), collectives.Amount())
        yield Messages(
            operation=operation,
            group_ranks=ranks,
            messages=seen[0],
            payload_bytes=seen[1],
            predicted_messages=expected.messages,
            predicted_bytes=expected.payload_bytes,
        )
