"""Models and every other artifact: what it is, how good it is and by which rules, where it came from."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

from mainspring.console import lineage
from mainspring.console.frame import page, read
from mainspring.console.markup import Child, Markup, join, show, tag
from mainspring.console.parts import chips, empty, facts, figures, heading, panel, table, verdict
from mainspring.console.words import DOT, count, link_to, link_to_run, meta, several, share, since, size
from mainspring.spec import Artifact, GateDecision, Report, Score
from mainspring.workspace import Workspace

SECTIONS = {"dataset": "data", "tokens": "data", "tokenizer": "data", "index": "assistant", "app": "assistant"}
"""Under which page of the navigation a kind of artifact is; the others are under the models."""
LONGEST_NOTE = 100


def add_to(workspace: Workspace) -> None:
    """Register the pages; a report's own page is served as a document that may load and run nothing."""

    @ui.page("/models", response_timeout=60)
    async def models() -> None:
        async with page("Models", section="models"):
            show(heading("Models", lead="Trained here or brought along; every version keeps what it was made from."))
            found = await read(lambda: workspace.artifacts(kind="model"))
            reports = await read(lambda: workspace.artifacts(kind="report"))
            show(listing(found, reports))

    @ui.page("/artifacts/{ref}", response_timeout=60)
    async def artifact(ref: str) -> None:
        async with page("Artifact", section=SECTIONS.get(ref.partition(":")[0], "models")):
            found = await read(lambda: workspace.artifact(ref))
            ui.context.client.title = f"{found.ref} - Mainspring"
            show(await read(lambda: view(workspace, found)))


def listing(found: Sequence[Artifact], reports: Sequence[Artifact]) -> Markup:
    """Every version, newest first, with its newest report."""
    if not found:
        return panel("No model yet", empty("Train one, or run the whole wheel.", "mainspring train recipe.py"))
    newest = {meta(report)["subject"]: report for report in reversed(reports)}
    rows = []
    for artifact in found:
        noted = meta(artifact)
        report = newest.get(artifact.ref)
        rows.append(
            (
                link_to(artifact.ref),
                chips(artifact.tags, name="tag"),
                count(noted["parameters"]) if "parameters" in noted else "",
                noted.get("scheme", "as trained"),
                size(artifact.size_bytes),
                tag("span", verdict(meta(report)["gate"]), " ", link_to(report.ref, "report"))
                if report
                else tag("span", "not evaluated", class_="soft"),
                since(artifact.created_s),
            )
        )
    columns = ("model", "tags", "parameters", "weights", "size", "evaluation", "made")
    return panel(several(len(found), "version"), table(columns, rows, numbers=(2, 4)))


def view(workspace: Workspace, artifact: Artifact) -> Markup:
    """One artifact's page. Reads the store."""
    is_report = artifact.kind == "report"
    about = [artifact] if is_report else _reports(workspace, artifact)
    drawn = lineage.draw(workspace.lineage(artifact.ref), current=artifact.ref)
    return join(
        _head(artifact),
        _numbers(artifact),
        [evaluation(report, workspace.report(report.ref), workspace.gate(report.ref)) for report in about[:1]],
        _earlier(about[1:]),
        panel("Lineage", drawn) if drawn else None,
        tag("div", _noted(meta(artifact)), _files(artifact), class_="split even"),
    )


def evaluation(artifact: Artifact, report: Report, gate: GateDecision) -> Markup:
    """Scores with their intervals against their baselines, and what the gate says of them."""
    reasons = tag("ul", [tag("li", reason, class_=_met(reason)) for reason in gate.reasons])
    told = "The gate is passed." if gate.passed else "The gate is not passed."
    judged = tag("div", tag("b", told), reasons, class_=f"gate {'good' if gate.passed else 'bad'}")
    key = tag(
        "p",
        "Dot: measured. Band: 95 % interval. Upright: baseline. Scores of one unit share a scale from zero.",
        class_="note",
    )
    of = scales(report.scores)
    scores = tag("div", [score_line(score, of[score.unit]) for score in report.scores])
    source = f"/reports/{artifact.ref}.html"
    notes = tag("ul", [tag("li", note) for note in report.notes], class_="note")
    full = tag("details", tag("summary", "The report with its plots"), _embedded(source), class_="fold")
    alone = tag("a", "open it alone", href=source)
    of_what = link_to(report.snapshot) if report.snapshot else "no dataset"
    aside = tag("span", link_to(artifact.ref), " on ", of_what, DOT, alone)
    return join(
        panel("Gate", judged),
        panel("Evaluation", scores, key, notes if report.notes else None, full, aside=aside),
    )


def _met(reason: str) -> str:
    return "bad" if reason.endswith("not met") else "good"


def scales(scores: Sequence[Score]) -> dict[str, tuple[float, float]]:
    """The scale of each unit, from nothing to the largest number measured in it, so that its scores compare."""
    known: dict[str, list[float]] = {}
    for score in scores:
        given = (score.value, score.low, score.high, score.baseline, 1.0 if score.unit == "share" else 0.0)
        known.setdefault(score.unit, [0.0]).extend(number for number in given if number is not None)
    return {unit: (min(numbers), max(numbers)) for unit, numbers in known.items()}


