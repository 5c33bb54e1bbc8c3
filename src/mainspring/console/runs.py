"""Runs: the list, and one run with its live curves, logs, reasons, configuration and lineage."""

import json
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from nicegui import ui

from mainspring.console import charts, lineage
from mainspring.console.flows import Watched, progress_of
from mainspring.console.frame import identity, live, page, press, read
from mainspring.console.markup import Markup, join, show, tag
from mainspring.console.parts import RUNNING, badge, bar, chips, empty, facts, figures, heading, panel, run_table
from mainspring.console.words import DOT, at, count, duration, energy, link_to, run_seconds, several
from mainspring.flow.execution import Cost
from mainspring.spec import Lineage, RunRecord
from mainspring.workspace import Workspace

KINDS = ("data", "train", "eval", "compress", "serve", "app", "flow", "step")
LIST = 100
TAIL = 400
LOG = re.compile(r"^== (\S+\.log)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Seen:
    """What changes while a run is watched."""

    record: RunRecord
    progress: tuple[float, str]
    metrics: tuple[dict[str, float], ...]
    logs: dict[str, str]
    cost: Cost
    lineage: Lineage


def add_to(workspace: Workspace) -> None:
    """Register the pages."""

    @ui.page("/runs", response_timeout=60)
    async def runs(kind: str = "", active: bool = False) -> None:  # noqa: FBT001, FBT002 a query
        async with page("Runs", section="runs"):
            show(heading("Runs", lead="Everything this workspace has done, newest first."))
            show(_filters(kind, active=active))
            body = show()

            def draw(records: tuple[RunRecord, ...]) -> None:
                body.content = view(records, narrowed=bool(kind or active))

            await live(lambda: workspace.runs(kind=kind, active=active, limit=LIST), draw)

    @ui.page("/runs/{run_id}", response_timeout=60)
    async def run(run_id: str) -> None:
        async with page("Run", section="runs"):
            record = await read(lambda: workspace.run(run_id).record)
            ui.context.client.title = f"{record.name} - Mainspring"
            await _watch(workspace, record)


def view(records: tuple[RunRecord, ...], *, narrowed: bool) -> Markup:
    """The list."""
    if records:
        return panel(
            several(len(records), "run") if len(records) < LIST else f"The last {LIST} runs", run_table(records)
        )
    if narrowed:
        return panel("No runs", empty("No run is like that.", "mainspring ps --all"))
    return panel("No runs", empty("Nothing has run yet.", "mainspring run examples/handbook/flow.toml"))


def _filters(kind: str, *, active: bool) -> Markup:
    def link(label: str, href: str, *, here: bool) -> Markup:
        return tag("a", label, href=href, aria_current="true" if here else None)

    links = [link("all", "/runs", here=not kind and not active), link("running", "/runs?active=1", here=active)]
    links += [link(name, f"/runs?kind={name}", here=kind == name) for name in KINDS]
    return tag("nav", links, class_="filters", aria_label="Filter")


async def _watch(workspace: Workspace, record: RunRecord) -> None:
    run = workspace.run(record.id)
    followed: dict[str, Watched] = {}

    def load() -> Seen:
        return Seen(
            record=run.record,
            progress=progress_of(workspace, [record], followed)[record.id],
            metrics=run.metrics(charts.MAX_POINTS),
            logs=split_logs(run.logs(tail=TAIL)),
            cost=run.cost,
            lineage=workspace.lineage(record.id),
        )

    with ui.element("div").classes("head"):
        head = show()
        stop = press("Stop", run.stop, tone="danger") if identity().role != "viewer" else ui.element("span")
    status = show().classes("stack")
    curves = _Curves()
    logs = _Logs()
    graph = show()
    with ui.element("div").classes("split even"):
        about = show()
        show(_settings(record))

    def draw(seen: Seen) -> None:
        running = seen.record.state in RUNNING
        stop.set_visibility(running)
        head.content = _head(seen.record)
        status.content = _status(seen)
        curves.draw(seen.metrics)
        logs.draw(seen.logs, running=running)
        drawn = lineage.draw(seen.lineage, current=record.id)
        graph.content = panel("Lineage", drawn) if drawn else ""
        about.content = _about(seen.record)

    await live(load, draw)


class _Curves:
    """The loss and the four quantities under it; built when there is a first row."""

    def __init__(self) -> None:
        self._place = ui.element("div").classes("stack")
        self._charts: dict[str, Any] = {}
        self._rows = 0

    def draw(self, rows: tuple[dict[str, float], ...]) -> None:
        """Show `rows`, if there are new ones."""
        if not rows or len(rows) == self._rows:
            return
        if not self._charts:
            with self._place:
                self._build(rows)
        self._rows = len(rows)
        self._charts["loss"].options.update(charts.loss_options(rows))
        for column, _, _ in charts.CURVES:
            self._charts[column].options.update(charts.curve_options(rows, column))
        for chart in self._charts.values():
            chart.update()

    def _build(self, rows: tuple[dict[str, float], ...]) -> None:
        with ui.element("section").classes("panel"):
            show(_title("Loss", "nats a token"))
            self._charts["loss"] = ui.echart(charts.loss_options(rows), renderer="svg").classes("chart")
        with ui.element("div").classes("charts"):
            for column, title, unit in charts.CURVES:
                with ui.element("section").classes("panel"):
                    show(_title(title, unit))
                    options = charts.curve_options(rows, column)
                    self._charts[column] = ui.echart(options, renderer="svg").classes("chart small")


def _title(name: str, unit: str) -> Markup:
    return tag("div", tag("h2", name), tag("span", unit, class_="aside"), class_="panel-head")


class _Logs:
    """One log at a time, chosen by its file; the choice stays while the logs grow."""

    def __init__(self) -> None:
        self._chosen = ""
        self._texts: dict[str, str] = {}
        self._buttons: dict[str, ui.element] = {}
        with ui.element("section").classes("panel"):
            self._head = show()
            self._names = ui.element("div").classes("filters")
            self._text = show()

    def draw(self, texts: dict[str, str], *, running: bool) -> None:
        """Show these logs."""
        if texts.keys() != self._texts.keys():
            self._offer(list(texts))
        self._texts = texts
        self._show(running=running)

    def _offer(self, names: list[str]) -> None:
        self._chosen = self._chosen if self._chosen in names else (names[0] if names else "")
        self._names.clear()
        with self._names:
            several = names if len(names) > 1 else []
            self._buttons = {name: press(name.removesuffix(".log"), partial(self._choose, name)) for name in several}

    def _choose(self, name: str) -> None:
        self._chosen = name
        self._show(running=False)

    def _show(self, *, running: bool) -> None:
        said = self._texts.get(self._chosen, "")
        for name, button in self._buttons.items():
            button.props(f"aria-pressed={'true' if name == self._chosen else 'false'}")
        nothing = "It has said nothing yet." if running else "It said nothing."
        log = tag("div", tag("pre", said, class_="log"), class_="tail", tabindex=0)
        self._head.content = _title("Logs", f"the last {TAIL} lines" if said.count("\n") + 1 >= TAIL else "")
        self._text.content = log if said else tag("p", nothing, class_="soft")


def split_logs(text: str) -> dict[str, str]:
    """`Run.logs()` as one text per file."""
    parts = LOG.split(text)
    return {name: body.strip("\n") for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _head(record: RunRecord) -> Markup:
    crumb = tag("div", tag("a", "Runs", href="/runs"), class_="crumb")
    under = tag("p", badge(record.state), record.kind, DOT, tag("code", record.id), class_="lead")
    return tag("div", crumb, tag("h1", record.name), under)


def _status(seen: Seen) -> Markup:
    record, (fraction, message) = seen.record, seen.progress
    parts = []
    if record.reason:
        parts.append(tag("div", tag("p", record.reason), class_="alert" if record.state == "FAILED" else "panel"))
    if record.state in RUNNING or message:
        shown = 1.0 if record.state == "SUCCEEDED" else fraction
        parts.append(panel("Progress", bar(shown, message or record.state.lower())))
    last = seen.metrics[-1] if seen.metrics else {}
    pairs = [("Took" if record.ended_s else "Running for", duration(run_seconds(record)))]
    if "loss" in last:
        pairs += [
            ("Step", count(last["step"])),
            ("Loss", f"{last['loss']:.3f}"),
            ("Tokens per second", count(last.get("tokens_per_s", 0.0))),
            ("MFU", f"{last.get('mfu', 0.0):.1%}"),
            ("Energy", energy(seen.cost.joules)),
        ]
    made = [edge.ref for edge in seen.lineage.edges if edge.run == record.id and edge.role == "output"]
    outcome = tag(
        "p", "Made ", [[DOT if number else "", link_to(ref)] for number, ref in enumerate(made)], class_="made"
    )
    parts.append(panel("Result" if record.ended_s else "So far", figures(pairs), outcome if made else None))
    return join(parts)


def _about(record: RunRecord) -> Markup:
    rows = [
        ("Created", at(record.created_s)),
        ("Started", at(record.started_s) or "not yet"),
        ("Ended", at(record.ended_s) or "not yet"),
        ("Code", record.code),
        ("Seed", record.seed),
    ]
    flow = json.loads(record.config_json).get("flow") if record.kind == "step" else record.id
    link = tag("a", "the flow's graph", href=f"/flows/{flow}") if record.kind in ("flow", "step") else None
    return panel("Record", facts(rows), aside=link)


def _settings(record: RunRecord) -> Markup:
    config = json.dumps(json.loads(record.config_json), indent=2, ensure_ascii=False)
    asked = tag("details", tag("summary", "Configuration"), tag("pre", config, class_="code"), class_="fold")
    around = environment(json.loads(record.environment_json))
    return panel("Settings", asked, tag("details", tag("summary", "Environment"), around, class_="fold"))


def environment(found: dict[str, Any]) -> Markup:
    """What the run ran in: names with values, library versions as chips."""
    plain = [(name, value if isinstance(value, str | int | float) else None) for name, value in found.items()]
    nested = [(name, value) for name, value in found.items() if isinstance(value, dict)]
    rows = [(name, value) for name, value in plain if value is not None]
    rows += [(name, chips(f"{key} {item}" for key, item in value.items())) for name, value in nested]
    return facts(rows)
