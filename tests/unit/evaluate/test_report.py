"""Reports: finite, self-contained, readable in light and dark, and what a program reads equals what was measured."""

from pathlib import Path

import pytest

from mainspring.evaluate.report import Plot, svg, write
from mainspring.spec import GateDecision, Report, Score, SpecError
from mainspring.store.parse import read_json

PLOT = Plot(
    title="Bits <per> byte", kind="histogram", x="bits", y="documents", rows=(("model", 1.5, 0), ("xz", 2.0, 0))
)
SCORE = Score(
    name="bits_per_byte",
    value=1.5,
    unit="bits/byte",
    higher_is_better=False,
    low=1.4,
    high=1.6,
    samples=9,
    baseline=2.0,
    baseline_name="xz",
)
REPORT = Report(subject="model:<b>@1", snapshot="dataset:d@2", scores=(SCORE,), notes=("9 documents & no more",))


def test_the_json_reads_back_as_the_same_report(tmp_path: Path) -> None:
    write(REPORT, tmp_path, plots=[PLOT])
    assert read_json((tmp_path / "report.json").read_text(), Report) == REPORT


def test_the_page_is_self_contained_escaped_and_has_both_themes(tmp_path: Path) -> None:
    write(REPORT, tmp_path, plots=[PLOT], decision=GateDecision(verdict="fail", reasons=("x: 1 < 2",)))
    page = (tmp_path / "report.html").read_text()
    assert "model:&lt;b&gt;@1" in page
    assert "<b>" not in page
    assert page.count("<svg") == 2
    assert "prefers-color-scheme" in page
    assert "Gate: fail" in page
    assert "x: 1 &lt; 2" in page
    assert not any(loads in page for loads in ("<script", "src=", "<link", "@import"))


def test_themes_draw_the_same_data_in_different_ink() -> None:
    light, dark = svg(PLOT, theme="light"), svg(PLOT, theme="dark")
    assert "#1f2328" in light
    assert "#e6edf3" in dark
    assert len(light) == len(dark)


@pytest.mark.parametrize("field", ["value", "low", "baseline"])
def test_a_number_that_is_not_finite_never_reaches_a_report(tmp_path: Path, field: str) -> None:
    bad = Score(**{"name": "s", "value": 1.0, "unit": "", "higher_is_better": True, field: float("nan")})
    with pytest.raises(SpecError, match="finite"):
        write(Report(subject="a", snapshot="b", scores=(bad,)), tmp_path)
    assert not (tmp_path / "report.json").exists()
