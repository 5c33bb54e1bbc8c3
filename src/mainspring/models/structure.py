"""How a module falls into a chain of blocks, found by running it once on meta tensors: where a pipeline may cut it.

A chain is a run of entries of `ModuleList`s and `Sequential`s, each called once, each handed what the one before has
returned (the very tensor). What comes before is the prologue, what comes after the epilogue, loss included. Which
parameters each of these units needs is read off the autograd graph with every cut made, so a tied weight belongs to
every unit that uses it, and a tensor that reaches round a cut is seen. Nothing of the user's code is changed or parsed.

Deliberately absent: chains that pass several tensors that need gradients, such as a decoder's over its encoder.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Run = Callable[[nn.Module], Tensor]
"""Runs a module on one batch and returns the loss."""

WARNING = "warn_if_padding_and_no_attention_mask"  # what models of transformers look at their input for


@dataclass(frozen=True, slots=True)
class Structure:
    """The chain of `blocks` of a model, by name in order; without any, `reason` says why it has none.

    `needs[u]` are the parameters of unit `u`: the prologue is unit 0, the blocks follow, the epilogue is last. A
    parameter of several modules has one name, its first. `hidden` is where a block takes the tensor that is passed
    on: a position or a keyword. `late` are the buffers outside the blocks that belong to what follows them.
    """

    blocks: tuple[str, ...] = ()
    needs: tuple[frozenset[str], ...] = ()
    hidden: int | str = 0
    late: frozenset[str] = frozenset()
    reason: str = ""

    @property
    def units(self) -> int:
        """How many units a pipeline may be cut into."""
        return len(self.needs)

    @property
    def shared(self) -> frozenset[str]:
        """Parameters that several units need."""
        seen: set[str] = set()
        return frozenset(name for needed in self.needs for name in needed if name in seen or seen.add(name))

    def users(self, name: str) -> int:
        """How many units need the parameter `name`."""
        return sum(name in needed for needed in self.needs)


@dataclass(slots=True)
class _Call:
    """One call of a candidate block."""

    name: str
    module: nn.Module
    taken: Tensor | None = None
    hidden: int | str = 0
    given: Tensor | None = None
    times: int = 0


@dataclass(slots=True)
class _Cuts:
    """The tensors at the cuts of one run: what flowed out of each unit, and the fresh leaf that flowed on."""

    flowed: list[Tensor] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)


def read_structure(model: nn.Module, run: Run) -> Structure:
    """The chain of blocks of `model`, which `run` runs; parameters should be on meta, where that costs nothing."""
    calls = _calls(model, run)
    chain = _longest_chain([call for call in calls if call.times == 1])
    if not chain:
        return Structure(
            reason=_repeated(model, run) or "it has no list of blocks that hand one tensor on from each to the next"
        )
    names = {id(p): name for name, p in model.named_parameters()}
    kinds = {call.hidden for call in chain}
    if len(kinds) > 1:
        return Structure(reason=f"its blocks take what they are handed in different places: {sorted(map(str, kinds))}")
    with _late_buffers(model, chain) as late:
        needs, reason = _needs(model, run, chain, names)
    if reason:
        return Structure(reason=reason)
    blocks = tuple(call.name for call in chain)
    return Structure(blocks=blocks, needs=needs, hidden=kinds.pop(), late=frozenset(late))


def outermost_entries(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The entries of lists of modules that are in no other list, by name."""
    if isinstance(module, nn.ModuleList | nn.Sequential):
        yield from ((f"{name}{key}", child) for key, child in module.named_children())
        return
    for key, child in module.named_children():
        yield from outermost_entries(child, f"{name}{key}.")


def signature(block: nn.Module) -> tuple[object, ...]:
    """What two repetitions of a block have in common: their class and the shapes of their parameters."""
    return type(block), *((name, tuple(p.shape)) for name, p in block.named_parameters())


def first_tensor(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int | str, Tensor | None]:
    """Where the first floating-point tensor among a call's arguments is, and it."""
    for place, value in [*enumerate(args), *kwargs.items()]:
        if isinstance(value, Tensor) and value.is_floating_point():
            return place, value
    return 0, None


