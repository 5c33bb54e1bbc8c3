"""Build a model without its weights, and make each weight later with the value it would have had.

A rank of a sharded run needs a part of every weight and must not hold the whole model to get it. But a recipe's model
is any function: it draws initial values in an order of its own, copies blocks, ties weights. So the function runs with
tensors that hold nothing (torch's `FakeTensor`) while every operation is written down, with the state of the random
generator before each that draws; a weight is then made by repeating the operations that led to it, and those alone (the
idea of torchdistX's deferred initialisation). It is the same to the last bit as if the function had run as it is,
because the same operations start from the same random states.

Each number is drawn twice, as a generator can skip numbers only by drawing them. A value that the function looks at is
made at once and forgotten. A function that keeps a tensor elsewhere than in a module, or whose shapes depend on values,
cannot run like this: it runs as it is, and the log says why.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import ctypes
import gc
import logging
import random
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

log = logging.getLogger(__name__)

# Draws that take as many numbers from the generator as their shapes say.
DRAWS = frozenset({
    "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "random_", "randperm", "uniform_",
})  # fmt: skip


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


class NotDeferrableError(Exception):
    """The function did something that cannot be written down and repeated."""


@dataclass(frozen=True, slots=True)
class View:
    """How a tensor lies in its storage, which `storage` numbers."""

    storage: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, storage: torch.UntypedStorage) -> Tensor:
        """The same view of another storage."""
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


@dataclass(frozen=True, slots=True)
class Draw:
    """The generator that an operation drew from, and its state before."""

    generator: torch.Generator
    state: Tensor


@dataclass(frozen=True, slots=True)
class Operation:
    """A call that made or changed storages. `View`s stand for the tensors among its arguments and results."""

    call: Callable[..., Any]
    given: tuple[Any, ...]
    named: Mapping[str, Any]
    results: tuple[View, ...]
    reads: frozenset[int]
    writes: frozenset[int]
    draw: Draw | None


class Tape(TorchDispatchMode):
    """What is done to tensors while it is entered. No tensor made meanwhile holds anything."""

    def __init__(self) -> None:
        super().__init__()
        self._fake = FakeTensorMode()
        self._operations: list[Operation] = []
        self._constants: dict[int, Tensor] = {}
        # A storage that is referred to, even weakly, shares its number with no later one.
        self._storages: dict[int, StorageWeakRef] = {}
        # Every generator that was drawn from, and its state before that.
        self._began: dict[torch.Generator, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Find the shape of the result and write the operation down."""
        del types
        written = _written(func, args, kwargs or {})
        if any(not isinstance(tensor, FakeTensor) for tensor in written):
            raise NotDeferrableError(f"{func} changes a tensor that was made elsewhere")
        given, named = tree_map_only(Tensor, self._stand_in, (args, dict(kwargs or {})))
        if func is torch.ops.aten._local_scalar_dense.default:  # noqa: SLF001 what `item` and `if` ask for
            return self.value(self.view(given[0])).item()
        draw = _draw(func, given, named) if torch.Tag.nondeterministic_seeded in func.tags else None
        if draw is not None:
            self._began.setdefault(draw.generator, draw.state)
        with self._fake:
            made = func(*given, **{**named, "generator": None} if "generator" in named else named)
        before = frozenset(map(_number, _tensors((given, named))))
        results = tuple(map(self.view, _tensors(made)))
        writes = frozenset(map(_number, written)) | {view.storage for view in results} - before
        if writes:
            given, named = tree_map_only(Tensor, self.view, (given, named))
            self._operations.append(Operation(func, given, named, results, before, writes, draw))
        return made

    def view(self, tensor: Tensor) -> View:
        """How a tensor made under this tape lies in its storage."""
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg():
            raise NotDeferrableError(f"a tensor on {tensor.device}, {tensor.layout}")
        number = _number(tensor)
        if number not in self._storages:
            self._storages[number] = StorageWeakRef(tensor.untyped_storage())
        return View(number, tensor.dtype, tuple(tensor.size()), tensor.stride(), int(tensor.storage_offset()))

    def in_use(self) -> set[int]:
        """The storages made here that something still refers to."""
        return {number for number, storage in self._storages.items() if not storage.expired()}

    def rewind(self) -> None:
        """Set every generator back to where it was before the first draw."""
        for generator, state in self._began.items():
            generator.set_state(state)

    @torch.no_grad()
    def value(self, wanted: View) -> Tensor:
        """What the tensor that was seen as `wanted` would hold."""
        needed, chosen = {wanted.storage}, list[Operation]()
        for operation in reversed(self._operations):
            if operation.writes & needed:
                needed |= operation.reads
                chosen.append(operation)
        storages = {n: self._constants[n].clone().untyped_storage() for n in needed & self._constants.keys()}
        draws = [operation.draw for operation in chosen if operation.draw is not None]
        now = {draw.generator: draw.generator.get_state() for draw in draws}
        while chosen:
            _repeat(chosen.pop(), storages)
            still = {wanted.storage}.union(*(later.reads | later.writes for later in chosen))
            for number in storages.keys() - still:
                del storages[number]
        for generator, state in now.items():
            generator.set_state(state)
        _give_back()
        return wanted.of(storages[wanted.storage])

    def _stand_in(self, tensor: Tensor) -> Tensor:
        """`tensor`, or what stands for one that was made elsewhere, whose value is kept."""
        if isinstance(tensor, FakeTensor):
            return tensor
        with self._fake:
            fake = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        self._constants[self.view(fake).storage] = tensor.detach().clone()
        return fake


