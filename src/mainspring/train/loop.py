"""The training loop: one `Plan`, one recipe, N ranks, the same numbers whatever N.

Every step sums losses and gradients over what the recipe counts and divides once by the global count, so uneven
micro-batches and padded rows weigh what they should. Randomness is a function of (seed, step, micro-batch of the
global batch, block of the model): a resumed run repeats the uninterrupted one bit for bit on the same world size, and
dropout falls alike on any with the same micro-batches, save where a sequence or a head has moved (`parallel.seeds`).
Hence the state of a run is parameters, buffers, optimiser slots and the step.

A `Trainer` owns everything it needs and nothing global, so its process groups can be torn down and made again around
the same weights (`rebuild`), and its weights handed to a running engine between two steps (`full_state`).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mainspring.spec import Failed, Plan, SpecError, TrainConfig
from mainspring.train.checkpoint import Checkpoints
from mainspring.train.parallel import Group, Parallel, local, seeds, share_of, whole
from mainspring.train.parallel.clip import square_part
from mainspring.train.parallel.layout import Layout
from mainspring.train.recipe import Facts, LoadedRecipe

log = logging.getLogger(__name__)

# Fields of `TrainConfig` that a resumed run may change: they say when to write, not what to compute.
CADENCE = frozenset({"checkpoint_every", "keep_checkpoints", "log_every", "eval_every"})
EVAL_BATCHES = 4


class Batches(Protocol):
    """Rows of the global batch of any step, the same for every world size. `position` is the next step."""

    position: int

    def batch(self, step: int, first: int, count: int) -> np.ndarray:
        """Rows `[first, first + count)` of the global batch of `step`, as int64 `(count, seq_len + 1)`."""
        ...

    def state(self) -> Mapping[str, int | str]:
        """The position and what gives it its meaning, for a checkpoint."""
        ...

    def load_state(self, state: Mapping[str, int | str]) -> None:
        """Continue at a saved position; `SpecError` when it would mean other samples here."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a trainer learns from: batches, batches it is only tested on, and facts for the recipe's model."""

    train: Batches
    facts: Facts
    held_out: Batches | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """One finished step: the mean loss before the update, and the gradient's norm before clipping."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    held_out_loss: float | None = None


def lr_factor(step: int, config: TrainConfig) -> float:
    """The learning rate of step `step` (from 0) as a part of its peak.

    Linear warm-up reaches 1 at the last warm-up step; half a cosine (Loshchilov & Hutter 2017, SGDR) reaches
    `min_lr_ratio` at the last step.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = min(1.0, (step + 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * done)) / 2


def numerics(config: TrainConfig) -> dict[str, Any]:
    """The part of a configuration that decides the numbers a run computes."""
    return {name: value for name, value in asdict(config).items() if name not in CADENCE}