def first_output(output: Any) -> Tensor | None:
    """The tensor that a block hands on: what it returns, or the first of what it returns."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) else None


def share_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules of `model` that holds the same parameters and copies of its buffers."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def ghost(model: nn.Module) -> nn.Module:
    """A copy of `model` on the meta device."""
    return copy_with(
        model,
        lambda t: (
            nn.Parameter(t.detach().to("meta"), requires_grad=t.requires_grad)
            if isinstance(t, nn.Parameter)
            else t.to("meta")
        ),
    )


def copy_with(model: nn.Module, made: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the modules of `model` with what is `made` of each parameter and buffer; what is shared stays so."""
    known: dict[int, Any] = {id(tensor): made(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, known)


def set_cache(model: nn.Module, *, used: bool) -> nn.Module:
    """`model`, told whether to keep keys and values of what it has read, where it or a part of it is of transformers.

    Training has no use for them, and recomputation would add to them twice. On the meta device, on the other hand, the
    masks of transformers 5 can only be made for a model that keeps them. There no tensor can be looked at for padding.
    """
    config = getattr(model, "config", None)
    if config is None:
        for child in model.children():
            set_cache(child, used=used)
    if hasattr(config, "use_cache"):
        config.use_cache = used  # pyright: ignore[reportOptionalMemberAccess]
    if used and hasattr(config, "_experts_implementation"):
        # The grouped product that its experts run by default wants bfloat16 on meta (torch 2.13).
        config._experts_implementation = "batched_mm"  # noqa: SLF001 # pyright: ignore[reportOptionalMemberAccess]
    for module in model.modules() if config is not None else ():
        if used and hasattr(module, WARNING):
            setattr(module, WARNING, _no_warning)
        else:
            module.__dict__.pop(WARNING, None)
    return model


def _no_warning(*_: object) -> None:
    """Says nothing of padding."""


def _calls(model: nn.Module, run: Run) -> list[_Call]:
    """The candidates in the order of their calls."""
    order: list[_Call] = []
    hooks = []
    for name, module in outermost_entries(model):
        call = _Call(name, module)

        def enter(_: nn.Module, args: Any, kwargs: Any, call: _Call = call) -> None:
            call.hidden, call.taken = first_tensor(args, kwargs)
            call.times += 1
            order.append(call)

        def leave(_: nn.Module, __: Any, output: Any, call: _Call = call) -> None:
            call.given = first_output(output)

        hooks += [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]
    try:
        run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return order


def _repeated(model: nn.Module, run: Run) -> str:
    """The outermost module with parameters that runs several times, in words; empty when there is none."""
    times: Counter[str] = Counter()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: times.update([name]))
        for name, module in model.named_modules()
        if name and next(module.parameters(), None) is not None
    ]
    try:
        run(model)
    finally:
        for hook in hooks:
            hook.remove()
    name = next((name for name, _ in model.named_modules() if times[name] > 1), "")
    return f"{name} is one module that runs {times[name]} times" if name else ""


def _longest_chain(calls: list[_Call]) -> list[_Call]:
    """The consecutive calls that hand on one tensor and hold most parameters."""
    chains: list[list[_Call]] = []
    for call in calls:
        if call.taken is None or call.given is None or not call.given.requires_grad:
            continue
        if chains and call.taken is chains[-1][-1].given:
            chains[-1].append(call)
        else:
            chains.append([call])
    size = {id(c): sum(p.numel() for p in c.module.parameters()) for chain in chains for c in chain}
    found = max(chains, key=lambda chain: sum(size[id(call)] for call in chain), default=[])
    return found if len(found) > 1 else []


