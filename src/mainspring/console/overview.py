"""The first page: is anything running, what was made last, what can be asked, and what it all has cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nicegui import ui

from mainspring.console import wheel
from mainspring.console.flows import Watched, progress_of
from mainspring.console.frame import live, page
from mainspring.console.markup import Markup, join, show, tag
from mainspring.console.parts import RUNNING, bar, chips, empty, figures, heading, panel, run_table, table
from mainspring.console.words import count, duration, energy, link_to, link_to_run, since, size
from mainspring.flow.execution import Cost
from mainspring.spec import Artifact, Event, RunRecord
from mainspring.workspace import Workspace

RUNS, SHOWN = 100, 8
FEEDBACK = 10_000


@dataclass(frozen=True, slots=True)
class Overview:
    """What the page shows."""

    records: tuple[RunRecord, ...]
    progress: dict[str, tuple[float, str]]
    artifacts: tuple[Artifact, ...]
    offers: tuple[str, ...]
    feedback: tuple[Event, ...]
    cost: Cost


def add_to(workspace: Workspace) -> None:
    """Register the page."""
    spent: dict[str, Cost] = {}  # of runs that have ended, which never changes

    def load(followed: dict[str, Watched]) -> Overview:
        records = workspace.runs(limit=RUNS)
        for record in records:
            if record.id not in spent and record.ended_s is not None:
                spent[record.id] = workspace.run(record.id).cost
        active = [record for record in records if record.state in RUNNING]
        costs = [spent[record.id] if record.id in spent else workspace.run(record.id).cost for record in records]
        return Overview(
            records=records,
            progress=progress_of(workspace, active, followed),
            artifacts=workspace.artifacts(),
            offers=workspace.offers().names(),
            feedback=workspace.events(kind="feedback", limit=FEEDBACK),
            cost=Cost(seconds=_busy_s(records, costs), joules=sum(cost.joules for cost in costs)),
        )

    @ui.page("/", response_timeout=60)
    async def overview() -> None:
        async with page("Overview", section="overview"):
            show(heading("Overview", lead=f"Workspace {workspace.store.workspace} in {_short(workspace.store.home)}"))
            body = show().classes("stack")

            def draw(seen: Overview) -> None:
                body.content = view(seen)

            followed: dict[str, Watched] = {}
            await live(lambda: load(followed), draw)


def _short(home: Path) -> str:
    """A folder as its owner writes it."""
    return f"~/{home.relative_to(Path.home())}" if home.is_relative_to(Path.home()) else str(home)


def view(seen: Overview) -> Markup:
    """The page for what was seen."""
    stages = wheel.turns(seen.artifacts, seen.records, seen.feedback)
    turning = panel("The wheel", wheel.draw(stages), aside="from documents to feedback, and round again")
    left = tag("div", _offered(seen), _totals(seen), class_="stack")
    halves = tag("div", left, _newest(seen.artifacts), class_="split even level")
    return join(_running(seen), turning, halves, _recent(seen.records))


def _running(seen: Overview) -> Markup | None:
    active = [record for record in seen.records if record.id in seen.progress]
    if not active:
        return None
    rows = []
    for record in active:
        fraction, message = seen.progress[record.id]
        name = tag("div", link_to_run(record.id, record.name), tag("span", f" {record.kind}", class_="soft"))
        rows.append(tag("div", name, bar(fraction, message or record.state.lower())))
    return panel("Running now", tag("div", rows, class_="rules"), aside=f"{len(active)} running")


def _totals(seen: Overview) -> Markup:
    failed = sum(record.state == "FAILED" for record in seen.records)
    pairs = [
        ("Runs", count(len(seen.records))),
        ("Failed", count(failed)),
        ("Time in runs", duration(seen.cost.seconds)),
        ("Energy in training", energy(seen.cost.joules)),
        ("Artifacts", count(len(seen.artifacts))),
        ("On disk", size(sum(artifact.size_bytes for artifact in seen.artifacts))),
    ]
    return panel("So far", figures(pairs), aside=f"the last {RUNS} runs" if len(seen.records) == RUNS else None)


def _offered(seen: Overview) -> Markup:
    if not seen.offers:
        return panel("Ready to answer", empty("No model or assistant has been published.", "make demo"))
    apps = {artifact.name for artifact in seen.artifacts if artifact.kind == "app"}
    rows = [
        (
            tag("a", name, href=f"/{'assistant' if name in apps else 'playground'}?name={name}", class_="ref"),
            chips(["assistant" if name in apps else "model"]),
        )
        for name in seen.offers[:SHOWN]
    ]
    return panel("Ready to answer", table(("name", "what"), rows), aside="loads when first asked")


def _newest(artifacts: Sequence[Artifact]) -> Markup:
    if not artifacts:
        body = empty("Nothing has been published.", "mainspring data publish handbook python:docs")
        return panel("Newest artifacts", body)
    rows = [
        (link_to(artifact.ref), chips(artifact.tags, name="tag"), size(artifact.size_bytes), since(artifact.created_s))
        for artifact in artifacts[:SHOWN]
    ]
    return panel("Newest artifacts", table(("artifact", "tags", "size", "made"), rows, numbers=(2,)))


def _recent(records: Sequence[RunRecord]) -> Markup:
    more = tag("a", "all runs", href="/runs")
    if not records:
        return panel("Latest runs", empty("Nothing has run yet.", "mainspring run examples/handbook/flow.toml"))
    return panel("Latest runs", run_table(records[:SHOWN]), aside=more)


def _busy_s(records: Sequence[RunRecord], costs: Sequence[Cost]) -> float:
    """Seconds of work; a flow's own are those of its steps."""
    return sum(cost.seconds for record, cost in zip(records, costs, strict=True) if record.kind != "flow")
