"""Which blocks sequence parallelism may cut along the sequence: those that work on each token by itself, regions aside.

Regions gather the whole sequence (Korthikanti et al. 2022), nothing else does: a convolution over time, attention that
nobody divides, or tokens that lie side by side in one dimension would see a part of it and say nothing. So each kind of
block is run on a few random tokens, and then on either half of them, as training would run it: its regions get what the
whole run gave them, and must be handed the half that belongs to it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mainspring.models.divide import Region
from mainspring.models.structure import first_output, first_tensor, share_copy
from mainspring.models.trial import FAILURES, FewInputs, close, kind, on_host, tells, tensors_of, truths

TOKENS = 14  # two halves of an odd number: what looks at a power of two of tokens looks across
SEQUENCE = 1  # the dimension of a hidden state that runs along the sequence
HIDDEN_DIMENSIONS = 3


Call = tuple[tuple[Any, ...], dict[str, Any]]
Inside = tuple[tuple[str, tuple[str, ...]], ...]
"""The regions of a block: their names in it, and those of their rows in them."""


class _MixedError(Exception):
    """What a half is handed is not the half of what the whole is."""


@dataclass(slots=True)
class _Seen:
    """What regions were handed in a run of the whole, and what their rows took and gave, in the order of calls."""

    regions: list[Call] = field(default_factory=list)
    rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def mixing(
    model: nn.Module, run: Callable[[nn.Module], object], blocks: Sequence[str], regions: Sequence[Region]
) -> dict[str, str]:
    """Why blocks of `model` must not be cut along the sequence, by name; of the others there is nothing to be said.

    `run` runs the model on a row of `TOKENS` tokens; all of it is on meta.
    """
    calls: dict[str, Call] = {}

    def note(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        args = tuple(None if _is_cache(each) else each for each in args)
        calls[name] = on_host((args, {key: None if _is_cache(each) else each for key, each in kwargs.items()}))

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(partial(note, name), with_kwargs=True) for name in blocks
    ]
    try:
        with torch.no_grad():
            run(model)
    except FAILURES as error:
        return dict.fromkeys(blocks, f"the model does not run on {TOKENS} tokens: {error}")
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[object, str] = {}
    likeness: dict[str, object] = {}
    for name in blocks:
        block, inside = model.get_submodule(name), _inside(name, regions)
        likeness[name] = alike = (kind(block), inside)
        if alike not in found:
            found[alike] = _why_not(block, inside, calls[name])
    return {name: found[alike] for name, alike in likeness.items() if found[alike]}


def _is_cache(value: object) -> bool:
    """Whether `value` keeps keys and values for transformers, as it does on meta alone: see `set_cache`."""
    return hasattr(value, "get_seq_length") and not isinstance(value, nn.Module)


def _inside(name: str, regions: Sequence[Region]) -> Inside:
    here = [region for region in regions if region.name == name or region.name.startswith(f"{name}.")]
    return tuple((region.name[len(name) + 1 :], region.rows) for region in here)


def _why_not(block: nn.Module, regions: Inside, call: Call) -> str:
    """Why `block` must not be cut; empty when it may."""
    if any(not name for name, _ in regions):
        return "tensor parallelism divides it as a whole"
    place, x = first_tensor(*call)
    if x is None or x.dim() < HIDDEN_DIMENSIONS or x.shape[:2] != (1, TOKENS):
        return f"it is not handed one row of tokens, but {None if x is None else list(x.shape)}"
    compared = False
    for truth in truths(block):
        with torch.device("cpu"), torch.no_grad(), FewInputs():
            trial, seen = on_host(block, truth=truth), _Seen()
            try:
                whole = _run(_watched(trial, regions, seen), call)
                if not tells(whole):
                    continue
                halves = [_run(_halved(trial, regions, seen, half), _cut(call, place, half)) for half in range(2)]
            except _MixedError as error:
                return str(error)
            except FAILURES as error:
                return f"it does not run on half of a sequence: {error}"
        if not all(close(found, _half(whole, half)) for half, found in enumerate(halves)):
            return "it looks along the sequence outside of what tensor parallelism divides"
        compared = True
    return "" if compared else "a trial of it gives nothing to compare"


def _run(block: nn.Module, call: Call) -> Tensor:
    args, kwargs = copy.deepcopy(call)
    found = first_output(block(*args, **kwargs))
    assert found is not None, "it returns no tensor"
    return found


def _watched(block: nn.Module, regions: Inside, seen: _Seen) -> nn.Module:
    """A copy of `block` that writes down what its regions are handed."""
    watched = share_copy(block)

    def arrive(_: nn.Module, args: Any, kwargs: Any) -> None:
        seen.regions.append((args, kwargs))

    def multiplied(_: nn.Module, args: Any, output: Tensor) -> None:
        seen.rows.append((args[0], output))

    for name, rows in regions:
        region = watched.get_submodule(name)
        region.register_forward_pre_hook(arrive, with_kwargs=True)
        for row in rows:
            region.get_submodule(row).register_forward_hook(multiplied)
    return watched


def _halved(block: nn.Module, regions: Inside, seen: _Seen, half: int) -> nn.Module:
    """A copy of `block` that a half of the sequence can be handed: its regions work on the whole of it."""
    halved = share_copy(block)
    handed, gave = iter(seen.regions), iter(seen.rows)

    def arrive(name: str, _: nn.Module, args: Any, kwargs: Any) -> Call:
        expected = next(handed, ((), {}))
        place, whole = first_tensor(*expected)
        given = first_tensor(args, kwargs)[1]
        rest = [each for each in tensors_of([args, kwargs]) if each is not given]
        expected_rest = [each for each in tensors_of([*expected]) if each is not whole]
        if given is None or whole is None or not close(given, _half(whole, half)):
            raise _MixedError(f"what {name} is handed depends on other tokens, or is not in rows")
        if len(rest) != len(expected_rest) or not all(map(close, rest, expected_rest)):
            raise _MixedError(f"{name} is handed something else that depends on the sequence")
        if isinstance(place, int):
            return (*args[:place], whole, *args[place + 1 :]), kwargs
        return args, {**kwargs, place: whole}

    def multiplied(name: str, _: nn.Module, args: Any, __: Tensor) -> Tensor:
        taken, given = next(gave, (None, None))
        if given is None or not close(args[0], taken):
            raise _MixedError(f"{name} works on other tokens than it gathers")
        return _half(given, half)

    for name, rows in regions:
        region = halved.get_submodule(name)
        region.register_forward_pre_hook(partial(arrive, name), with_kwargs=True)
        for row in rows:
            region.get_submodule(row).register_forward_hook(partial(multiplied, name))
    return halved


def _cut(call: Call, place: int | str, half: int) -> Call:
    """`call` with half of the sequence."""
    args, kwargs = call
    if isinstance(place, int):
        return (*args[:place], _half(args[place], half), *args[place + 1 :]), kwargs
    return args, {**kwargs, place: _half(kwargs[place], half)}


def _half(x: Tensor, half: int) -> Tensor:
    return x.chunk(2, SEQUENCE)[half]
