"""One stage of a pipeline as a module: the user's own forward and loss, run from one cut to the next.

Every rank has the batch, so nothing but the hidden state crosses a cut: masks, positions and rotary tables are
computed again where they are needed. A stage runs the whole loss function, with the blocks before its own passing
their input on, the hidden state that arrived put in the place of its first block's input, and a way out taken when
its last block has returned. What a stage does not hold gives NaN, so that a model which looks there in secret fails
loudly in its first step instead of learning nonsense.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mainspring.models.structure import Structure, first_output, first_tensor, share_copy
from mainspring.train.parallel.loss import LossModule
from mainspring.train.recipe import Loss


class _Reached(BaseException):
    """The way out of a user's forward at the end of a stage; not an `Exception`, so that no user code catches it."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class _Contiguous(torch.autograd.Function):
    """What is given, unchanged; its gradient in contiguous memory."""

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:  # noqa: ARG004 torch's call
        return given.view_as(given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004 torch's call
        return gradients[0].contiguous()


class StageModule(nn.Module):
    """Units `[first, last)` of a model whose other units were taken out. Called once for each micro-batch.

    `around(index)` is entered for micro-batch `index` of the step. The last stage returns the summed loss, and leaves
    it and its count in `totals`; others return the hidden state.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        structure: Structure,
        span: tuple[int, int],
        around: Callable[[int], AbstractContextManager[Any]],
    ) -> None:
        super().__init__()
        self.inner = LossModule(model, loss)
        self.totals: list[tuple[Tensor, Tensor]] = []
        self._structure = structure
        self._span = span
        self._around = around
        self._received: Tensor | None = None
        self._arrived = False
        # Torch learns the shapes at the cuts from a first pass over made-up numbers (2.13, `PipelineStage`).
        self._rehearses = True

    @property
    def model(self) -> nn.Module:
        """The user's model, without what other stages hold."""
        return self.inner.model

    @property
    def is_last(self) -> bool:
        """Whether the loss is computed here."""
        return self._span[1] == self._structure.units

    def attach(self) -> None:
        """Put the two ends in place. To be called after every other hook has been registered."""
        first, last = self._span
        blocks = [self.model.get_submodule(name) for name in self._structure.blocks]
        if first:
            self._look_up_nothing_before_the_cut(blocks)
        if 0 < first <= len(blocks):
            blocks[first - 1].register_forward_pre_hook(self._replace_input, prepend=True, with_kwargs=True)
        elif first > len(blocks):
            blocks[-1].forward = self._hand_on_received
        if last == 1:
            blocks[0].register_forward_pre_hook(self._leave_before, prepend=True, with_kwargs=True)
        elif last <= len(blocks) + 1:
            blocks[last - 2].register_forward_hook(self._leave_after)

    def forward(self, *received: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        """The hidden state at the end of this stage, or the summed loss."""
        if self._rehearses and self.training:
            self._rehearses = False
            with _other_buffers(self):
                return self._run(received, rows, int(index))[0]
        hidden, count = self._run(received, rows, int(index))
        if count is not None:
            self.totals.append((hidden.detach(), count))
        return hidden

    def _run(self, received: tuple[Tensor, ...], rows: Tensor, index: int) -> tuple[Tensor, Tensor | None]:
        # Neighbours exchange hidden states and their gradients as contiguous memory (torch 2.13, `PipelineStage`).
        self._received, self._arrived = _Contiguous.apply(received[0]) if received else None, False
        with self._around(index):
            try:
                return self.inner(rows)
            except _Reached as reached:
                return reached.hidden, None
            finally:
                self._received = None

    def _look_up_nothing_before_the_cut(self, blocks: list[nn.Module]) -> None:
        """A table of words that is here for the head's sake gives NaN to what runs ahead of this stage."""
        inside = {id(module) for block in blocks for module in block.modules()}
        for module in self.model.modules():
            if isinstance(module, nn.Embedding) and id(module) not in inside:
                vars(module)["forward"] = partial(self._look_up, module, module.forward)

    def _look_up(self, table: nn.Embedding, look_up: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if self._arrived:
            return look_up(*args, **kwargs)
        ids = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        return torch.full((), torch.nan, device=ids.device).expand(*ids.shape, table.embedding_dim)

    def _replace_input(self, _: nn.Module, args: Any, kwargs: Any) -> Any:
        self._arrived = True
        place = self._structure.hidden
        if isinstance(place, int):
            return (*args[:place], self._received, *args[place + 1 :]), kwargs
        return args, kwargs | {place: self._received}

    def _hand_on_received(self, *_: Any, **__: Any) -> Tensor | None:
        self._arrived = True
        return self._received

    def _leave_before(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = first_tensor(args, kwargs)[1]
        assert hidden is not None
        raise _Reached(_handed(hidden))

    def _leave_after(self, _: nn.Module, __: Any, output: Any) -> None:
        hidden = first_output(output)
        assert hidden is not None
        raise _Reached(_handed(hidden))


def _handed(hidden: Tensor) -> Tensor:
    """`hidden` as the next stage is given it.

    It needs a gradient though nothing before it be trained: a schedule that splits the backward in two computes no
    gradients of weights in a stage whose input needs none (torch 2.13, zero-bubble and ZBV).
    """
    hidden = hidden.contiguous()
    return hidden if hidden.requires_grad or not torch.is_grad_enabled() else hidden.detach().requires_grad_()


@contextlib.contextmanager
def _other_buffers(module: nn.Module) -> Iterator[None]:
    """Run on copies of the buffers, so that nothing of what happens inside is kept."""
    kept = [(owner, name, buffer) for owner in module.modules() for name, buffer in owner.named_buffers(recurse=False)]
    for owner, name, buffer in kept:
        owner._buffers[name] = buffer.clone()  # noqa: SLF001
    try:
        yield
    finally:
        for owner, name, buffer in kept:
            owner._buffers[name] = buffer  # noqa: SLF001


def cut_out(model: nn.Module, structure: Structure, span: tuple[int, int], device: torch.device) -> nn.Module:
    """A copy of `model` with the parameters of units `[first, last)` alone; it shares them with `model`.

    What stands in for the others is on `device`.
    """
    first, last = span
    needed = frozenset[str]().union(*structure.needs[first:last])
    # Tables of integers are no one's to train, and nothing else can stand in for them.
    kept = {id(p) for name, p in model.named_parameters() if name in needed or not p.is_floating_point()}
    copied = share_copy(model)
    for unit, name in enumerate(structure.blocks, start=1):
        if not first <= unit < last:
            _empty(copied.get_submodule(name), structure)
    for module in list(copied.modules()):
        missing = [key for key, p in module.named_parameters(recurse=False) if id(p) not in kept]
        if missing:
            _forget(module, missing, device)
    return copied


def _empty(block: nn.Module, structure: Structure) -> None:
    """Make a block of another stage pass on what it is given."""
    block._parameters.clear()  # noqa: SLF001
    block._modules.clear()  # noqa: SLF001
    block._buffers.clear()  # noqa: SLF001

    def forward(*args: Any, **kwargs: Any) -> Any:
        return args[structure.hidden] if isinstance(structure.hidden, int) else kwargs[structure.hidden]

    block.forward = forward


def _forget(module: nn.Module, names: list[str], device: torch.device) -> None:
    """Take parameters away; what is computed with them is NaN, and costs next to nothing where torch allows it."""
    for name in names:
        parameter = module._parameters[name]  # noqa: SLF001
        assert parameter is not None
        del module._parameters[name]  # noqa: SLF001
        poison = torch.full((), torch.nan, dtype=parameter.dtype, device=device)
        module.__dict__[name] = poison.expand(parameter.shape)
