"""Datasets: what was dropped and why, the documents themselves, and what changed between versions."""

from collections.abc import Sequence
from functools import partial

from nicegui import ui

from mainspring.console import lineage
from mainspring.console.frame import page, press, problem, read
from mainspring.console.markup import Markup, join, show, tag
from mainspring.console.parts import chips, empty, figures, heading, panel, table
from mainspring.console.words import ago, count, link_to, link_to_run, meta, several, share, since, size
from mainspring.spec import Artifact, CurationReport, Document, MainspringError, RuleCount, SnapshotDiff
from mainspring.workspace import Workspace

PAGE = 12
SHOWN_CHARACTERS = 20_000
SHOWN_SKIPPED = 20
SHOWN_CHANGES = 30


def add_to(workspace: Workspace) -> None:
    """Register the pages."""

    @ui.page("/data", response_timeout=60)
    async def data() -> None:
        async with page("Data", section="data"):
            show(heading("Data", lead="Datasets: versions that never change, and what was left out of them."))
            show(listing(await read(lambda: workspace.artifacts(kind="dataset"))))

    @ui.page("/data/{ref}", response_timeout=60)
    async def dataset(ref: str) -> None:
        async with page("Dataset", section="data"):
            artifact = await read(lambda: workspace.artifact(ref))
            ui.context.client.title = f"{artifact.ref} - Mainspring"
            versions = await read(lambda: workspace.artifacts(kind="dataset", name=artifact.name))
            report = await read(lambda: workspace.data_report(artifact.ref))
            show(_head(artifact, versions))
            show(curation(report))
            await _reader(workspace, artifact)
            if len(versions) > 1:
                await _compare(workspace, artifact, versions)
            drawn = lineage.draw(await read(lambda: workspace.lineage(artifact.ref)), current=artifact.ref)
            if drawn:
                show(panel("Lineage", drawn))


def listing(found: Sequence[Artifact]) -> Markup:
    """Every version, newest first."""
    if not found:
        command = "mainspring data publish handbook python:docs"
        return panel("No dataset yet", empty("Publish one from a folder, or from Python's own documentation.", command))
    rows = []
    for artifact in found:
        noted = meta(artifact)
        kept, came = noted.get("rows", 0), noted.get("read", 0)  # absent where another program published it
        rows.append(
            (
                link_to(artifact.ref),
                chips(artifact.tags, name="tag"),
                count(kept),
                count(came),
                share(came - kept, came) if came else "",
                since(artifact.created_s),
            )
        )
    return panel(
        several(len(found), "version"),
        table(("dataset", "tags", "documents", "read", "dropped", "made"), rows, numbers=(2, 3, 4)),
    )


def curation(report: CurationReport) -> Markup:
    """What was read, kept and dropped, rule by rule, as bars with examples."""
    dropped = sum(rule.dropped for rule in report.rules)
    numbers = figures(
        [
            ("Read", count(report.read)),
            ("Kept", count(report.kept)),
            ("Dropped", count(dropped)),
            ("Unreadable", count(report.unreadable)),
            ("Text read", size(report.read_bytes)),
            ("Text kept", size(report.kept_bytes)),
        ]
    )
    told = sorted((rule for rule in report.rules if rule.dropped or rule.changed), key=lambda rule: -rule.dropped)
    quiet = [rule.rule for rule in report.rules if not rule.dropped and not rule.changed]
    most = max((rule.dropped for rule in told), default=0)
    rules = [_rule(rule, most=most, read=report.read) for rule in told]
    found_nothing = tag("p", "Found nothing: ", ", ".join(quiet), class_="note") if quiet else None
    body = tag("div", rules, class_="rules") if rules else tag("p", "No rule dropped anything.", class_="soft")
    skipped = [(tag("span", item.source, class_="ref"), item.reason) for item in report.skipped[:SHOWN_SKIPPED]]
    unread = panel(
        "Could not be read",
        table(("file", "why"), skipped),
        aside=f"{SHOWN_SKIPPED} of {len(report.skipped)}" if len(report.skipped) > SHOWN_SKIPPED else None,
    )
    return join(
        panel("What came in", numbers),
        panel("What was dropped, and why", body, found_nothing),
        unread if skipped else None,
    )


def _rule(rule: RuleCount, *, most: int, read: int) -> Markup:
    changed = f", repaired {count(rule.changed)}" if rule.changed else ""
    told = f"{count(rule.dropped)} ({share(rule.dropped, read)}){changed}" if rule.dropped else f"dropped none{changed}"
    head = tag("div", tag("b", rule.rule), tag("span", told, class_="number"), class_="rule-head")
    track, examples = None, None
    if rule.dropped:
        track = tag("div", tag("span", style=f"width:{rule.dropped / most:.1%}"), class_="bar", aria_hidden="true")
    if rule.examples:
        listed = tag("ul", [tag("li", example) for example in rule.examples])
        examples = tag("details", tag("summary", "examples"), listed)
    return tag("div", head, track, examples, class_="rule")


