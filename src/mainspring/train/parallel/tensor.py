"""Tensor parallelism: each rank holds a part of every matrix of a region and computes a part of the region's sum.

`models.divide` says what can be divided; this file does it. Parameters stay ordinary tensors, only smaller, so the
user's code, sharding and every optimiser that works element by element go on as before. A region costs one sum
forward and one backward, whatever number of matrices read its input (Shoeybi et al. 2019, section 3). With sequence
parallelism (Korthikanti et al. 2022) what lies between regions is cut along the sequence, and each sum becomes a
scatter there and a gather at the next region: the same bytes, and only a part of the activations.

Parameters that every rank of a region holds whole get different gradients on each; `Division.partial` names them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mainspring.models import divide as describe
from mainspring.models.divide import Region, Vocabulary
from mainspring.models.sequence import SEQUENCE
from mainspring.models.structure import first_output, first_tensor
from mainspring.models.trial import tensors_of
from mainspring.spec import SpecError
from mainspring.train.parallel.collectives import enter, enter_joined, join, leave, leave_split, split
from mainspring.train.parallel.layout import Layout, even_runs

log = logging.getLogger(__name__)

ENTRANCE, EXIT = "_EnterBackward", "_LeaveBackward"  # what torch calls the backward of `enter` and `leave`


@dataclass(slots=True)
class Division:
    """How the parameters of a model were cut, by name, and those whose gradients must be added up over `tp`."""

    layouts: dict[str, Layout] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)


def divisible(model: nn.Module, degree: int, whole: Sequence[str] = ()) -> list[Region]:
    """The regions of `model` that `degree` ranks share. Raises `SpecError` when there is none, or one does not fit."""
    found = describe.regions(model, whole=whole)
    if not found:
        raise SpecError(
            f"tensor parallelism over {degree} ranks divides nothing of this model",
            hint="its layers follow no known pattern, and halves of them do not add up; set tp = 1 in the plan",
        )
    for region in found:
        for name, size in region.sizes:
            if size % degree:
                raise SpecError(
                    f"{region.name} has {size} {name}, which {degree} ranks cannot share evenly",
                    hint=f"set tp in the plan to a divisor of {size}, or name {region.name} in replicate",
                )
    return found


def divide(
    model: nn.Module,
    group: dist.ProcessGroup,
    regions: Sequence[Region],
    *,
    vocabulary: Vocabulary | None,
    blocks: Sequence[str],
    sequence: bool,
) -> Division:
    """Cut `regions` and `vocabulary` of `model` in place over `group`, those of its `blocks` that are in this stage."""
    cutter = _Cutter(model, group, sequence=sequence)
    for region in regions:
        if _is_here(model, region):
            cutter.region(region)
    if vocabulary is not None:
        cutter.vocabulary(vocabulary)
    if sequence:
        cutter.along_sequence(blocks)
    return cutter.division


def divisible_vocabulary(model: nn.Module, degree: int, whole: Sequence[str] = ()) -> Vocabulary | None:
    """The table of words of `model`, if `degree` ranks can share it."""
    found = describe.vocabulary(model)
    if found is None or found.size % degree:
        return None
    names = ("embedding", "head", found.embedding, found.head)  # the first two are what profiles call them
    kept = any(fnmatchcase(name, pattern) for name in names for pattern in whole)
    return None if kept else found


def _is_here(model: nn.Module, region: Region) -> bool:
    """Whether the region is in this stage: blocks of other stages are empty."""
    try:
        model.get_submodule(".".join(filter(None, (region.name, region.rows[0]))))
    except AttributeError:
        return False
    return True


class _Cutter:
    """Cuts the modules of one model, remembering what became of each parameter."""

    def __init__(self, model: nn.Module, group: dist.ProcessGroup, *, sequence: bool) -> None:
        self._model = model
        self._group = group
        self._sequence = sequence
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._cut: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # both are kept, so that ids stay theirs
        self._alone: set[str] = set()  # names that no region holds
        self.division = Division()

    def region(self, region: Region) -> None:
        """Cut the layers of a region and put its two ends in place."""
        module = self._model.get_submodule(region.name)
        for name, sections in region.columns:
            self._column(module.get_submodule(name), sections)
        for name in region.rows:
            self._row(module.get_submodule(name))
        for count in region.counts:
            setattr(module, count, getattr(module, count) // self._group.size())
        self._enter(module, region)
        rows = {id(module.get_submodule(name)) for name in region.rows}
        for child in module.modules():
            for parameter in child.parameters(recurse=False):
                if id(parameter) in self._names and id(child) not in rows:
                    self.division.partial.add(self._names[id(parameter)])

    def vocabulary(self, vocabulary: Vocabulary) -> None:
        """Cut the table of words, and the scores that are computed from it."""
        group, size = self._group, vocabulary.size
        embedding = self._model.get_submodule(vocabulary.embedding)
        head = self._model.get_submodule(vocabulary.head)
        first = size // group.size() * group.rank()
        for module in (embedding, head):
            if "weight" in module._parameters:  # noqa: SLF001 a tied head has none of its own, another stage holds it
                self._replace(module, "weight", dim=0, sections=())
        for module in (embedding, head):
            for attribute in ("num_embeddings", "out_features"):
                if hasattr(module, attribute):
                    setattr(module, attribute, size // group.size())
        scores = head.forward
        assert isinstance(embedding, nn.Embedding)
        vars(embedding)["forward"] = partial(_look_up, embedding, first, group)
        head.forward = lambda x: join(scores(enter(x, group)), -1, group)

    def along_sequence(self, blocks: Sequence[str]) -> None:
        """Cut what flows between the blocks along the sequence."""
        if not blocks:
            raise SpecError("sequence parallelism needs a chain of blocks", hint="set sequence_parallel = false")
        first, last = (self._model.get_submodule(blocks[place]) for place in (0, -1))
        if any(True for _ in first.children()):  # blocks of other stages are empty
            rewrite_input(first, lambda x: split(x, SEQUENCE, self._group))
        if any(True for _ in last.children()):
            rewrite_output(last, lambda x: join(x, SEQUENCE, self._group))
        for name in blocks:
            for inner, parameter in self._model.get_submodule(name).named_parameters():
                if id(parameter) in self._names:
                    self.division.partial.add(f"{name}.{inner}")

    def _enter(self, module: nn.Module, region: Region) -> None:
        into: Callable[[Tensor], Tensor]
        into = (lambda x: enter_joined(x, SEQUENCE, self._group)) if self._sequence else self._enter_whole
        entrance = _Entrance(region.name, None if self._sequence else into)
        module.register_forward_pre_hook(entrance.arrive, with_kwargs=True)
        rewrite_input(module, into)
        for column, _ in region.columns:
            module.get_submodule(column).register_forward_pre_hook(entrance.read)
        for row in region.rows:
            module.get_submodule(row).register_forward_pre_hook(entrance.check)
        module.register_forward_hook(partial(entrance.depart, region.rows))

    def _enter_whole(self, x: Tensor) -> Tensor:
        return enter(x, self._group)

    def _column(self, layer: nn.Module, sections: int) -> None:
        each = describe.out_features(layer) // sections
        self._replace(layer, "weight", dim=int(describe.is_transposed(layer)), sections=(each,) * sections)
        if layer._parameters.get("bias") is not None:  # noqa: SLF001
            self._replace(layer, "bias", dim=0, sections=(each,) * sections)
        _set_outputs(layer, each * sections // self._group.size())

    def _row(self, layer: nn.Module) -> None:
        self._replace(layer, "weight", dim=int(not describe.is_transposed(layer)), sections=())
        out = (lambda x: leave_split(x, SEQUENCE, self._group)) if self._sequence else self._leave_whole
        layer.forward = partial(_row_forward, layer, out)

    def _leave_whole(self, x: Tensor) -> Tensor:
        return leave(x, self._group)

    def _replace(self, module: nn.Module, attribute: str, *, dim: int, sections: Sequence[int]) -> None:
        """This rank's part of a parameter, wherever it is registered."""
        old = module.get_parameter(attribute)
        if id(old) not in self._cut:
            if old not in set(self._model.parameters()):
                return  # another module shares it, and it was cut there
            runs = even_runs(old.shape[dim], part=self._group.rank(), parts=self._group.size(), sections=sections)
            layout = Layout(tuple(old.shape), dim, runs)
            new = nn.Parameter(layout.cut(old.data), requires_grad=old.requires_grad)
            self._cut[id(old)] = (old, new)
            self.division.layouts[self._names.pop(id(old))] = layout
        module._parameters[attribute] = self._cut[id(old)][1]  # noqa: SLF001


