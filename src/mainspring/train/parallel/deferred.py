"""Building a model that no machine could hold: what its constructor does is noted, and done later, part by part.

While a recipe builds its model, large tensors are made on meta and every operation on them is written down. Afterwards
the list is gone through once on real memory, in the same order and from the same seed, so that random numbers fall as
they would have; each parameter is handed over when it is finished, and freed once this rank has taken its part. So
every rank starts from exactly the weights that one process would have built, holding one whole parameter at a time.

A constructor that looks at the values of large tensors cannot be put off: then the model is built at once, as ever.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mainspring.spec import Plan

log = logging.getLogger(__name__)

SMALL = 4096  # entries; tensors up to this size are made at once
META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class _Ref:
    """A tensor that was made while noting: a view of storage number `key`."""

    key: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Note:
    """One operation, its arguments with tensors replaced, and the storages it returned."""

    operation: Any
    args: Any
    kwargs: Any
    given: tuple[_Ref | None, ...]


class Deferred(TorchDispatchMode):
    """Notes what is done while entered."""

    def __init__(self) -> None:
        super().__init__()
        self._notes: list[_Note] = []
        self._keys: dict[int, int] = {}
        # The default generator begins as the caller of `fill` seeds it.
        self._states: dict[torch.Generator, Tensor] = {torch.default_generator: torch.get_rng_state()}
        self._alive: list[torch.UntypedStorage] = []  # so that no identity is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it, or on meta pretend to, and write it down."""
        kwargs = kwargs or {}
        generators = {torch.default_generator, *(g for g in tree_leaves((args, kwargs)) if isinstance(g, torch.Generator))}
        for generator in generators:
            self._note_seeding(generator)
        noted = tree_map(self._noted, (args, kwargs))
        result = _on_meta(func, args, kwargs)
        for generator in generators:
            self._states[generator] = generator.get_state()
        given = tuple(self._taken(leaf) for leaf in tree_leaves(result))
        self._notes.append(_Note(func, noted[0], noted[1], given))
        return result

    def key(self, tensor: Tensor) -> int | None:
        """The number of the storage behind `tensor`; None if it was not made while noting."""
        return self._keys.get(tensor.untyped_storage()._cdata)  # noqa: SLF001

    def replay(self, wanted: Mapping[int, Callable[[torch.UntypedStorage], None]]) -> None:
        """Do everything for real, and give each storage in `wanted` away once nothing more happens to it."""
        last: dict[int, int] = {}
        for place, note in enumerate(self._notes):
            for ref in (*tree_leaves((note.args, note.kwargs)), *note.given):
                if isinstance(ref, _Ref):
                    last[ref.key] = place
        ends: dict[int, list[int]] = {}
        for key, place in last.items():
            ends.setdefault(place, []).append(key)
        real: dict[int, torch.UntypedStorage] = {}
        for place, note in enumerate(self._notes):
            args, kwargs = tree_map(lambda leaf: _real(leaf, real), (note.args, note.kwargs))
            found = tree_leaves(note.operation(*args, **kwargs))
            for ref, tensor in zip(note.given, found, strict=True):
                if ref is not None:
                    real[ref.key] = tensor.untyped_storage()
            del args, kwargs, found
            for key in ends.get(place, ()):
                storage = real.pop(key)
                if key in wanted:
                    wanted[key](storage)

    def _note_seeding(self, generator: torch.Generator) -> None:
        """Write down that somebody has seeded `generator` since its last use."""
        now = generator.get_state()
        if generator not in self._states or not torch.equal(now, self._states[generator]):
            self._notes.append(_Note(generator.set_state, (now,), {}, (None,)))

    def _noted(self, leaf: Any) -> Any:
        key = self.key(leaf) if isinstance(leaf, Tensor) else None
        return leaf if key is None else _ref(leaf, key)

    def _taken(self, leaf: Any) -> _Ref | None:
        if not isinstance(leaf, Tensor):
            return None
        storage = leaf.untyped_storage()
        if storage._cdata not in self._keys:  # noqa: SLF001
            self._keys[storage._cdata] = len(self._alive)  # noqa: SLF001
            self._alive.append(storage)
        return _ref(leaf, self._keys[storage._cdata])  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Built:
    """A model; `fill` brings the tensors that were put off to whoever is told to take them, by name and whole."""

    model: nn.Module
    fill: Callable[[Callable[[str, Tensor], None]], None]


def build(make: Callable[[], nn.Module], plan: Plan, *, seed: int) -> Built:
    """The model that `make` makes from `seed`: put off where `plan` leaves each rank but a part of it."""
    mesh, deferred = plan.mesh, None
    torch.manual_seed(seed)
    if plan.zero or mesh.pp * mesh.tp * mesh.ep > 1:
        deferred = build_deferred(make)
    if deferred is None:
        torch.manual_seed(seed)
        return Built(make(), lambda take: None)  # noqa: ARG005 everything is there
    model, notes = deferred
    return Built(model, partial(fill, notes, dict(deferred_tensors(model, notes)), seed))


def build_deferred(build: Callable[[], nn.Module]) -> tuple[nn.Module, Deferred] | None:
    """The module with its large tensors on meta, and how to fill them; None when it cannot be put off."""
    deferred = Deferred()
    try:
        with deferred:
            model = build()
    except (RuntimeError, NotImplementedError) as error:
        log.info("the model is built at once", extra={"reason": str(error)})
        return None
    named = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        for value in tree_leaves(list(vars(module).values())):
            if isinstance(value, Tensor) and value.is_meta and id(value) not in named:
                return None  # a tensor that nobody could fill, because it has no name
    return model, deferred


def fill(deferred: Deferred, sources: Mapping[str, Tensor], seed: int, take: Callable[[str, Tensor], None]) -> None:
    """Make the tensors `sources` of a deferred model, and give each to `take` by name, whole, once it is finished."""
    wanted: dict[int, list[str]] = {}
    for name, tensor in sources.items():
        key = deferred.key(tensor)
        assert key is not None
        wanted.setdefault(key, []).append(name)

    def giver(names: list[str]) -> Callable[[torch.UntypedStorage], None]:
        def give(storage: torch.UntypedStorage) -> None:
            for name in names:
                like = sources[name]
                take(name, _view(storage, _ref(like, 0)))

        return give

    torch.manual_seed(seed)
    with torch.no_grad():
        deferred.replay({key: giver(names) for key, names in wanted.items()})


def deferred_tensors(model: nn.Module, deferred: Deferred) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of `model` that are still to be filled, by name."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if deferred.key(tensor) is not None:
            yield name, tensor


def _on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    makes = any(argument.name == "device" for argument in func._schema.arguments)  # noqa: SLF001
    given = any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
    if not makes or (given and kwargs.get("device") is None):
        return func(*args, **kwargs)
    pretended = func(*args, **(kwargs | {"device": META}))
    return pretended if pretended.numel() > SMALL else func(*args, **kwargs)


def _ref(tensor: Tensor, key: int) -> _Ref:
    return _Ref(key, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)


def _view(storage: torch.UntypedStorage, ref: _Ref) -> Tensor:
    return torch.empty(0, dtype=ref.dtype, device=storage.device).set_(storage, ref.offset, ref.size, ref.stride)  # pyright: ignore[reportArgumentType,reportCallIssue]


def _real(leaf: Any, real: Mapping[int, torch.UntypedStorage]) -> Any:
    return _view(real[leaf.key], leaf) if isinstance(leaf, _Ref) else leaf
