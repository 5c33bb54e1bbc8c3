"""Copies of modules on the host for small runs that prove something of them, whatever device they are on.

A profile is made of a model without values, training of one that has them, and both must come to the same answer. So
a copy takes nothing of the original but its code and its shapes: parameters and buffers are random, the same ones each
time, and what holds for them holds for any. Truth values are all true, then all false: both must agree.

Large layers cost little: their numbers overlap in memory (a matrix's row is the one above, moved by one), and
`few_inputs` has matrices multiply the first entries of their input only, as if the rest were zero in the matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # every kind of batch and instance norm
from torch.overrides import TorchFunctionMode

TOLERANCE = 1e-4  # of the largest value
FEW = 64  # entries of an input that matrices multiply
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""What a module raises that wants other arguments, or whose shapes do not survive a cut."""
PLACES = ("layer", "idx", "index")  # parts of names of numbers that say which of its likes a module is


def on_host(thing: Any, *, seed: int = 0, truth: bool = True) -> Any:
    """A copy of a module, or of the arguments of a call, with random numbers on the host."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[int, Any] = {}
    with torch.device("cpu"):
        for tensor in _tensors(thing):
            if id(tensor) not in made:
                made[id(tensor)] = _stand_in(tensor, generator, truth=truth)
        copied = copy.deepcopy(thing, made)
    for module in copied.modules() if isinstance(copied, nn.Module) else ():
        # Statistics of a batch mix what is in it, in training alone; dropout would hide what a trial looks for.
        module.training = isinstance(module, _NormBase)
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"  # noqa: SLF001 the others copy matrices for each token
    return copied


class FewInputs(TorchFunctionMode):
    """Has every matrix multiply `FEW` entries of its input."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Multiplies by a part of a matrix, passes on everything else."""
        return (_multiply if func is F.linear else func)(*args, **(kwargs or {}))


def _multiply(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 torch's names
    return F.linear(input[..., :FEW], weight[..., :FEW], bias)


def truths(module: nn.Module) -> tuple[bool, ...]:
    """What its truth values must be tried as."""
    return (True, False) if any(buffer.dtype == torch.bool for buffer in module.buffers()) else (True,)


def kind(module: nn.Module) -> tuple[object, ...]:
    """What modules have in common that compute alike: classes, shapes and settings of all their parts."""
    found: list[object] = []
    for name, part in module.named_modules():
        tensors = (*part._parameters.items(), *part._buffers.items())  # noqa: SLF001
        shapes = tuple((key, None if t is None else (tuple(t.shape), t.dtype)) for key, t in tensors)
        settings = tuple(sorted((key, repr(value)) for key, value in vars(part).items() if _is_setting(key, value)))
        found.append((name, type(part), shapes, settings))
    return tuple(found)


def close(found: Tensor | None, expected: Tensor | None) -> bool:
    """Whether two results agree; no gradient is one of zeros."""
    if found is None or expected is None:
        other = expected if found is None else found
        return other is None or not bool(other.any())
    if found.shape != expected.shape:
        return False
    if not found.is_floating_point():
        return torch.equal(found, expected)
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1e-6))


def tells(result: Tensor) -> bool:
    """Whether anything can be learned from `result`: it is finite, and not zero everywhere."""
    return result.numel() > 0 and bool(result.isfinite().all()) and bool(result.any())


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors among arguments, and in lists, tuples and dictionaries there."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for each in tree:
            yield from tensors_of(each)
    elif isinstance(tree, dict):
        yield from tensors_of(list(tree.values()))


def _tensors(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, nn.Module):
        yield from thing.parameters()
        yield from thing.buffers()
    else:
        yield from tensors_of(thing)


def _stand_in(tensor: Tensor, generator: torch.Generator, *, truth: bool) -> Tensor:
    learned = isinstance(tensor, nn.Parameter)
    if learned and tensor.is_floating_point() and tensor.numel():
        shape = tuple(tensor.shape)
        width = shape[-1] if shape else 1
        numbers = torch.randn(tensor.numel() // width + width - 1, generator=generator)
        numbers /= width**0.5 if len(shape) > 1 else 1.0
        return nn.Parameter(numbers.unfold(0, width, 1).view(shape), requires_grad=False)
    values = _values(tensor, generator, truth=truth)
    return nn.Parameter(values, requires_grad=False) if learned else values


def _values(tensor: Tensor, generator: torch.Generator, *, truth: bool) -> Tensor:
    """Whole numbers count along the last dimension, as positions do."""
    shape = tuple(tensor.shape)
    if tensor.dtype == torch.bool:
        return torch.full(shape, truth)
    if tensor.is_complex():
        return torch.randn(shape, dtype=torch.complex64, generator=generator)
    if tensor.is_floating_point():
        return torch.randn(shape, generator=generator)
    return torch.arange(shape[-1] if shape else 1, dtype=tensor.dtype).expand(shape or 1).clone().view(shape)


def _is_setting(key: str, value: object) -> bool:
    named = isinstance(value, bool | int | float | str) and not key.startswith("_")
    return named and key != "training" and not (isinstance(value, int) and any(word in key for word in PLACES))