class _Entrance:
    """Sees to what a region is handed beside the hidden state: what an encoder found, for cross-attention.

    Such a tensor enters where a column reads it. One that gets to the rows another way would have a part of its
    gradient on each rank; one that does not get there, as a residual that is added to their sum, has all of it.
    """

    def __init__(self, name: str, into: Callable[[Tensor], Tensor] | None) -> None:
        self._name = name
        self._into = into
        self._others: dict[int, Tensor] = {}
        self._entered: dict[int, Tensor] = {}
        self._seen = False

    def arrive(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Note what else is handed over."""
        hidden = first_tensor(args, kwargs)[1]
        floating = [each for each in tensors_of([args, kwargs]) if each.is_floating_point()]
        first = next((place for place, each in enumerate(floating) if each is hidden), len(floating))
        others = [each for each in (*floating[:first], *floating[first + 1 :]) if each.requires_grad]
        if others and self._into is None:
            raise self._refusal()
        self._others, self._entered = {id(each): each for each in others}, {}

    def read(self, _: nn.Module, args: Any) -> Any:
        """What a column reads, entered if it was handed over."""
        given = self._others.get(id(args[0])) if args else None
        if given is None or self._into is None:
            return None
        if id(given) not in self._entered:
            self._entered[id(given)] = self._into(given)
        return (self._entered[id(given)], *args[1:])

    def check(self, _: nn.Module, args: Any) -> None:
        """Nothing may come to a row but what has entered."""
        if self._others and _depends(args[0], list(self._others.values())):
            raise self._refusal()

    def depart(self, rows: Sequence[str], module: nn.Module, _: Any, output: Any) -> None:
        """After the rows all ranks do the same: what is used there must not be taken for a part, nor added up.

        Seen once, in the first step: a trial has shown it before for modules that can be run alone.
        """
        found = first_output(output)
        if self._seen or self._into is None or found is None or not found.requires_grad:
            return
        self._seen = True
        weights = {id(p) for name, p in module.named_parameters() if name.rpartition(".")[0] not in rows}
        borders = [each.grad_fn for each in self._others.values()]
        for node in _nodes(found, EXIT, borders):
            if node.name() == ENTRANCE or id(getattr(node, "variable", None)) in weights:
                raise SpecError(
                    f"{self._name} goes on with its input or its weights after {', '.join(rows)}, where ranks have all",
                    hint=f"name {self._name} in replicate, or leave tp out",
                )

    def _refusal(self) -> SpecError:
        return SpecError(
            f"{self._name} is handed a second tensor that needs a gradient, of which each rank would find a part",
            hint=f"name {self._name} in replicate, or leave tp out",
        )


def _depends(x: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether the gradient of `x` reaches one of `others` without leaving the region."""
    leaves, nodes = {id(each) for each in others}, {each.grad_fn for each in others}
    return any(node in nodes or id(getattr(node, "variable", None)) in leaves for node in _nodes(x, ENTRANCE, ()))


def _nodes(x: Tensor, last: str, borders: Sequence[object]) -> Iterator[Any]:
    """The nodes that the gradient of `x` goes through, up to those called `last` and to `borders`, these too."""
    waiting: list[Any] = [x.grad_fn]
    seen: set[object] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if node.name() != last and node not in borders:
            waiting += [following for following, _ in node.next_functions]


def rewrite_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Have `change` applied to the first tensor that `module` is called with."""

    def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
        place, value = first_tensor(args, kwargs)
        assert value is not None
        if isinstance(place, int):
            return (*args[:place], change(value), *args[place + 1 :]), kwargs
        return args, kwargs | {place: change(value)}

    module.register_forward_pre_hook(hook, with_kwargs=True)


def rewrite_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Have `change` applied to the tensor that `module` hands on."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        value = first_output(output)
        assert value is not None
        return change(value) if output is value else type(output)([change(value), *output[1:]])

    module.register_forward_hook(hook)


def _row_forward(layer: nn.Module, out: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    total = out(describe.linear(layer, x))
    bias = layer.bias
    return total + bias if isinstance(bias, Tensor) else total


def _look_up(embedding: nn.Embedding, first: int, group: dist.ProcessGroup, ids: Tensor) -> Tensor:
    """The rows of the words that this rank holds, zero for others, added up over the ranks.

    A word of padding, which learns nothing, is one on the rank that has it.
    """
    weight = embedding.weight
    mine = ids - first
    missing = (mine < 0) | (mine >= weight.shape[0])
    padding = None if embedding.padding_idx is None else embedding.padding_idx - first
    if padding is not None and not 0 <= padding < weight.shape[0]:
        padding = None
    found = F.embedding(mine.masked_fill(missing, 0), weight, padding_idx=padding)
    return leave(found.masked_fill(missing[..., None], 0.0), group)


def _set_outputs(layer: nn.Module, size: int) -> None:
    for attribute in ("out_features", "nf"):
        if hasattr(layer, attribute):
            setattr(layer, attribute, size)


def add_up(gradients: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Sum `gradients` over the group in place, all in one message for each data type."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_type.setdefault(gradient.dtype, []).append(gradient)
    for same in by_type.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in same])
        dist.all_reduce(flat, group=group)
        for gradient, total in zip(same, flat.split([g.numel() for g in same]), strict=True):
            gradient.copy_(total.view_as(gradient))
