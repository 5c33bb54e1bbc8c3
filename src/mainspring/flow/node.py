"""One step of a graph, and how its arguments refer to other steps.

In Python a reference is an `Output` or `Param` object, in TOML the text `"${collect}"`, `"${train.loss}"` (one key of
a mapping that the step returned) or `"${params.docs}"`. References may stand anywhere inside lists and tables, but not
inside other text: `"${params.docs}/a"` would turn a number or an artifact into text behind the reader's back. A literal
that holds `${` is written with one more `$` in front.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from mainspring.spec import SpecError, spec

K = TypeVar("K")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
REFERENCE = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")


@dataclass(frozen=True, slots=True)
class Output:
    """What a step will return, or one key of it."""

    step: str
    path: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> "Output":
        return Output(self.step, (*self.path, key))


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of the flow, given when it is run."""

    name: str


@spec
class StepOptions:
    """How a step is run. `version` is part of its cache key, to be changed when code elsewhere changes its result.

    A failed attempt is followed by up to `retries` more, after pauses of `backoff_s`, twice that, and so on.
    """

    version: str = ""
    retries: int = 0
    backoff_s: float = 1.0
    cache: bool = True

    def __post_init__(self) -> None:
        if self.retries < 0 or self.backoff_s < 0:
            raise ValueError(f"retries ({self.retries}) and backoff_s ({self.backoff_s}) must not be negative")


@dataclass(frozen=True, slots=True)
class Node:
    """A step in its graph: what to call, with what, after what."""

    name: str
    call: Callable[..., Any]
    entry: str
    given: Mapping[str, Any]
    after: tuple[str, ...]
    watch: tuple[str | Param, ...]
    options: StepOptions

    @property
    def needs(self) -> frozenset[str]:
        """The steps that must succeed first."""
        return frozenset(self.after) | {found.step for found in references(self.given) if isinstance(found, Output)}


def references(value: object) -> Iterator[Output | Param]:
    """Every reference inside a value."""
    return inside(value, Output, Param)


def inside(value: object, *kinds: type[K]) -> Iterator[K]:
    """Everything of these kinds that a value is or holds in its lists and tables."""
    if isinstance(value, kinds):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from inside(item, *kinds)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from inside(item, *kinds)


def replace_references(value: Any, replacement: Callable[[Output | Param], Any]) -> Any:
    """A copy of `value` with each reference replaced; values without any are returned as they are."""
    if isinstance(value, Output | Param):
        return replacement(value)
    if not any(references(value)):
        return value
    if isinstance(value, Mapping):
        return {key: replace_references(item, replacement) for key, item in value.items()}
    return [replace_references(item, replacement) for item in value]


def read_references(value: Any, where: str) -> Any:
    """Turn the reference texts inside a TOML value into objects. Raises `SpecError` naming `where` for a bad one."""
    if isinstance(value, Mapping):
        return {key: read_references(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [read_references(item, f"{where}.{index}") for index, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    if value.startswith("$") and not value.startswith("${"):
        return value[1:]
    match = REFERENCE.fullmatch(value)
    parts = match.group(1).split(".") if match else [""]
    if not all(parts) or (parts[0] == "params" and len(parts) != 2):
        raise SpecError(
            f"{where}: {value!r} is not a reference",
            hint='write "${step}", "${step.key}" or "${params.name}" alone; text with ${ takes one more $ in front',
        )
    return Param(parts[1]) if parts[0] == "params" else Output(parts[0], tuple(parts[1:]))


def write_references(value: Any) -> Any:
    """The inverse of `read_references`."""
    if isinstance(value, Output):
        return "${" + ".".join((value.step, *value.path)) + "}"
    if isinstance(value, Param):
        return "${params." + value.name + "}"
    if isinstance(value, Mapping):
        return {key: write_references(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [write_references(item) for item in value]
    return f"${value}" if isinstance(value, str) and "${" in value else value
