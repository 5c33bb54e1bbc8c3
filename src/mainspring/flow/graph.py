"""A flow: typed functions joined into a graph, written in Python or in TOML, the same graph either way.

    graph = Graph("handbook")
    docs = graph.param("docs", "docs")
    data = graph.add(collect, {"folder": docs}, watch=[docs])
    model = graph.add(train, {"data": data, "steps": 200})

    [flow]
    name = "handbook"
    [params]
    docs = "docs"
    [steps.collect]
    call = "flow.py:collect"
    with = {folder = "${params.docs}"}
    watch = ["${params.docs}"]
    [steps.train]
    call = "flow.py:train"
    with = {data = "${collect}", steps = 200}

Relative paths in a flow (files in `call`, `watch`, literals of arguments annotated `Path`) start at the graph's
`base`: the folder of its TOML file, or the working directory for a graph made in Python.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, overload

from mainspring.flow.node import NAME, Node, Output, Param, StepOptions, read_references, write_references
from mainspring.flow.toml import write_toml
from mainspring.spec import SpecError, spec
from mainspring.spec.plugin import load_entry, run_file
from mainspring.store.parse import read_dict, read_toml, to_dict

F = TypeVar("F", bound=Callable[..., Any])
OPTIONS = "__mainspring_step__"


@overload
def step(call: F, /) -> F: ...
@overload
def step(*, version: str = "", retries: int = 0, backoff_s: float = 1.0, cache: bool = True) -> Callable[[F], F]: ...
def step(call: Any = None, /, **options: Any) -> Any:
    """Say how a function is run as a step; it stays an ordinary function."""

    def mark(function: F) -> F:
        setattr(function, OPTIONS, StepOptions(**options))
        return function

    return mark if call is None else mark(call)


class Graph:
    """Steps and what they need of each other. Build it with `param` and `add`; `run_graph` runs it."""

    def __init__(self, name: str, *, base: Path | None = None) -> None:
        if not NAME.fullmatch(name):
            raise SpecError(f"flow.name: {name!r} is not a name", hint="a letter, then letters, digits, - and _")
        self.name = name
        self.base = (base or Path()).absolute()
        self.params: dict[str, Any] = {}
        self.nodes: dict[str, Node] = {}

    def param(self, name: str, default: Any) -> Param:
        """Declare a parameter; its values must be of the default's type."""
        if not NAME.fullmatch(name) or name in self.params:
            raise SpecError(f"params.{name}: not a name, or declared twice")
        self.params[name] = default
        return Param(name)

    def add(
        self,
        call: Callable[..., Any],
        given: Mapping[str, Any] | None = None,
        *,
        name: str = "",
        after: Sequence[Output | str] = (),
        watch: Sequence[str | Path | Param] = (),
        options: StepOptions | None = None,
    ) -> Output:
        """Add a step that calls `call` with `given`, and return what stands for its result.

        `given` may hold `Output`s and `Param`s. `after` are steps that must succeed first without giving anything;
        `watch` are files and folders whose contents the result depends on.
        """
        return self.place(
            Node(
                name=name or call.__name__,
                call=call,
                entry=f"{call.__module__}:{call.__qualname__}",
                given=dict(given or {}),
                after=tuple(item.step if isinstance(item, Output) else item for item in after),
                watch=tuple(item if isinstance(item, Param) else str(item) for item in watch),
                options=options or getattr(call, OPTIONS, StepOptions()),
            )
        )

    def node(self, given: Mapping[str, Any] | None = None, **placed: Any) -> Callable[[Callable[..., Any]], Output]:
        """`add` as a decorator; the decorated name becomes the step's `Output`."""
        return lambda call: self.add(call, given, **placed)

    def place(self, node: Node) -> Output:
        """Add a node that is complete already."""
        if not NAME.fullmatch(node.name) or node.name == "params":
            raise SpecError(f"steps.{node.name}: not a name for a step", hint="give one with name=")
        if node.name in self.nodes:
            raise SpecError(f"steps.{node.name}: there is a step of that name already", hint="give another with name=")
        self.nodes[node.name] = node
        return Output(node.name)

    def order(self) -> tuple[str, ...]:
        """The steps so that each comes after what it needs. Raises `SpecError` for a cycle, naming it."""
        sorter = TopologicalSorter({name: sorted(node.needs & self.nodes.keys()) for name, node in self.nodes.items()})
        try:
            return tuple(sorter.static_order())
        except CycleError as error:
            raise SpecError(f"the steps wait for each other: {' -> '.join(reversed(error.args[1]))}") from error

    def describe(self) -> dict[str, Any]:
        """The graph as plain data: what is recorded with its runs, drawn by the console and written as TOML."""
        return {
            "flow": {"name": self.name},
            "params": to_dict(self.params),
            "steps": {name: _describe(node) for name, node in self.nodes.items()},
        }

    def to_toml(self) -> str:
        """The graph as a TOML file that reads back as an equal graph."""
        for node in self.nodes.values():
            if "<" in node.entry or node.entry.startswith("__main__"):
                raise SpecError(
                    f"steps.{node.name}: {node.entry} cannot be named in a file", hint="move it to a module"
                )
        return write_toml(self.describe())