class Trainer:
    """One rank's part of a training run. `step` counts finished steps.

    When `asked` says so on any rank, all save after the same step, and `steps` ends before the work is done: they are
    `leaving`.
    """

    def __init__(
        self,
        loaded: LoadedRecipe,
        plan: Plan,
        group: Group,
        *,
        data: TrainingData,
        folder: str | Path,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self.step = 0
        self.leaving = False
        self._checks = 2  # a number that depends on gradients may be the same after one step
        self.recipe = loaded.recipe
        self.config = loaded.recipe.config
        self._plan = plan
        self._task = group.task
        self._device = group.device
        self._group = group
        self._data = data
        self._folder = folder
        self._asked = asked
        self._digest = loaded.digest
        self._share = share_of(plan, group.task.rank)
        self._form(0)

    @property
    def model(self) -> nn.Module:
        """The recipe's model; its parameters may be sharded."""
        return self._parallel.model

    @property
    def save_errors(self) -> tuple[str, ...]:
        """Checkpoints that could not be written, and why."""
        return tuple(self._checkpoints.errors)

    @property
    def saved_step(self) -> int:
        """The step of the last checkpoint that is on disk, as rank 0 knows it; 0 before the first."""
        return self._checkpoints.committed

    def steps(self) -> Iterator[StepResult]:
        """Train to the configured number of steps, yielding each; checkpoints are begun after the caller saw the step.

        Raises `Failed` naming the step when the loss or the gradient is no longer finite; nothing was updated then.
        """
        while self.step < self.config.steps and not self.leaving:
            yield self._run_step()
            every = self.config.checkpoint_every
            if self.leaving or self.step == self.config.steps or (every and self.step % every == 0):
                self.save()
        self.wait()

    def save(self) -> None:
        """Begin a checkpoint of this step; it is on disk after the next `save`, or after `close`."""
        # Buffers may change in the next forward, parameters and slots only in the next optimizer.step.
        buffers = {f"model.{name}" for name, t in self._parallel.tensors().items() if not isinstance(t, nn.Parameter)}
        mine = {n: t for n, t in self._tensors().items() if n not in buffers or self._parallel.is_first}
        tensors = {n: t.clone() if n in buffers else t for n, t in mine.items()}
        notes = {
            "config": numerics(self.config),
            "recipe": self._digest,
            "data": dict(self._data.train.state()),
            "groups": self._counted(),
        }
        self._checkpoints.save(self.step, tensors, notes, layouts=self._layouts(tensors))

    def restore(self) -> bool:
        """Continue from the newest undamaged checkpoint, of any world size; False when there is none."""
        saved = self._checkpoints.newest()
        if saved is None:
            return False
        then, now = saved.notes["config"], numerics(self.config)
        changed = [f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]
        if changed:
            raise SpecError(
                f"cannot resume {saved.where}: the configuration changed ({', '.join(changed)})",
                hint="undo the change, or train under a new run",
            )
        if saved.notes["recipe"] != self._digest:
            log.warning("the recipe file changed since the checkpoint", extra={"step": saved.step})
        self._data.train.load_state(saved.notes["data"])
        self._allocate(saved.shapes())
        tensors = self._tensors()
        self._checkpoints.load(saved, tensors, layouts=self._layouts(tensors))
        self._count_on(saved.notes.get("groups", ()))
        self._parallel.updated()
        self.step = saved.step
        return True

    def rebuild(self, group_epoch: int) -> None:
        """Tear the process groups down and meet again in `group_epoch`, keeping this rank's state.

        Every rank calls this, with an epoch none has used; training goes on from the same step.
        """
        kept, slots, counted = self._tensors(), self._parallel.slots, self._counted()
        self._dissolve()
        self._form(group_epoch)
        self._parallel.adopt(slots)
        layouts = self._layouts(kept)
        self._allocate({name: (layouts[name].shape, tensor.dtype) for name, tensor in kept.items()})
        for name, tensor in self._tensors().items():
            local(tensor).copy_(local(kept[name]))
        self._count_on(counted)
        self._parallel.updated()

    def full_state(self) -> dict[str, Tensor]:
        """All weights, unsharded on rank 0's host under the model's own names; empty on other ranks.

        Every rank must call it, between two steps. For a model of the Hugging Face layout the names are that layout's.
        """
        found = {name: tensor.detach() for name, tensor in self._parallel.tensors().items()}
        return whole(found, self._parallel.layouts, device=self._device)

    def wait(self) -> None:
        """Return once the checkpoint in flight is on disk, or has failed."""
        self._checkpoints.wait()

    def close(self) -> None:
        """Finish writing and leave the group."""
        self._dissolve()

    def _form(self, group_epoch: int) -> None:
        self._group.join(group_epoch)
        seeds.start(self.config.seed)
        self._parallel = Parallel(
            partial(self.recipe.build, {**self._data.facts, "seed": self.config.seed}),
            self.recipe.loss,
            self._plan,
            rank=self._task.rank,
            device=self._device,
            around=self._around,
        )
        self._optimizer = self._make_optimizer()
        self._made = _numbers(self._optimizer)
        self._peak_lrs = [group["lr"] for group in self._optimizer.param_groups]
        self._checkpoints = Checkpoints(
            self._folder,
            rank=self._task.rank,
            world=self._task.world,
            keep=self.config.keep_checkpoints,
            timeout=self._group.timeout,
        )

    def _make_optimizer(self) -> Optimizer:
        try:
            made = self.recipe.optimizer(self.model, self.config)
        except ValueError as error:
            if any(parameter.requires_grad for parameter in self.model.parameters()):
                raise
            stage = f"stage {self._parallel.stage} of the pipeline" if self._plan.mesh.pp > 1 else "the recipe's model"
            raise SpecError(
                f"{stage} has no parameter to train, and the recipe's optimizer takes that for a mistake: {error}",
                hint="lower pp in the plan, or have it take groups of parameters, which may be empty",
            ) from error
        if self._plan.mesh.tp > 1 and getattr(made, "whole_matrices", False):
            raise SpecError(
                f"{type(made).__name__} updates whole matrices, the plan divides them over {self._plan.mesh.tp} ranks",
                hint="plan the recipe again",
            )
        return made

    def _dissolve(self) -> None:
        self._checkpoints.close()
        self._group.leave()

    def _run_step(self) -> StepResult:
        self._optimizer.zero_grad(set_to_none=True)
        rows = self._rows(self._data.train, self.step)
        found = self._parallel.accumulate(rows)
        gradients = self._parallel.gradients()
        square = square_part(gradients).to(self._device)
        asked = square.new_tensor([self._asked()])  # heard by one rank perhaps, and heeded by all at the same step
        loss_sum, count, square, leaving = self._group.sum(torch.cat([found, square[None], asked])).tolist()
        self.leaving = bool(leaving)
        if not count:
            raise Failed(
                f"step {self.step + 1}: the recipe's loss counted nothing in the whole global batch",
                hint="it returned (sum, 0) for every micro-batch: look at what it masks, or raise global_batch",
            )
        to_mean = self._parallel.divided_by / count
        loss, norm = loss_sum / count, math.sqrt(square) * to_mean
        self._check_finite(loss, norm)
        clip = min(1.0, self.config.clip_norm / (norm + 1e-6)) if self.config.clip_norm else 1.0
        for gradient, _ in gradients:
            gradient.mul_(to_mean * clip)
        factor = lr_factor(self.step, self.config)
        for group, peak in zip(self._optimizer.param_groups, self._peak_lrs, strict=True):
            group["lr"] = peak * factor
        self._checkpoints.wait_staged()
        self._optimizer.step()
        if self._checks:
            self._check_optimizer()
        self._parallel.updated()
        self.step += 1
        self._parallel.balance(self.step, self._optimizer.state)
        self._data.train.position = self.step
        every = self.config.eval_every
        held_out = self._evaluate() if every and self.step % every == 0 and self._data.held_out else None
        return StepResult(self.step, loss, norm, self.config.lr * factor, held_out)

    @torch.no_grad()
    def _evaluate(self) -> float | None:
        assert self._data.held_out is not None
        totals = torch.zeros(2, dtype=torch.float64, device=self._device)
        for index in range(EVAL_BATCHES):
            totals += self._parallel.test(self._rows(self._data.held_out, index))
        loss_sum, count = self._group.sum(totals).tolist()
        return loss_sum / count if count else None

    def _rows(self, batches: Batches, step: int) -> Tensor:
        """This replica's part of the batch of a step."""
        return torch.from_numpy(batches.batch(step, self._share.first, self._share.all_rows)).to(self._device)

    @contextlib.contextmanager
    def _around(self, index: int) -> Iterator[None]:
        """What each forward of micro-batch `index` of this replica runs in: its seeds and its precision."""
        seeds.begin(self.config.seed, self.step, self._share.first // self._share.rows + index)
        enabled = self._plan.precision == "bf16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=enabled):
            yield

    def _check_finite(self, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Failed(
                f"step {self.step + 1}: the loss is {loss:.4g} and the gradient norm {norm:.4g}, which is not finite",
                hint=f"lower lr (now {self.config.lr:g}) or lengthen warmup_steps (now {self.config.warmup_steps})",
            )

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that makes up the state of the run, by name; changing a tensor changes the run."""
        found = {f"model.{name}": tensor.detach() for name, tensor in self._parallel.tensors().items()}
        for name, parameter in self.model.named_parameters():
            cut = isinstance(parameter, DTensor) or bool(self._parallel.layouts[name].runs)
            for slot, value in self._optimizer.state.get(parameter, {}).items():
                if not isinstance(value, Tensor):
                    raise SpecError(
                        f"the optimiser keeps {slot} = {value!r}, which is no tensor and cannot be checkpointed",
                        hint="keep it in a 0-dimensional tensor, as torch.optim's own optimisers do",
                    )
                if cut and value.dim() and value.shape != parameter.shape:
                    raise SpecError(
                        f"the optimiser keeps {slot} of {tuple(value.shape)} for {name} of {tuple(parameter.shape)}, "
                        f"which the plan {self._plan.mesh.label} cuts: each rank has another one, of its own part",
                        hint="set tp, ep, cp and fsdp = 1 and zero = 0 in the plan, or use another optimiser",
                    )
                found[f"optimizer.{name}.{slot}"] = value
        return found

    def _counted(self) -> list[dict[str, Any]]:
        """What the optimiser has changed in its groups of parameters since it was made, the same on every rank."""
        now = _numbers(self._optimizer)
        mine = [
            {name: value for name, value in group.items() if name not in made or made[name] != value}
            for group, made in zip(now, self._made, strict=True)
        ]
        told = [mine]
        if self._task.world > 1:
            told = [mine] * self._task.world
            dist.all_gather_object(told, mine)
        changed = [each for each in told if any(each)]
        if any(each != told[0] for each in changed):
            raise SpecError(
                f"the optimiser keeps {', '.join(sorted(_names(changed)))} in its groups of parameters, which differ "
                f"from rank to rank under the plan {self._plan.mesh.label}",
                hint="set pp, tp, ep, cp and fsdp = 1 and zero = 0 in the plan, or use another optimiser",
            )
        return told[0]

    def _check_optimizer(self) -> None:
        """Say after the first steps, not at the first checkpoint, that what the optimiser keeps cannot be saved."""
        self._tensors()
        self._checks = self._checks - 1 if any(self._counted()) else 0

    def _count_on(self, counted: Sequence[Mapping[str, Any]]) -> None:
        """Put what `_counted` found back into the groups."""
        groups = self._optimizer.param_groups
        if any(counted) and len(groups) != len(counted):
            kept = ", ".join(sorted(_names([counted])))
            raise SpecError(
                f"the optimiser kept {kept} in {len(counted)} groups of parameters, on this rank it has {len(groups)}",
                hint="resume under the plan that the run was started with",
            )
        for group, changed in zip(groups, counted, strict=False):
            group.update(changed)

    def _layouts(self, tensors: Mapping[str, Tensor]) -> dict[str, Layout]:
        """Where each of `tensors` lies in the whole: slots of a parameter's shape as the parameter does."""
        parameters, layouts = dict(self.model.named_parameters()), self._parallel.layouts
        found = {}
        for full_name, tensor in tensors.items():
            kind, _, name = full_name.partition(".")
            name = name if kind == "model" else name.rpartition(".")[0]
            like = name in layouts and tensor.shape == parameters[name].shape
            found[full_name] = layouts[name] if like else Layout(tuple(tensor.shape))
        return found

    def _allocate(self, shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        """Make the optimiser slots named in `shapes`, laid out like their parameters, to be filled."""
        parameters, layouts = dict(self.model.named_parameters()), self._parallel.layouts
        # torch.optim keeps counters on the host, unless one kernel does the whole step on the device.
        on_device = any(group.get("fused") or group.get("capturable") for group in self._optimizer.param_groups)
        counter = torch.empty((), device=self._device if on_device else "cpu")
        for full_name, (shape, dtype) in shapes.items():
            kind, _, name = full_name.partition(".")
            name, _, slot = name.rpartition(".")
            if kind == "optimizer" and name in parameters:
                parameter = parameters[name]
                like = parameter.detach() if tuple(shape) == layouts[name].shape else counter.expand(shape)
                self._optimizer.state[parameter][slot] = torch.zeros_like(like, dtype=dtype)


def _numbers(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The plain values in each group of parameters, but for the learning rate, which is a function of the step."""
    return [
        {name: value for name, value in group.items() if name != "lr" and isinstance(value, bool | int | float | str)}
        for group in optimizer.param_groups
    ]


def _names(counted: Iterable[Sequence[Mapping[str, Any]]]) -> set[str]:
    return {name for groups in counted for group in groups for name in group}