def _needs(
    model: nn.Module, run: Run, chain: list[_Call], names: dict[int, str]
) -> tuple[tuple[frozenset[str], ...], str]:
    """The parameters of each unit, or why the model cannot be cut."""
    cuts = _Cuts()
    hooks = [_cut_before(call.module, cuts) for call in chain]
    hooks.append(_cut_after(chain[-1].module, cuts))
    try:
        loss = run(model)
    finally:
        for hook in hooks:
            hook.remove()
    ends = [*cuts.flowed, loss]
    starts: list[Tensor | None] = [None, *cuts.leaves]
    places = {id(leaf): number for number, leaf in enumerate(cuts.leaves)}
    inside = [set(), *({id(p) for p in call.module.parameters()} for call in chain), set()]
    needs, computed = [], set()
    for unit, (start, end) in enumerate(zip(starts, ends, strict=True)):
        leaves, nodes = _reached(end)
        # A copy of a stage computes nothing of another, so no unit may use what an earlier one computed.
        round_cut = any(id(leaf) in places and leaf is not start for leaf in leaves) or not computed.isdisjoint(nodes)
        computed |= nodes
        if round_cut:
            return (), f"a tensor reaches round a cut to {_unit_name(unit, chain)}"
        parameters = [leaf for leaf in leaves if id(leaf) in names]
        foreign = [names[id(p)] for p in parameters if id(p) not in inside[unit]]
        if foreign and 0 < unit < len(ends) - 1:
            return (), f"{_unit_name(unit, chain)} depends on {foreign[0]}, which is outside it"
        needs.append(frozenset(names[id(p)] for p in parameters))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    owner = {names[id(p)]: u + 1 for u, call in enumerate(chain) for p in call.module.parameters()}
    for name in sorted(set(names.values()) - frozenset().union(*needs)):
        # Parameters that no gradient reaches stay with their module; frozen ones may be anywhere in it.
        needs[owner.get(name, 0)] |= {name}
        if name in frozen and name not in owner:
            needs[-1] |= {name}
    return tuple(needs), ""


@contextlib.contextmanager
def _late_buffers(model: nn.Module, chain: list[_Call]) -> Iterator[set[str]]:
    """Afterwards: the buffers of modules first called after the chain, and those changed after it alone."""
    inside = {id(module) for call in chain for module in call.module.modules()}
    called: list[set[int]] = [set(), set()]  # before the end of the chain, and after it
    seen = [_states(model)]
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called[len(seen) - 1].add(id(module)))
        for module in model.modules()
        if id(module) not in inside
    ]
    hooks.append(chain[-1].module.register_forward_hook(lambda *_: seen.append(_states(model))))
    late: set[str] = set()
    try:
        yield late
    finally:
        for hook in hooks:
            hook.remove()
    seen.append(_states(model))
    first, middle, last = seen[0], seen[1], seen[-1]
    for name, state in last.items():
        owner = id(model.get_submodule(name.rpartition(".")[0]))
        changed = state != middle.get(name) and middle.get(name) == first.get(name)
        if owner not in inside and (owner in called[1] - called[0] or changed):
            late.add(name)


def _states(model: nn.Module) -> dict[str, tuple[int, int]]:
    """What tells whether a buffer was changed, in place or for another."""
    return {name: (id(b), b._version) for name, b in model.named_buffers(remove_duplicate=False)}  # noqa: SLF001


def _cut_before(module: nn.Module, cuts: _Cuts) -> Any:
    def swap(_: nn.Module, args: Any, kwargs: Any) -> Any:
        place, flowing = first_tensor(args, kwargs)
        assert flowing is not None
        leaf = _cut(flowing, cuts)
        if isinstance(place, int):
            return (*args[:place], leaf, *args[place + 1 :]), kwargs
        return args, kwargs | {place: leaf}

    return module.register_forward_pre_hook(swap, with_kwargs=True)


def _cut_after(module: nn.Module, cuts: _Cuts) -> Any:
    def swap(_: nn.Module, __: Any, output: Any) -> Any:
        flowing = first_output(output)
        assert flowing is not None
        leaf = _cut(flowing, cuts)
        return leaf if output is flowing else type(output)([leaf, *output[1:]])

    return module.register_forward_hook(swap)


def _cut(flowing: Tensor, cuts: _Cuts) -> Tensor:
    cuts.flowed.append(flowing)
    cuts.leaves.append(flowing.detach().requires_grad_())
    return cuts.leaves[-1]


def _reached(end: Tensor) -> tuple[list[Tensor], set[Any]]:
    """The leaves that the gradient of `end` reaches, and the nodes of the graph on the way."""
    found, seen, waiting = [], set(), [end.grad_fn]
    if end.grad_fn is None:
        return ([end] if end.requires_grad else []), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        variable = getattr(node, "variable", None)  # only nodes that accumulate into a leaf have one
        if isinstance(variable, Tensor):
            found.append(variable)
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return list({id(leaf): leaf for leaf in found}.values()), seen


def _unit_name(unit: int, chain: list[_Call]) -> str:
    return "the part before the blocks" if unit == 0 else chain[unit - 1].name if unit <= len(chain) else "the loss"