class Deferred:
    """A model whose parameters hold nothing yet, on meta, and how to make each. What else it holds is made at once."""

    def __init__(self, model: nn.Module, tape: Tape) -> None:
        self.model = model
        self._tape = tape
        self._views: dict[str, View] = {}
        kept = {_number(tensor) for _, _, tensor in _unmade(model)}
        if tape.in_use() - kept:
            raise NotDeferrableError("a tensor is kept that is no parameter, buffer or attribute of a module")
        for name, parameter in model.named_parameters():
            if isinstance(parameter, FakeTensor):
                self._views[name] = tape.view(parameter)
        made: dict[int, Tensor] = {}  # one that is there twice stays one
        for module, name, fake in list(_unmade(model)):
            if id(fake) not in made:
                made[id(fake)] = self._stand_for(fake)
            setattr(module, name, made[id(fake)])

    def fill(self, take: Callable[[str, Tensor], None], wanted: Collection[str] | None = None) -> None:
        """Make the parameters `wanted` by name, or all, one after the other, and have `take` make use of each."""
        for name, view in self._views.items():
            if wanted is None or name in wanted:
                take(name, self._tape.value(view))

    def _stand_for(self, fake: FakeTensor) -> Tensor:
        view = self._tape.view(fake)
        if not isinstance(fake, nn.Parameter):
            return self._tape.value(view)
        empty = torch.empty_strided(view.size, view.stride, dtype=view.dtype, device="meta")
        return nn.Parameter(empty, requires_grad=fake.requires_grad)


def build(make: Callable[[], nn.Module]) -> Deferred:
    """What `make` returns, deferred where that can be; else as `make` makes it, and the log says why."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    tape = Tape()
    try:
        with tape, warnings.catch_warnings():
            # copy.deepcopy compares the address of what it copies with 0.
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            model = make()
        gc.collect()  # what only a cycle holds is not in use
        return Deferred(model, tape)
    except Exception as error:  # noqa: BLE001 the user's code; should it be wrong as it is, it is raised below
        log.warning("every rank makes the whole model at first", extra={"reason": f"{type(error).__name__}: {error}"})
    tape.rewind()  # generators of the recipe's own, too
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    return Deferred(make(), Tape())


def _unmade(part: nn.Module) -> Iterator[tuple[nn.Module, str, FakeTensor]]:
    """Every parameter, buffer and plain attribute of every module that holds nothing: its owner, its name, itself."""
    for module in part.modules():
        for names in (module._parameters, module._buffers, vars(module)):  # noqa: SLF001 shared ones under each name
            for name, value in names.items():
                if isinstance(value, FakeTensor):
                    yield module, name, value


def _repeat(operation: Operation, storages: dict[int, torch.UntypedStorage]) -> None:
    """Do it with real tensors in `storages`, and put what it makes there."""
    arguments = operation.given, operation.named
    given, named = tree_map_only(View, lambda view: view.of(storages[view.storage]), arguments)
    if operation.draw is not None:
        operation.draw.generator.set_state(operation.draw.state)
    made = operation.call(*given, **named)
    for view, result in zip(operation.results, _tensors(made), strict=True):
        assert (view.dtype, view.stride) == (result.dtype, result.stride()), f"{operation.call} is not as foreseen"
        storages.setdefault(view.storage, result.untyped_storage())


def _draw(func: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> Draw:
    """Draw what the operation would, so that the next one draws what comes after it."""
    name = func._schema.name.rpartition("::")[2]  # noqa: SLF001 the schema's is the only name
    generator = named.get("generator") or torch.default_generator
    if name not in DRAWS or generator.device.type != "cpu":
        raise NotDeferrableError(f"{func} draws as many random numbers as its values say")
    draw = Draw(generator, generator.get_state())
    given, named = tree_map_only(Tensor, _zeros, (given, dict(named)))
    func(*given, **named)
    del given, named
    _give_back()
    return draw


def _give_back() -> None:
    """Return freed memory to the system: glibc keeps what a moment's tensors leave between longer-lived ones.

    Without this a rank that makes 97 M parameters one by one peaks higher than one that makes them all at once.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def _zeros(fake: Tensor) -> Tensor:
    return torch.empty_strided(fake.size(), fake.stride(), dtype=fake.dtype).zero_()


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that the operation changes."""
    found: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):  # noqa: SLF001
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += _tensors(args[position] if position < len(args) else kwargs.get(argument.name))
    return found


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _number(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # noqa: SLF001 what holds nothing has no address
