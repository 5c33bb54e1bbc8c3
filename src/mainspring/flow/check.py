"""Find what is wrong with a graph before anything starts: names, references, cycles, arguments and their types.

Literals and parameters are read into the annotated types by the same strict reader as files, so a step annotated
`config: TrainConfig` takes a TOML table, and a number where text is wanted is refused. What a step returns is compared
with what the next one wants where both annotations are classes; the rest is checked when the value is there.
"""

import difflib
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mainspring.flow.graph import Graph
from mainspring.flow.node import Node, Output, Param, references, replace_references
from mainspring.spec import Artifact, SpecError
from mainspring.store.parse import read_json, to_json

INJECTED = frozenset({"store", "progress", "run"})
"""Parameters that the runner fills in when the graph does not: the store, a `Progress`, the step's run id."""
UNTYPED = inspect.Parameter.empty
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")
"""`python:docs` and the like name a source that is not a file: nothing to watch."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A node whose arguments are bound: literals converted, `Output`s left in place."""

    node: Node
    given: Mapping[str, Any]
    hints: Mapping[str, Any]
    injected: frozenset[str]
    watch: tuple[Path, ...]
    needs: frozenset[str]


def check_graph(graph: Graph, params: Mapping[str, Any]) -> tuple[Checked, ...]:
    """The graph's steps in order, ready to run. Raises one `SpecError` that names everything that is wrong."""
    complaints: list[SpecError] = []
    found: dict[str, Checked] = {}
    values = _collect(complaints, lambda: _values(graph, params)) or dict(graph.params)
    for name, node in graph.nodes.items():
        complaints += _unknown(graph, node)
        try:
            found[name] = _check_node(graph, node, values, complaints)
        except SpecError as error:
            complaints.append(error)
    for checked in found.values():
        complaints += _mismatches(checked, found)
    order = _collect(complaints, graph.order)
    if not graph.nodes:
        complaints.append(SpecError(f"flow {graph.name} has no steps"))
    if complaints or order is None:
        hints = "; ".join(dict.fromkeys(error.hint for error in complaints if error.hint))
        raise SpecError("; ".join(dict.fromkeys(map(str, complaints))), hint=hints)
    return tuple(found[name] for name in order)


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type. Raises `SpecError` naming `where`."""
    if hint in (UNTYPED, Any, object) or (isinstance(hint, type) and isinstance(value, hint) and hint is not int):
        return value
    if hint is str and isinstance(value, Artifact):
        return value.ref
    try:
        return read_json(to_json(value), hint)
    except SpecError as error:
        raise SpecError(f"{where}: {error}", hint=error.hint) from error


def _collect(complaints: list[SpecError], attempt: Callable[[], Any]) -> Any:
    try:
        return attempt()
    except SpecError as error:
        complaints.append(error)
        return None


def _values(graph: Graph, params: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(graph.params)
    for name, value in params.items():
        if name not in values:
            raise SpecError(f"params.{name}: the flow has no such parameter", hint=_nearest(name, values))
        values[name] = convert(value, type(values[name]), f"params.{name}")
    return values


def _unknown(graph: Graph, node: Node) -> list[SpecError]:
    complaints: list[SpecError] = []
    for found in (*references(node.given), *references(node.watch), *map(Output, node.after)):
        known = graph.params if isinstance(found, Param) else graph.nodes
        name = found.name if isinstance(found, Param) else found.step
        kind = "parameter" if isinstance(found, Param) else "step"
        if name not in known:
            complaints.append(SpecError(f"steps.{node.name}: there is no {kind} {name!r}", hint=_nearest(name, known)))
    return complaints


def _check_node(graph: Graph, node: Node, values: Mapping[str, Any], complaints: list[SpecError]) -> Checked:
    where = f"steps.{node.name}.with"
    parameters, hints = _signature(node)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    given: dict[str, Any] = {}
    for name, value in node.given.items():
        if name not in named and not takes_any:
            complaints.append(
                SpecError(f"{where}.{name}: {node.entry} has no such argument", hint=_nearest(name, named))
            )
            continue
        literal = replace_references(value, lambda found: _param(found, values))
        if not any(references(literal)) and hints.get(name) is not Artifact:
            literal = _collect(
                complaints, lambda name=name, it=literal: convert(it, hints.get(name, UNTYPED), f"{where}.{name}")
            )
        given[name] = graph.base / literal if isinstance(literal, Path) else literal
    injected = frozenset(INJECTED & named.keys() - node.given.keys())
    for name, parameter in named.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            complaints.append(SpecError(f"{where}: {node.entry} takes {name!r} by position only"))
        elif parameter.default is UNTYPED and name not in node.given and name not in injected:
            complaints.append(SpecError(f"{where}: {node.entry} needs the argument {name!r}"))
    return Checked(
        node=node,
        given=given,
        hints=hints,
        injected=injected,
        watch=_watched(graph, node, values),
        needs=node.needs,
    )


def _signature(node: Node) -> tuple[Mapping[str, inspect.Parameter], Mapping[str, Any]]:
    try:
        signature = inspect.signature(node.call)
        target = node.call if inspect.isfunction(node.call) or inspect.ismethod(node.call) else node.call.__call__
        return signature.parameters, typing.get_type_hints(target)
    except (ValueError, TypeError) as error:
        raise SpecError(f"steps.{node.name}.call: {node.entry} does not tell its arguments") from error
    except NameError as error:
        raise SpecError(f"steps.{node.name}.call: an annotation of {node.entry} cannot be read: {error}") from error


def _param(found: Output | Param, values: Mapping[str, Any]) -> Any:
    return values.get(found.name, found) if isinstance(found, Param) else found


def _watched(graph: Graph, node: Node, values: Mapping[str, Any]) -> tuple[Path, ...]:
    given = [replace_references(item, lambda found: _param(found, values)) for item in node.watch]
    paths = tuple(graph.base / item for item in given if isinstance(item, str) and not SCHEME.match(item))
    for path in paths:
        if not path.exists():
            raise SpecError(f"steps.{node.name}.watch: there is no {path}", hint=f"paths start at {graph.base}")
    return paths


def _mismatches(checked: Checked, found: Mapping[str, Checked]) -> list[SpecError]:
    complaints: list[SpecError] = []
    for name, value in checked.given.items():
        if not isinstance(value, Output) or value.step not in found:
            continue
        made = found[value.step].hints.get("return", UNTYPED)
        wanted = checked.hints.get(name, UNTYPED)
        if value.path:
            fits = not isinstance(made, type) or issubclass(made, Mapping)
            problem = f"{value.step} returns {_name(made)}, which has no keys"
        else:
            fits = _fits(made, wanted)
            problem = f"{value.step} returns {_name(made)}, {checked.node.entry} wants {_name(wanted)}"
        if not fits:
            complaints.append(SpecError(f"steps.{checked.node.name}.with.{name}: {problem}"))
    return complaints


def _fits(made: Any, wanted: Any) -> bool:
    """Whether a value annotated `made` may be given where `wanted` stands; unsure is yes."""
    if not isinstance(made, type) or not isinstance(wanted, type) or {UNTYPED, object} & {made, wanted}:
        return True
    alike = {(int, float), (Artifact, str), (str, Artifact), (Path, str), (str, Path)}
    return issubclass(made, wanted) or (made, wanted) in alike or typing.get_origin(made) is not None


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else "known: " + ", ".join(sorted(known)) if known else ""