def _head(artifact: Artifact, versions: Sequence[Artifact]) -> Markup:
    crumb = tag("div", tag("a", "Data", href="/data"), class_="crumb")
    made = tag(
        "span", "made ", since(artifact.created_s), [" by ", link_to_run(artifact.run)] if artifact.run else None
    )
    links = [
        tag(
            "a",
            f"@{version.version}",
            href=f"/data/{version.ref}",
            aria_current="true" if version.ref == artifact.ref else None,
        )
        for version in versions
    ]
    others = tag("nav", links, class_="filters", aria_label="Versions") if len(versions) > 1 else None
    title = tag("h1", artifact.ref)
    return tag(
        "header",
        tag("div", crumb, title, tag("p", made, " ", chips(artifact.tags, name="tag"), class_="lead")),
        others,
        class_="head",
    )


async def _reader(workspace: Workspace, artifact: Artifact) -> None:
    """Leaf through the documents: titles on the left, the chosen text on the right."""
    rows = int(meta(artifact)["rows"])
    offset = 0

    async def turn(by: int) -> None:
        nonlocal offset
        offset = min(max(0, offset + by), max(0, rows - 1) // PAGE * PAGE)
        await fill()

    async def fill() -> None:
        found = await read(lambda: workspace.documents(artifact.ref, count=PAGE, offset=offset))
        place.content = f"{offset + 1} to {offset + len(found)} of {count(rows)}"
        names.clear()
        buttons: list[ui.element] = []

        def choose(index: int) -> None:
            text.content = document(found[index])
            for number, button in enumerate(buttons):
                button.props(f"aria-pressed={'true' if number == index else 'false'}")

        with names:
            for index, item in enumerate(found):
                button = ui.element("button").props("type=button").on("click", partial(choose, index))
                with button:
                    ui.html(tag("span", item.title or item.source), sanitize=False, tag="span")
                buttons.append(button)
        choose(0)

    with ui.element("section").classes("panel"):
        with ui.element("div").classes("panel-head"):
            show(tag("h2", "Documents"))
            with ui.element("div").classes("row"):
                place = show().classes("note")
                press("Previous", lambda: turn(-PAGE))
                press("Next", lambda: turn(PAGE))
        with ui.element("div").classes("reader"):
            names = ui.element("div").classes("list")
            text = show()
    await fill()


def document(item: Document) -> Markup:
    """One document as it is learnt from."""
    shown = item.text[:SHOWN_CHARACTERS]
    cut = (
        tag("p", f"{count(len(item.text) - len(shown))} more characters", class_="note") if shown != item.text else None
    )
    about = tag("p", item.source, f", {item.format}, {count(len(item.text))} characters", class_="note")
    return join(tag("h3", item.title or item.source), about, tag("pre", shown, class_="log", tabindex=0), cut)


async def _compare(workspace: Workspace, artifact: Artifact, versions: Sequence[Artifact]) -> None:
    """Choose another version and see which sources differ."""
    others = {
        other.ref: f"version {other.version}, {ago(other.created_s)}" for other in versions if other.ref != artifact.ref
    }
    older = [other.ref for other in versions if other.version < artifact.version]

    async def compare() -> None:
        try:
            old, new = sorted((chosen.value, artifact.ref), key=lambda ref: int(ref.rpartition("@")[2]))
            result.content = differences(await read(lambda: workspace.data_diff(old, new)), old=old, new=new)
        except MainspringError as error:
            result.content = problem(error)

    with ui.element("section").classes("panel"):
        with ui.element("div").classes("panel-head"):
            show(tag("h2", "Compare"))
            start = older[0] if older else next(iter(others))
            chosen = ui.select(others, value=start, on_change=compare).props("outlined dense options-dense")
            chosen.props('aria-label="Version to compare with"')
        result = show()
    await compare()


def differences(found: SnapshotDiff, *, old: str, new: str) -> Markup:
    """What a version added, removed and changed."""
    parts = [("Added", found.added), ("Changed", found.changed), ("Removed", found.removed)]
    lists = []
    for title, items in parts:
        listed = tag("ul", [tag("li", item) for item in items[:SHOWN_CHANGES]])
        more = tag("p", f"and {count(len(items) - SHOWN_CHANGES)} more", class_="note")
        if items:
            lists.append(
                tag(
                    "details",
                    tag("summary", title),
                    listed,
                    more if len(items) > SHOWN_CHANGES else None,
                    class_="fold",
                    open=len(items) <= 8,
                )
            )
    numbers = figures((title, count(len(items))) for title, items in parts)
    return join(tag("p", f"from {old} to {new}", class_="note"), numbers, tag("div", lists, class_="rule"))
