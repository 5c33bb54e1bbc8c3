"""A recipe's model laid out over the ranks as a plan says: what the training loop talks to.

The order of what is done to the model: blocks of other stages are taken out, matrices are divided, blocks are made to
recompute, experts and then blocks are sharded, and the ends of stages are put in place. Each part knows nothing of
the others.

Gradients come out as the sum over all replicas of each one's summed loss; `loop` turns that into the mean over tokens.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mainspring.models.structure import Structure, set_cache, share_copy
from mainspring.spec import Plan, SpecError
from mainspring.train.deferred import build
from mainspring.train.parallel import data, seeds
from mainspring.train.parallel.axes import Axes
from mainspring.train.parallel.context import SharedAttention, tell_positions
from mainspring.train.parallel.copies import Turns
from mainspring.train.parallel.experts import (
    experts_of,
    loads_of,
    mixtures_of,
    move,
    placement,
    runs_of,
    spread_experts,
)
from mainspring.train.parallel.held import Piece, join_pieces
from mainspring.train.parallel.layout import Layout, Run, local
from mainspring.train.parallel.loss import LossModule
from mainspring.train.parallel.pipeline import Pipeline
from mainspring.train.parallel.read import read_model
from mainspring.train.parallel.share import share_of
from mainspring.train.parallel.stages import StageModule, cut_out
from mainspring.train.parallel.tensor import divide
from mainspring.train.parallel.tied import Ties
from mainspring.train.recipe import Loss


class Parallel:
    """`model` is what an optimiser is made for: the recipe's model with this rank's parameters in it."""

    replicated: Callable[[nn.Module, dist.ProcessGroup], nn.Module] = staticmethod(data.replicate)

    def __init__(
        self,
        make: Callable[[], nn.Module],
        loss: Loss,
        plan: Plan,
        *,
        rank: int,
        device: torch.device,
        around: Callable[[int], AbstractContextManager[Any]],
    ) -> None:
        """`make` makes the model, the same on every rank. Where the plan divides it, it is never whole on any."""
        deferred = build(make) if plan.zero or plan.mesh.pp * plan.mesh.tp * plan.mesh.ep > 1 else None
        model = deferred.model if deferred else make()
        self._plan = plan
        self._device = device
        self._axes = axes = Axes(plan.mesh, rank, device)
        context = axes.group("cp")
        self._attention = None if context is None else partial(SharedAttention, context)
        self._around = around if self._attention is None else _inside(self._attention, around, axes.at["cp"])
        self._share = share_of(plan, rank)
        self._reading = reading = read_model(model, loss, plan)
        self._structure = reading.structure
        set_cache(model, used=False)
        self._placed: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
        mine = [n for n in range(len(plan.stages)) if plan.pipeline_rank(n) == axes.at["pp"]]
        spans = _spans(plan)
        self._pieces = {
            n: self._piece(
                cut_out(model, self._structure, spans[n], device) if plan.mesh.pp > 1 else model, loss, plan, n
            )
            for n in mine
        }
        if deferred:
            held = self._held()
            deferred.fill(lambda name, tensor: _take(held[name], tensor), held)
        self._placed.clear()
        group = axes.group("dp")
        if group is not None and not plan.zero and axes.degree("pp", "cp", "ep") == 1 and plan.copies == 1:
            for piece in self._pieces.values():
                piece.root = self.replicated(piece.root, group)
        self._state, mirrors = join_pieces(list(self._pieces.values()))
        self.model = self._merged(model) if plan.mesh.pp > 1 else model
        self._trained = [p for p in (*self._state.parameters.values(), *(m for _, m in mirrors)) if p.requires_grad]
        self._used = [data.note_used(piece.root) for piece in self._pieces.values()]
        self._ties = Ties(self._state.parameters, self._tie_groups(), mirrors)
        self._count_copies()
        self._mixtures = {n: m for piece in self._pieces.values() for n, m in mixtures_of(piece.model).items()}
        self._seen: dict[str, Tensor] = {}
        self._pipeline: Pipeline | None = None
        if plan.mesh.pp > 1:
            self._pipeline = self._make_pipeline()
        # What a gradient was divided by while it was reduced.
        self.divided_by = axes.degree("dp") if isinstance(self._only, DistributedDataParallel) else 1

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """Where this rank's part of each parameter lies in the whole."""
        return self._state.layouts

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers of this rank by name, a shared one under its first name only."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for number, piece in self._pieces.items():
            for name, tensor in piece.model.state_dict(keep_vars=True).items():
                if isinstance(tensor, Tensor) and id(tensor) not in seen and self._is_ours(number, name, tensor):
                    seen.add(id(tensor))
                    found.setdefault(name, tensor)
        return found

    @property
    def stage(self) -> int:
        """The first stage of the pipeline that is here."""
        return min(self._pieces)

    @property
    def is_first(self) -> bool:
        """Whether this rank's buffers are those that are saved: replicas have their own, the first one's are kept."""
        return not any(place for axis, place in self._axes.at.items() if axis != "pp")

    def accumulate(self, rows: Tensor) -> Tensor:
        """Run this replica's micro-batches, `rows` of the batch; float64 (sum of losses, count) of this rank's part.

        Gradients are left on the parameters, as `gradients` wants them.
        """
        rows = self._own_columns(rows)
        totals = torch.zeros(2, dtype=torch.float64, device=self._device)
        if self._pipeline is not None:
            self._pipeline.run(rows)
            for total, count in self._drain():
                totals += torch.stack([total, count]).double()
        else:
            even = len(set(self._plan.microbatches)) == 1
            for index, batch in enumerate(rows.split(self._share.rows)):
                last = index == self._share.count - 1
                with data.microbatch(self._only, last=last, zero=self._plan.zero, even=even):
                    totals += self._pass(index, batch)
        self._finish_gradients()
        return totals * self._counts_once

    def _pass(self, index: int, batch: Tensor) -> Tensor:
        """Forward and backward of one micro-batch, or of its copies in turns."""
        if self._plan.copies > 1:
            parts = batch.chunk(self._plan.copies)
            works = [partial(self._pass_one, index, part, copy=copy) for copy, part in enumerate(parts)]
            return torch.stack(Turns(works, self._device).run()).sum(0)
        return self._pass_one(index, batch)

    def _pass_one(self, index: int, batch: Tensor, *, copy: int = 0) -> Tensor:
        with self._around(index):
            if copy:
                seeds.also(-copy - 1)
            total, count = self._only(batch)
        total.backward()
        return torch.stack([total.detach(), count]).double()

    @torch.no_grad()
    def test(self, rows: Tensor) -> Tensor:
        """Like `accumulate`, without gradients."""
        batches = self._own_columns(rows).split(self._share.rows)
        training = [m for piece in self._pieces.values() for m in piece.root.modules() if m.training]
        for piece in self._pieces.values():
            piece.root.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self._device)
        if self._pipeline is not None:
            self._pipeline.test(batches)
            for total, count in self._drain():
                totals += torch.stack([total, count]).double()
        else:
            inner = self._only.module if isinstance(self._only, DistributedDataParallel) else self._only
            for index, batch in enumerate(batches):
                with self._around(index):
                    total, count = inner(batch)
                totals += torch.stack([total, count]).double()
        for module in training:  # a part that the recipe has frozen stays so
            module.training = True
        for piece in self._pieces.values():
            data.reshard(piece.root)
        return totals * self._counts_once

    def gradients(self) -> list[tuple[Tensor, int]]:
        """This rank's part of every gradient, and how many ranks hold the same one."""
        return [
            (local(p.grad), self._state.copies[name])
            for name, p in self._state.parameters.items()
            if p.grad is not None
        ]

    def updated(self) -> None:
        """To be called after the parameters changed."""
        self._ties.take_over()

    def balance(self, step: int, state: Mapping[Any, Any]) -> None:
        """After the update of `step`: even out the load of experts, and where it is due move them between ranks.

        `state` is the optimiser's, which moves with its parameters.
        """
        config = next((mixture.config for mixture in self._mixtures.values()), None)
        if config is None:
            return
        found = loads_of(self._mixtures, self._axes.group("dp", "fsdp", "cp", "ep", "tp"))
        for name, load in found.items():
            self._mixtures[name].balance(load)
            self._mixtures[name].load.zero_()
            self._seen[name] = self._seen[name] + load if name in self._seen else load
        group = self._axes.group("ep")
        if group is None or not config.move_every or step % config.move_every:
            return
        for name, load in self._seen.items():
            experts = self._mixtures[name].experts
            slots = placement(load.tolist(), experts.slots.tolist(), group.size())
            if list(slots) == experts.slots.tolist():
                continue
            runs = move(experts, slots, state, group=group, shards=self._axes.group("fsdp", "cp"))
            self._lay(f"{name}.experts", runs)
        self._seen = {}

    @property
    def slots(self) -> dict[str, list[int]]:
        """Where the experts of each layer lie."""
        return {name: mixture.experts.slots.tolist() for name, mixture in self._mixtures.items()}

    def adopt(self, slots: Mapping[str, list[int]]) -> None:
        """Take it that experts lie in `slots`: their weights are about to be copied in."""
        group = self._axes.group("ep")
        for name, places in slots.items():
            if group is not None:
                self._mixtures[name].experts.slots.copy_(torch.tensor(places))
                self._lay(f"{name}.experts", runs_of(places, group))

    def _lay(self, experts: str, runs: tuple[Run, ...]) -> None:
        for name in self._state.experts:
            if name.startswith(f"{experts}."):
                self._state.layouts[name] = Layout(self._state.layouts[name].shape, 0, runs)

    @property
    def _only(self) -> nn.Module:
        """What a rank without a pipeline calls."""
        return next(iter(self._pieces.values())).root

    @property
    def _counts_once(self) -> float:
        """Ranks of a tensor-parallel group find the same loss; one of them reports it."""
        return float(self._axes.at["tp"] == 0)

    def _own_columns(self, rows: Tensor) -> Tensor:
        """This rank's part of each sequence, and one token more to predict."""
        length = self._plan.seq_len // self._plan.mesh.cp
        first = length * self._axes.at["cp"]
        return rows[:, first : first + length + 1] if self._plan.mesh.cp > 1 else rows

    def _drain(self) -> list[tuple[Tensor, Tensor]]:
        found: list[tuple[Tensor, Tensor]] = []
        for piece in self._pieces.values():
            assert isinstance(piece.root, StageModule)
            found += piece.root.totals
            piece.root.totals.clear()
        return found

    def _piece(self, model: nn.Module, loss: Loss, plan: Plan, number: int) -> Piece:
        axes = self._axes
        layouts = {name: Layout(tuple(p.shape)) for name, p in model.named_parameters()}
        partly: set[str] = set()
        blocks = data.repeated_blocks(model)
        group = axes.group("tp")
        if group is not None:
            division = divide(
                model,
                group,
                self._reading.regions,
                vocabulary=self._reading.vocabulary,
                blocks=self._structure.blocks,
                sequence=plan.sequence_parallel,
            )
            layouts |= division.layouts
            partly = division.partial - division.layouts.keys()
        holders = axes.group("ep")
        experts = {} if holders is None else spread_experts(model, holders)
        layouts |= experts
        context = axes.group("cp")
        if context is not None:
            tell_positions(model, context.rank())
        seeds.attach(model, plan, axes.at, self._reading.regions, self._device)
        data.recompute(blocks, plan.stages[number].recompute, around=self._attention)
        piece = Piece(model, self._root(model, loss, plan, number), layouts, partly, set(experts))
        self._lay_over_replicas(piece, plan)
        if isinstance(piece.root, StageModule):
            piece.root.attach()
        return piece

    def _root(self, model: nn.Module, loss: Loss, plan: Plan, number: int) -> nn.Module:
        if plan.mesh.pp == 1:
            return LossModule(model, loss)
        return StageModule(model, loss, self._structure, _spans(plan)[number], self._around)

    def _lay_over_replicas(self, piece: Piece, plan: Plan) -> None:
        """Shard or replicate, and move what this rank holds to its device."""
        axes = self._axes
        if plan.zero:
            if axes.degree("ep") > 1:
                mesh = axes.device_mesh(("fsdp", "cp"), ("dp",))
                for experts in experts_of(piece.model).values():
                    data.shard(experts, (), mesh, regather=plan.zero == 3)
            blocks = [block for block in data.repeated_blocks(piece.model) if any(True for _ in block.parameters())]
            data.shard(piece.root, blocks, axes.device_mesh(("fsdp", "cp"), ("dp", "ep")), regather=plan.zero == 3)
        _place(piece.root, self._device, self._placed)

    def _held(self) -> dict[str, list[tuple[Layout, nn.Parameter]]]:
        """This rank's part of each parameter by name, twice where two of its stages have it."""
        held: dict[str, list[tuple[Layout, nn.Parameter]]] = {}
        for piece in self._pieces.values():
            for name, parameter in piece.model.named_parameters():
                held.setdefault(name, []).append((piece.layouts[name], parameter))
        return held

    def _make_pipeline(self) -> Pipeline:
        group = self._axes.group("pp")
        assert group is not None
        stages: dict[int, StageModule] = {}
        for number, piece in self._pieces.items():
            assert isinstance(piece.root, StageModule)
            stages[number] = piece.root
        _check_nothing_is_lost(self._structure, self._state.parameters, self._plan, group)
        return Pipeline(stages, self._plan, group, count=self._share.count, device=self._device)

    def _finish_gradients(self) -> None:
        """What is still to be added up after the last backward."""
        axes, parameters = self._axes, self._state.parameters
        replicas = axes.group("dp", "fsdp", "cp", "ep", "tp")
        if self._plan.zero and replicas is not None:
            data.drop_unused(self._trained, set[nn.Parameter]().union(*self._used), replicas)
            for used in self._used:
                used.clear()
        self._ties.add_up()
        group = axes.group("tp")
        if group is not None and self._state.partial:
            rest = [parameters[name] for name in sorted(self._state.partial) if name in parameters]
            data.reduce_in_buckets([local(p.grad) for p in rest if p.grad is not None], group)
        replicas = axes.group("dp", "cp", "ep")
        if replicas is not None and not self._plan.zero and not isinstance(self._only, DistributedDataParallel):
            data.fill_in([p for p in parameters.values() if p.requires_grad], replicas)
            experts = self._state.experts
            dense = [local(p.grad) for name, p in parameters.items() if p.grad is not None and name not in experts]
            data.reduce_in_buckets(dense, replicas)
            group = axes.group("dp", "cp")
            if group is not None and experts:
                rest = [local(p.grad) for name, p in parameters.items() if p.grad is not None and name in experts]
                data.reduce_in_buckets(rest, group)

    def _count_copies(self) -> None:
        axes, state = self._axes, self._state
        everywhere = axes.degree("dp", "fsdp", "cp", "ep", "tp")
        for name in state.parameters:
            cut_by = ("ep",) if name in state.experts else ("tp",)
            parts = axes.degree(*cut_by) if state.layouts[name].runs else 1
            parts *= axes.degree("fsdp", "cp") if self._plan.zero else 1
            state.copies[name] = everywhere // parts * len(self._holders(name))

    def _holders(self, name: str) -> list[int]:
        """The pipeline ranks that hold the parameter `name`."""
        if self._plan.mesh.pp == 1:
            return [0]
        spans = _spans(self._plan)
        needs = self._structure.needs
        stages = [n for n, span in enumerate(spans) if any(name in needed for needed in needs[span[0] : span[1]])]
        return sorted({self._plan.pipeline_rank(stage) for stage in stages})

    def _tie_groups(self) -> dict[str, dist.ProcessGroup]:
        """The group of each parameter of this rank that other stages' ranks hold and train too."""
        if self._plan.mesh.pp == 1:
            return {}
        holders = {name: tuple(self._holders(name)) for name in sorted(self._structure.shared)}
        groups = {places: self._axes.pipeline_group(places) for places in dict.fromkeys(holders.values())}
        mine = {name for name, parameter in self._state.parameters.items() if parameter.requires_grad}
        found = {name: groups[places] for name, places in holders.items() if name in mine}
        return {name: group for name, group in found.items() if group is not None}

    def _merged(self, model: nn.Module) -> nn.Module:
        """The recipe's model with the parameters of this rank in their places, and none in others."""
        merged, first = share_copy(model), {id(p): name for name, p in model.named_parameters()}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owner, _, attribute = name.rpartition(".")
            held = self._state.parameters.get(first[id(parameter)])
            merged.get_submodule(owner)._parameters[attribute] = held  # noqa: SLF001
        return merged

    def _is_ours(self, stage: int, name: str, tensor: Tensor) -> bool:
        """Whether a stage answers for a tensor: of buffers outside the blocks all have one, but only one uses it."""
        if isinstance(tensor, nn.Parameter) or any(name.startswith(f"{block}.") for block in self._structure.blocks):
            return True
        return stage == (len(self._plan.stages) - 1 if name in self._structure.late else 0)


