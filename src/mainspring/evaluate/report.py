"""Write a report twice: `report.json` for programs, and one self-contained `report.html` for people.

Plots are drawn here as SVG in a light and a dark version; the page shows the one the reader's system asks for. The
page loads nothing and runs no script. A number that is not finite is refused: it would be read as a result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from mainspring.spec import Artifact, GateDecision, Report, Score, SpecError
from mainspring.store import Store
from mainspring.store.parse import read_json, to_json

_THEMES = {"light": ("#1f2328", "#d0d7de"), "dark": ("#e6edf3", "#30363d")}
_COLORS = ("#4c8dff", "#f2994a", "#9b8afb", "#27ae60", "#eb5757", "#8a94a6")


@dataclass(frozen=True, slots=True)
class Plot:
    """One chart: `rows` are (series, x, y), or (series, value, 0) for a histogram."""

    title: str
    kind: Literal["line", "histogram"]
    x: str
    y: str
    rows: tuple[tuple[str, float, float], ...]


def write(report: Report, folder: Path, *, plots: Sequence[Plot] = (), decision: GateDecision | None = None) -> None:
    """Write `report.json` and `report.html` to `folder`. Raises `SpecError` for a score that is not finite."""
    for score in report.scores:
        numbers = [score.value, score.low, score.high, score.baseline]
        if not all(number is None or isfinite(number) for number in numbers):
            raise SpecError(f"score {score.name} of {report.subject} is {score.value}, not a finite number")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(to_json(report) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(_page(report, plots, decision), encoding="utf-8")


def publish_report(
    store: Store,
    report: Report,
    *,
    plots: Sequence[Plot] = (),
    decision: GateDecision,
    run: str = "",
) -> Artifact:
    """Publish `report` under its subject's kind and name (`report:model-handbook`), with both as lineage inputs."""
    name = report.subject.partition("@")[0].replace(":", "-")
    with store.scratch() as folder:
        write(report, folder / "report", plots=plots, decision=decision)
        return store.publish(
            "report",
            name,
            folder / "report",
            meta={"subject": report.subject, "snapshot": report.snapshot, "gate": decision.verdict},
            run=run,
            inputs=tuple(ref for ref in (report.subject, report.snapshot) if ref),
        )


def read_report(store: Store, artifact: Artifact) -> Report:
    """The report an artifact of kind report holds."""
    return read_json((store.fetch(artifact) / "report.json").read_text(encoding="utf-8"), Report, artifact.ref)


def with_baseline(score: Score, value: float, name: str) -> Score:
    """`score` held against a baseline."""
    return replace(score, baseline=value, baseline_name=name)


def svg(plot: Plot, *, theme: Literal["light", "dark"]) -> str:
    """`plot` as SVG in the colours of `theme`."""
    import altair as alt
    import vl_convert

    ink, grid = _THEMES[theme]
    values = [{"series": series, "x": x, "y": y} for series, x, y in plot.rows]
    order = list(dict.fromkeys(series for series, _, _ in plot.rows))
    color = alt.Color("series:N", scale=alt.Scale(domain=order, range=list(_COLORS)), legend=alt.Legend(title=None))
    base = alt.Chart(alt.Data(values=values))
    if plot.kind == "line":
        chart = base.mark_line(point=True, strokeWidth=2).encode(
            x=alt.X("x:Q", title=plot.x, axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("y:Q", title=plot.y, scale=alt.Scale(zero=False)),
            color=color,
        )
    else:
        chart = base.mark_bar(opacity=0.55, binSpacing=0).encode(
            x=alt.X("x:Q", title=plot.x, bin=alt.Bin(maxbins=40)),
            y=alt.Y("count():Q", title=plot.y, stack=None),
            color=color,
        )
    chart = chart.properties(width=560, height=260, background="transparent").configure(
        axis={"labelColor": ink, "titleColor": ink, "gridColor": grid, "domainColor": grid, "tickColor": grid},
        legend={"labelColor": ink, "orient": "top"},
        view={"stroke": "transparent"},
    )
    return vl_convert.vegalite_to_svg(chart.to_dict())


def _page(report: Report, plots: Sequence[Plot], decision: GateDecision | None) -> str:
    figures = "".join(
        f"<figure><figcaption>{escape(plot.title)}</figcaption>"
        f'<div class="light">{svg(plot, theme="light")}</div><div class="dark">{svg(plot, theme="dark")}</div></figure>'
        for plot in plots
    )
    verdict = ""
    if decision:
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in decision.reasons)
        verdict = f'<section class="{decision.verdict}"><h2>Gate: {decision.verdict}</h2><ul>{reasons}</ul></section>'
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    rows = "".join(map(_row, report.scores))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.subject)}: evaluation</title><style>{_STYLE}</style></head><body>
<h1>{escape(report.subject)}</h1><p class="soft">evaluated on {escape(report.snapshot)}</p>
{verdict}
<div class="wide"><table><thead><tr><th>score</th><th>value</th><th>95 % interval</th><th>unit</th>
<th>better</th><th>baseline</th><th>samples</th></tr></thead><tbody>{rows}</tbody></table></div>
{figures}
<h2>Notes</h2><ul>{notes}</ul>
</body></html>
"""


def _row(score: Score) -> str:
    span = "" if score.low is None or score.high is None else f"{score.low:.4g} to {score.high:.4g}"
    against, mark = "", ""
    if score.baseline is not None:
        against = f"{score.baseline:.4g} {escape(score.baseline_name)}"
        mark = "better" if (score.value > score.baseline) == score.higher_is_better else "worse"
    cells = (
        f"<td>{escape(score.name)}</td>",
        f'<td class="number {mark}">{score.value:.4g}</td>',
        f'<td class="number">{span}</td>',
        f"<td>{escape(score.unit)}</td>",
        f"<td>{'higher' if score.higher_is_better else 'lower'}</td>",
        f"<td>{against}</td>",
        f'<td class="number">{score.samples or ""}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>"


_STYLE: Any = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--line:#d0d7de;--page:#fff;--good:#1a7f37;--bad:#cf222e}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#30363d;--page:#0d1117;
--good:#3fb950;--bad:#f85149}.light{display:none}}
@media (prefers-color-scheme:light){.dark{display:none}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:60rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.15rem}.soft{color:var(--soft);margin-top:0}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line)}th{color:var(--soft);font-weight:500}
.number{font-variant-numeric:tabular-nums;white-space:nowrap}.better{color:var(--good)}.worse{color:var(--bad)}
figure{margin:2rem 0}figcaption{font-weight:600;margin-bottom:.5rem}svg{max-width:100%;height:auto}
section{
border-left:4px solid var(--line);padding-left:1rem}.pass{border-color:var(--good)}.fail{border-color:var(--bad)}
"""
