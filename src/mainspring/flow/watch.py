"""Keep a flow's results fresh: look at what it watches, and run what became stale.

Changes are found by content, looked at every `poll_s`; a change is acted on once it has stood still for one look, so
that a document is not read while it is being written. Which steps are stale is not decided here: the flow is run
again and remembers the rest.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mainspring.flow.check import check_graph
from mainspring.flow.graph import Graph, from_toml
from mainspring.flow.key import Digests
from mainspring.flow.run import FlowEvent, FlowResult, run_graph
from mainspring.spec import NotFound, SpecError
from mainspring.store import Store


def watch(
    source: Graph | Path,
    store: Store,
    *,
    params: Mapping[str, Any] | None = None,
    workers: int = 2,
    on_event: Callable[[FlowEvent], None] | None = None,
    stop: threading.Event | None = None,
    poll_s: float = 1.0,
) -> Iterator[FlowResult | SpecError]:
    """Run the flow, then again after every change, yielding each result until `stop` is set or a run is stopped.

    A `Path` is read again each time, and the file itself and the Python files its steps name are watched too. A
    change that breaks the file is yielded as its error, and the flow goes on waiting for the next change.
    """
    stopped = stop or threading.Event()
    digests = Digests()
    if isinstance(source, Graph) and not any(node.watch for node in source.nodes.values()):
        raise SpecError(f"flow {source.name} watches nothing", hint='give a step watch = ["folder"]')
    paths = _own_files(source, None)
    while not stopped.is_set():
        seen = _look(paths, digests)
        result: FlowResult | SpecError
        try:
            graph = from_toml(source) if isinstance(source, Path) else source
            found = {path for checked in check_graph(graph, params or {}) for path in checked.watch}
            paths = _own_files(source, graph) | found
            seen = _look(paths, digests)
            result = run_graph(graph, store, params=params, workers=workers, on_event=on_event, stop=stopped)
        except SpecError as error:
            result = error
        yield result
        if isinstance(result, FlowResult) and result.state == "CANCELLED":
            return
        _wait_for_change(paths, seen, digests, stopped, poll_s)


def _wait_for_change(
    paths: set[Path], seen: Mapping[Path, str], digests: Digests, stopped: threading.Event, poll_s: float
) -> None:
    before = seen
    while not stopped.wait(poll_s):
        now = _look(paths, digests)
        if now == before and now != seen:
            return
        before = now


def _own_files(source: Graph | Path, graph: Graph | None) -> set[Path]:
    """The flow file and the Python files its steps are in."""
    if not isinstance(source, Path):
        return set()
    entries = [node.entry.rpartition(":")[0] for node in graph.nodes.values()] if graph else []
    return {source.absolute()} | {graph.base / entry for entry in entries if graph and entry.endswith(".py")}


def _look(paths: set[Path], digests: Digests) -> dict[Path, str]:
    found: dict[Path, str] = {}
    for path in sorted(paths):
        try:
            found[path] = digests.of(path)
        except NotFound:
            found[path] = ""
    return found