def _inside(
    outer: Callable[[], AbstractContextManager[Any]], inner: Callable[[int], AbstractContextManager[Any]], part: int
) -> Callable[[int], AbstractContextManager[Any]]:
    """Both contexts, one inside the other, and draws of its own for each part of a sequence."""

    @contextlib.contextmanager
    def both(index: int) -> Iterator[None]:
        with outer(), inner(index):
            seeds.also(part)
            yield

    return both


@torch.no_grad()
def _take(held: Sequence[tuple[Layout, nn.Parameter]], tensor: Tensor) -> None:
    """Copy this rank's part of a whole parameter to where it belongs."""
    for layout, ours in held:
        for box in layout.boxes(ours):
            box.of(local(ours)).copy_(box.of_whole(tensor))


def _place(root: nn.Module, device: torch.device, placed: dict[int, tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Move `root` to `device`; what is on meta gets memory there, to be filled.

    What is shared stays so, also between stages: `placed` has what stood at first for each parameter, and what does.
    """
    places: dict[int, list[tuple[nn.Module, str, nn.Parameter]]] = {}
    for module in root.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(id(parameter), []).append((module, name, parameter))
    root._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))  # noqa: SLF001
    for key, users in places.items():
        for module, name, before in users:
            now = placed.setdefault(key, (before, module.get_parameter(name)))[1]
            module._parameters[name] = now  # noqa: SLF001


def _spans(plan: Plan) -> list[tuple[int, int]]:
    """The units of each stage."""
    spans, first = [], 0
    for stage in plan.stages:
        spans.append((first, first + stage.blocks))
        first += stage.blocks
    return spans


def _check_nothing_is_lost(
    structure: Structure, parameters: Mapping[str, nn.Parameter], plan: Plan, group: dist.ProcessGroup
) -> None:
    """Every parameter of the model is on some stage (Megatron-LM issue 1304: layers were dropped without a word)."""
    held: list[list[str]] = [[] for _ in range(plan.mesh.pp)]
    dist.all_gather_object(held, sorted(parameters), group=group)
    lost = frozenset().union(*structure.needs) - {name for names in held for name in names}
    if lost:
        raise SpecError(f"the plan's stages hold no {min(lost)} ({len(lost)} parameters of none)")
