"""A flow as a graph that fills with colour while it runs; a step leads to its run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from nicegui import ui

from mainspring.console.frame import live, page, read
from mainspring.console.graph import Node
from mainspring.console.graph import draw as draw_graph
from mainspring.console.markup import Child, Markup, join, show, tag
from mainspring.console.parts import RUNNING, TONES, WORDS, badge, bar, empty, facts, heading, panel, run_table, table
from mainspring.console.words import count, duration, link_to_run, run_seconds, since
from mainspring.spec import Event, NotFound, RunRecord
from mainspring.workspace import Workspace

LIST = 30
DONE = frozenset({"SUCCEEDED", "CACHED"})
PAGE = 10_000
"""Events read at once; a flow tells at most one a second for each step that runs."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step as its latest event has it."""

    name: str
    call: str
    needs: tuple[str, ...]
    state: str = "PENDING"
    fraction: float = 0.0
    message: str = ""
    run: str = ""
    seconds: float = 0.0
    attempt: int = 1


class Watched:
    """Follows one flow: each look reads only the events that are new."""

    def __init__(self, workspace: Workspace, record: RunRecord) -> None:
        self._workspace = workspace
        self._id = record.id
        self._steps = {step.name: step for step in described(json.loads(record.config_json))}
        self._seq = 0

    def look(self) -> tuple[RunRecord, tuple[Step, ...]]:
        """The flow's record and its steps now."""
        record = self._workspace.run(self._id).record
        while events := self._workspace.events(kind="flow.step", subject=self._id, after=self._seq, limit=PAGE):
            self._seq = events[-1].seq
            self._steps = heard(self._steps, events)
        return record, tuple(self._steps.values())


def progress_of(
    workspace: Workspace, records: Sequence[RunRecord], followed: dict[str, Watched]
) -> dict[str, tuple[float, str]]:
    """How far each run is and what it is doing. A step tells it to its flow, and each flow is followed only once."""
    found: dict[str, tuple[float, str]] = {}
    for record in records:
        flow = record.id if record.kind == "flow" else json.loads(record.config_json).get("flow", "")
        if not flow or record.kind not in ("flow", "step"):
            found[record.id] = workspace.run(record.id).progress
            continue
        if flow not in followed:
            followed[flow] = Watched(workspace, workspace.run(flow).record)
        _, steps = followed[flow].look()
        if record.kind == "flow":
            done = sum(step.state in DONE for step in steps)
            share = sum(1.0 if step.state in DONE else step.fraction for step in steps) / max(1, len(steps))
            found[record.id] = (share, f"{done} of {len(steps)} steps")
        else:
            own = [(step.fraction, step.message) for step in steps if step.run == record.id]
            found[record.id] = own[0] if own else (0.0, "")
    return found


def add_to(workspace: Workspace) -> None:
    """Register the pages."""

    @ui.page("/flows", response_timeout=60)
    async def flows() -> None:
        async with page("Flows", section="flows"):
            found = await read(lambda: workspace.runs(kind="flow", limit=LIST))
            if found:
                await _watch(workspace, found[0])
                show(panel("Earlier", run_table(found[1:]))) if found[1:] else None
            else:
                show(heading("Flows", lead="Steps as a graph: cached, parallel, resumable."))
                show(panel("No flow yet", empty("No flow has run.", "mainspring run examples/handbook/flow.toml")))

    @ui.page("/flows/{run_id}", response_timeout=60)
    async def flow(run_id: str) -> None:
        async with page("Flow", section="flows"):
            record = await read(lambda: workspace.run(run_id).record)
            if record.kind != "flow":
                raise NotFound(f"{record.id} is a run of kind {record.kind}, not a flow", hint="mainspring ps --all")
            await _watch(workspace, record)


async def _watch(workspace: Workspace, record: RunRecord) -> None:
    watched = Watched(workspace, record)
    body = show().classes("stack")

    def draw(seen: tuple[RunRecord, tuple[Step, ...]]) -> None:
        body.content = view(*seen)

    await live(watched.look, draw, every_s=1.0)


def described(config: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps of a flow's recorded configuration, each after those it needs."""
    needs = config.get("needs", {})
    steps = config.get("steps", {})
    order = TopologicalSorter({name: sorted(needs.get(name, ())) for name in sorted(steps)}).static_order()
    return tuple(
        Step(name=name, call=steps[name]["call"], needs=tuple(sorted(needs.get(name, ()))))
        for name in order
        if name in steps
    )


def heard(steps: Mapping[str, Step], events: Sequence[Event]) -> dict[str, Step]:
    """The steps after these events."""
    told = dict(steps)
    for event in events:
        data = json.loads(event.data_json)
        before = told.get(data["step"])
        if before is not None:
            told[before.name] = Step(
                name=before.name,
                call=before.call,
                needs=before.needs,
                **{key: value for key, value in data.items() if key != "step"},
            )
    return told


def view(record: RunRecord, steps: Sequence[Step]) -> Markup:
    """The flow's page."""
    running = record.state in RUNNING
    done = sum(step.state in DONE for step in steps)
    lead = tag(
        "span",
        badge(record.state),
        f"{done} of {len(steps)} steps, started ",
        since(record.created_s),
        ", ",
        "running for " if running else "took ",
        duration(run_seconds(record)),
    )
    link = link_to_run(record.id, "Record and settings")
    nodes = [_node(step, running=running) for step in steps]
    edges = [(other, step.name) for step in steps for other in step.needs]
    graph = panel("Graph", draw_graph(nodes, edges, label=f"Flow {record.name}"), aside="a step leads to its run")
    reason = tag("div", record.reason, class_="alert") if record.state == "FAILED" else None
    return join(
        heading(record.name, lead=lead, actions=link), reason, graph, _table(steps, running=running), _values(record)
    )


def _node(step: Step, *, running: bool) -> Node:
    return Node(
        id=step.name,
        title=step.name,
        note=_said(step, running=running),
        href=f"/runs/{step.run}" if step.run else "",
        tone="run" if step.state == "RUNNING" else TONES.get(step.state, "off"),
    )


def _said(step: Step, *, running: bool) -> str:
    if step.state == "RUNNING":
        return f"{step.fraction:.0%} {step.message}".strip() if step.fraction or step.message else "running"
    if step.state == "PENDING":
        return "waits" if running else "not reached"
    word = WORDS.get(step.state, step.state.lower())
    return f"{word} in {duration(step.seconds)}" if step.seconds else word


def _table(steps: Sequence[Step], *, running: bool) -> Markup:
    def how(step: Step) -> Child:
        if step.state == "RUNNING":
            return bar(step.fraction, step.message or "running")
        return step.message or ("" if step.state != "PENDING" else _said(step, running=running))

    rows = [
        (
            link_to_run(step.run, step.name) if step.run else step.name,
            badge(step.state),
            tag("code", step.call.rpartition(":")[2]),
            duration(step.seconds) if step.seconds else "",
            count(step.attempt) if step.attempt > 1 else "",
            how(step),
        )
        for step in steps
    ]
    return panel("Steps", table(("step", "state", "calls", "took", "attempt", "what"), rows, numbers=(3, 4)))


def _values(record: RunRecord) -> Markup | None:
    config = json.loads(record.config_json)
    values = {**config.get("params", {}), **config.get("values", {})}
    return panel("Parameters", facts((name, str(value)) for name, value in values.items())) if values else None