def score_line(score: Score, scale: tuple[float, float]) -> Markup:
    """One score: value, interval and baseline on the scale of its unit."""
    low, high = scale
    span = (high - low) or 1.0

    def x(number: float) -> str:
        return f"{(number - low + span * 0.02) / (span * 1.04) * 100:.2f}%"

    drawn: list[Child] = [
        tag("line", x1="0%", x2="100%", y1=17, y2=17, class_="axis"),
        tag("line", x1=x(0), x2=x(0), y1=13, y2=21, class_="zero"),
    ]
    if score.low is not None and score.high is not None:
        drawn.append(tag("line", x1=x(score.low), x2=x(score.high), y1=17, y2=17, class_="interval"))
    if score.baseline is not None:
        drawn.append(tag("line", x1=x(score.baseline), x2=x(score.baseline), y1=5, y2=29, class_="baseline"))
    drawn.append(tag("circle", cx=x(score.value), cy=17, r=5.5, class_="value"))
    plot = tag("svg", drawn, role="img", aria_label=f"{score.name} {score.value:.4g}")
    return tag("div", tag("div", score.name.replace("_", " ")), plot, _worded(score), class_="score")


def _worded(score: Score) -> Markup:
    told = []
    if score.low is not None and score.high is not None:
        told.append(f"{score.low:.3g} to {score.high:.3g}")
    if score.baseline is not None:
        better = (score.value > score.baseline) == score.higher_is_better
        word = "better than" if better else "not better than"
        told.append(f"{word} {score.baseline_name} {score.baseline:.4g}")
    number = [tag("b", f"{score.value:.4g}"), f" {score.unit}"]
    return tag("div", number, [tag("div", part, class_="note") for part in told], class_="worded")


def _embedded(source: str) -> Markup:
    return tag("iframe", src=source, title="Report", class_="report", loading="lazy", sandbox="")


def _reports(workspace: Workspace, artifact: Artifact) -> list[Artifact]:
    """Reports about exactly this artifact, newest first."""
    name = f"{artifact.kind}-{artifact.name}"
    return [found for found in workspace.artifacts(kind="report", name=name) if meta(found)["subject"] == artifact.ref]


def _head(artifact: Artifact) -> Markup:
    crumb = tag("div", tag("a", "Models", href="/models"), class_="crumb")
    by = [" by ", link_to_run(artifact.run)] if artifact.run else None
    lead = tag("p", "made ", since(artifact.created_s), by, " ", chips(artifact.tags, name="tag"), class_="lead")
    act = None
    if artifact.kind == "model":
        act = tag("a", "Try it", href=f"/playground?name={artifact.name}", class_="button primary")
    elif artifact.kind == "app":
        act = tag("a", "Ask it", href=f"/assistant?name={artifact.name}", class_="button primary")
    return tag(
        "header",
        tag("div", crumb if artifact.kind == "model" else None, tag("h1", artifact.ref), lead),
        act,
        class_="head",
    )


def _numbers(artifact: Artifact) -> Markup:
    noted = meta(artifact)
    pairs: list[tuple[str, Child]] = [("Size", size(artifact.size_bytes)), ("Files", count(len(artifact.files)))]
    names = {
        "parameters": "Parameters",
        "steps": "Steps",
        "tokens": "Tokens seen",
        "chunks": "Passages",
        "vocab": "Vocabulary",
        "train": "Tokens to learn from",
    }
    pairs += [(name, count(noted[key])) for key, name in names.items() if isinstance(noted.get(key), int | float)]
    if isinstance(noted.get("final_loss"), float):
        pairs.append(("Final loss", f"{noted['final_loss']:.3f}"))
    if "scheme" in noted and noted.get("bytes_after"):
        pairs += [
            ("Weights", noted["scheme"]),
            ("Smaller", f"{noted['bytes_before'] / noted['bytes_after']:.1f} times"),
        ]
    if isinstance(noted.get("top1_agreement"), float):
        pairs.append(("Same first choice", share(noted["top1_agreement"], 1.0)))
    return panel("At a glance", figures(pairs))


def _noted(noted: Mapping[str, Any]) -> Markup:
    rows = []
    for key, value in noted.items():
        rows.append((key.replace("_", " "), _note(value)))
    return panel("Noted when it was published", facts(rows) if rows else tag("p", "Nothing.", class_="soft"))


def _note(value: Any) -> Child:
    """One noted value as a person reads it; what has many parts is folded away."""
    if isinstance(value, str):
        return link_to(value) if ":" in value and "@" in value else value
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or len(text) <= LONGEST_NOTE:
        return text
    whole = tag("pre", json.dumps(value, indent=2, ensure_ascii=False), class_="code")
    return tag("details", tag("summary", f"{len(value)} entries"), whole, class_="fold")


def _files(artifact: Artifact) -> Markup:
    rows = [(tag("code", file.path), size(file.size_bytes), tag("code", file.digest[:12])) for file in artifact.files]
    return panel("Files", table(("file", "size", "sha256"), rows, numbers=(1,)), aside=f"sha256 {artifact.digest[:12]}")


def _earlier(reports: Sequence[Artifact]) -> Markup | None:
    if not reports:
        return None
    return panel("Earlier reports", table(("report", "made"), [(link_to(r.ref), since(r.created_s)) for r in reports]))