def from_toml(path: str | Path) -> Graph:
    """Read a flow file. Raises `SpecError` with the dotted path of whatever is wrong with it."""
    path = Path(path)
    tables = read_toml(path)
    steps = tables.get("steps", {})
    withs = {name: _take_with(steps[name], f"{path}: steps.{name}") for name in steps if isinstance(steps, dict)}
    file = read_dict(tables, FlowFile, where=str(path))
    graph = Graph(file.flow.name, base=path.absolute().parent)
    for name, default in file.params.items():
        graph.param(name, default)
    modules: dict[Path, ModuleType] = {}
    for name, table in file.steps.items():
        where = f"{path}: steps.{name}"
        call = _load(table.call, graph.base, modules, where)
        graph.place(
            Node(
                name=name,
                call=call,
                entry=table.call,
                given=read_references(withs[name], f"{where}.with"),
                after=table.after,
                watch=tuple(read_references(table.watch, f"{where}.watch")),
                options=_changed(getattr(call, OPTIONS, StepOptions()), table, where),
            )
        )
    return graph


@spec
class FlowHead:
    """The `[flow]` table."""

    name: str


@spec
class StepTable:
    """A `[steps.<name>]` table without its `with`, which no Python field can be called."""

    call: str
    after: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()
    version: str | None = None
    retries: int | None = None
    backoff_s: float | None = None
    cache: bool | None = None


@spec
class FlowFile:
    """A flow file."""

    flow: FlowHead
    steps: dict[str, StepTable]
    params: dict[str, Any] = field(default_factory=dict)


def _take_with(table: Any, where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise SpecError(f"{where}: should be a table")
    known = [*(known.name for known in fields(StepTable)), "with"]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise SpecError(
                f"{where}.{key}: no such key",
                hint=f"did you mean {near[0]}?" if near else "known keys: " + ", ".join(sorted(known)),
            )
    given = table.pop("with", {})
    if not isinstance(given, dict):
        raise SpecError(f"{where}.with: should be a table of arguments, got {given!r}")
    return given


def _changed(declared: StepOptions, table: StepTable, where: str) -> StepOptions:
    """The options the table sets; the others are the function's own."""
    given = {option.name: getattr(table, option.name) for option in fields(StepOptions)}
    try:
        return replace(declared, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise SpecError(f"{where}: {error}") from error


def _describe(node: Node) -> dict[str, Any]:
    described: dict[str, Any] = {"call": node.entry}
    if node.given:
        described["with"] = to_dict(write_references(node.given))
    if node.after:
        described["after"] = list(node.after)
    if node.watch:
        described["watch"] = write_references(node.watch)
    plain = StepOptions()
    for option in fields(StepOptions):
        if getattr(node.options, option.name) != getattr(plain, option.name):
            described[option.name] = getattr(node.options, option.name)
    return described


def _load(entry: str, base: Path, modules: dict[Path, ModuleType], where: str) -> Callable[..., Any]:
    file, colon, attribute = entry.rpartition(":")
    if not file.endswith(".py"):
        try:
            call = load_entry(entry)
        except SpecError as error:
            raise SpecError(f"{where}.call: {error}", hint=error.hint) from error
    else:
        path = (base / file).resolve()
        if path not in modules:
            modules[path] = _execute(path, f"{where}.call")
        if not colon or not hasattr(modules[path], attribute):
            near = difflib.get_close_matches(attribute, vars(modules[path]), n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            raise SpecError(f"{where}.call: {file} has no {attribute!r}", hint=hint)
        call = getattr(modules[path], attribute)
    if not callable(call):
        raise SpecError(f"{where}.call: {entry} is not a function")
    return call


def _execute(path: Path, where: str) -> ModuleType:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{where}: cannot read {path}: {error.strerror}") from error
    try:
        return run_file(path, source)
    except Exception as error:  # a user's file may raise anything
        at = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise SpecError(f"{where}: {path}{at} raises {type(error).__name__}: {error}") from error
