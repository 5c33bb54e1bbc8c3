"""The parts that pages are put together from: panels, tables, badges, figures, what to do when there is nothing."""

from collections.abc import Iterable, Sequence

from mainspring.console.markup import Child, Markup, join, tag
from mainspring.console.words import duration, link_to_run, run_seconds, since
from mainspring.spec import RunRecord

RUNNING = frozenset({"PENDING", "ADMITTED", "PLACED", "RUNNING", "PREEMPTED"})
TONES = {"SUCCEEDED": "good", "CACHED": "good", "FAILED": "bad", "CANCELLED": "off", "SKIPPED": "off"}
WORDS = {"SUCCEEDED": "done", "CACHED": "remembered"}


def heading(title: str, *, lead: Child = None, actions: Child = None) -> Markup:
    """The head of a page."""
    return tag("header", tag("div", tag("h1", title), lead and tag("p", lead, class_="lead")), actions, class_="head")


def panel(title: str, *body: Child, aside: Child = None, name: str = "") -> Markup:
    """One block of a page under its own title."""
    head = tag("div", tag("h2", title), aside and tag("div", aside, class_="aside"), class_="panel-head")
    return tag("section", head, body, class_=f"panel {name}".strip())


def table(columns: Sequence[str], rows: Iterable[Sequence[Child]], *, numbers: Sequence[int] = ()) -> Markup:
    """Rows under columns; a column in which no row has anything is left out.

    On a narrow screen each cell carries its column's name.
    """
    cells = [list(row) for row in rows]
    kept = [index for index in range(len(columns)) if any(join(row[index]) for row in cells)]

    def numeric(index: int) -> str | None:
        return "number" if index in numbers else None

    head = tag("tr", [tag("th", columns[index], class_=numeric(index)) for index in kept])
    body = [
        tag("tr", [tag("td", row[index], data_label=columns[index], class_=numeric(index)) for index in kept])
        for row in cells
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="table")


def badge(state: str) -> Markup:
    """A state as a word with a dot whose colour is never the only difference."""
    tone = TONES.get(state, "run" if state in RUNNING else "off")
    return tag("span", WORDS.get(state, state.lower()), class_=f"badge {tone}")


def verdict(gate: str) -> Markup:
    """Whether a gate was passed, as a badge."""
    passed = gate == "pass"
    return tag("span", "gate passed" if passed else "gate not passed", class_=f"badge {'good' if passed else 'bad'}")


def chips(values: Iterable[str], *, name: str = "") -> Markup:
    """Short labels."""
    return join([tag("span", value, class_=f"chip {name}".strip()) for value in values])


def figures(pairs: Iterable[tuple[str, Child]]) -> Markup:
    """Big numbers with small captions."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs], class_="figures")


def facts(pairs: Iterable[tuple[str, Child]]) -> Markup:
    """Names and values, one a line."""
    return tag("dl", [join(tag("dt", name), tag("dd", value)) for name, value in pairs], class_="facts")


def empty(what: str, command: str = "") -> Markup:
    """What to do when there is nothing to see yet."""
    return tag("div", tag("p", what), command and tag("pre", tag("code", command)), class_="empty")


def bar(fraction: float, label: str) -> Markup:
    """A progress bar that also says what is being done."""
    share = min(1.0, max(0.0, fraction))
    track = tag(
        "div",
        tag("span", style=f"width:{share:.1%}"),
        class_="bar",
        role="progressbar",
        aria_valuenow=round(share * 100),
        aria_valuemin=0,
        aria_valuemax=100,
        aria_label=label or "progress",
    )
    return tag("div", track, tag("div", tag("span", label), tag("b", f"{share:.0%}"), class_="bar-label"))


def run_table(records: Iterable[RunRecord]) -> Markup:
    """Runs, one a row."""
    rows = [
        (
            link_to_run(record.id, record.name),
            tag("span", record.kind, class_="soft"),
            badge(record.state),
            since(record.created_s),
            duration(run_seconds(record)) if record.started_s else "",
            tag("span", record.reason, class_="reason", title=record.reason) if record.reason else "",
        )
        for record in records
    ]
    return table(("run", "kind", "state", "created", "took", "reason"), rows, numbers=(4,))
