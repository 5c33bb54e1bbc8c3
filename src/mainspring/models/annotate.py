"""`replicate` and `split`: what a recipe may say about parts of its model, for the plan to respect.

    def model(vocab):
        with ms.split(8):
            decoder = Decoder(...)          # divided over 8 ranks of tensor parallelism
        with ms.replicate():
            decoder.critic = nn.Linear(...)  # whole on every rank
        return decoder

After Whale's two annotations (Jia et al. 2022, section 3.1). They mark modules that are put into others while the block
runs, and do nothing else: a model runs on one device as if they were not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from threading import local

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from mainspring.spec import SpecError

MARK = "_mainspring_part"
_open = local()


@dataclass(frozen=True, slots=True)
class Part:
    """What was said of a module. `degree` is over how many ranks it shall be split, 0 any number."""

    whole: bool
    degree: int = 0


@dataclass(frozen=True, slots=True)
class Marks:
    """What was said of a model: patterns over names of its modules, and the degree if one was said."""

    replicate: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    degree: int = 0


@contextmanager
def replicate() -> Iterator[None]:
    """Modules made inside stay whole on every rank of tensor parallelism."""
    with _marking(Part(whole=True)):
        yield


@contextmanager
def split(degree: int = 0) -> Iterator[None]:
    """Modules made inside are divided by tensor parallelism over `degree` ranks, or as many as the plan chooses."""
    if degree < 0:
        raise SpecError(f"split({degree}): a number of ranks is at least 1")
    with _marking(Part(whole=False, degree=degree)):
        yield


@contextmanager
def _marking(part: Part) -> Iterator[None]:
    """Mark what is registered inside; of nested blocks the innermost holds."""
    outer: list[Part] = vars(_open).setdefault("parts", [])
    outer.append(part)
    handle = register_module_module_registration_hook(_mark) if len(outer) == 1 else None
    try:
        yield
    finally:
        outer.pop()
        if handle is not None:
            handle.remove()


def _mark(_: nn.Module, __: str, child: nn.Module | None) -> None:
    parts: list[Part] = vars(_open).get("parts", [])
    if child is not None and parts:
        vars(child).setdefault(MARK, parts[-1])


def read_marks(model: nn.Module) -> Marks:
    """What was said of the modules of `model`; of a module inside a marked one it need not be said again.

    Raises `SpecError` when two degrees were asked for: a plan has one.
    """
    said = {name: part for name, module in model.named_modules() if (part := vars(module).get(MARK))}
    outermost = {name: part for name, part in said.items() if said.get(_above(name, said)) != part}
    degrees = sorted({part.degree for part in outermost.values() if part.degree})
    if len(degrees) > 1:
        raise SpecError(
            f"the model asks to be split over {' and over '.join(map(str, degrees))} ranks",
            hint="a plan has one degree of tensor parallelism; give one number, or none",
        )
    return Marks(
        replicate=_patterns([name for name, part in outermost.items() if part.whole], model),
        split=_patterns([name for name, part in outermost.items() if not part.whole], model),
        degree=degrees[0] if degrees else 0,
    )


def matching(model: nn.Module, pattern: str) -> list[str]:
    """Names of the modules of `model` that `pattern` means: by path, or by class."""
    return [
        name
        for name, module in model.named_modules()
        if name and (fnmatchcase(name, pattern) or fnmatchcase(type(module).__name__, pattern))
    ]


def _above(name: str, said: dict[str, Part]) -> str:
    """The nearest marked module around `name`; nothing's name is empty twice."""
    while name:
        name = name.rpartition(".")[0]
        if name in said:
            return name
    return "."


def _patterns(names: list[str], model: nn.Module) -> tuple[str, ...]:
    """Names with numbers of layers as `*`, where that means no other modules."""
    every = [name for name, _ in model.named_modules()]

    def covered(other: str) -> bool:
        return any(other == name or other.startswith(f"{name}.") for name in names)

    found: list[str] = []
    for name in names:
        pattern = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        found.append(pattern if all(covered(other) for other in every if fnmatchcase(other, pattern)) else name)
    return tuple(dict.fromkeys(found))
