"""Pages as functions of what was seen: escaped, thinned, split and worded."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.console import assistant, charts, data, fleet, flows, models, runs, wheel, words
from mainspring.console.markup import Markup, join, tag
from mainspring.console.parts import bar, table
from mainspring.spec import CurationReport, Event, NodeUse, RuleCount, Score, Settings, Skipped
from mainspring.testing.books import enqueue, fill_books
from mainspring.workspace import Workspace

HOSTILE = "<img src=x onerror=alert(1)>"


@given(st.text())
def test_text_is_text_wherever_it_stands(text: str) -> None:
    drawn = tag("p", text, title=text)
    assert drawn.count("<") == 2
    assert join(drawn, tag("b", 1)) == Markup(f"{drawn}<b>1</b>")


def test_an_answer_cannot_bring_markup_but_keeps_its_markers() -> None:
    quoted = {"source": HOSTILE, "path": (HOSTILE,), "quote": HOSTILE}
    citation = {"marker": 1, "chunk": "c" * 40, "score": 1.0, **quoted}
    found = {"trace": "t", "mode": "extracted", "note": HOSTILE, "citations": [citation]}
    drawn = assistant.view(f"**join** uses `sep` {HOSTILE} [1].", found)
    assert "<img" not in drawn
    assert "<b>join</b> uses <code>sep</code>" in drawn
    assert '<sup><a href="#t-1">1</a></sup>.' in drawn
    assert 'id="t-1"' in drawn


@given(st.integers(1, 20_000))
def test_a_curve_is_thinned_but_keeps_its_end(count: int) -> None:
    rows = [{"step": float(step), "loss": 1.0 / step} for step in range(1, count + 1)]
    found = charts.points(rows, "loss")
    assert len(found) <= 2 * charts.MAX_POINTS + 1
    assert found[-1] == [count, pytest.approx(1.0 / count, rel=1e-4)]
    assert found == sorted(found)


def test_a_column_that_is_not_there_is_no_curve() -> None:
    rows = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0, "held_out_loss": 1.5}]
    assert charts.points(rows, "mfu") == []
    series = charts.loss_options(rows)["series"]
    assert [(one["name"], len(one["data"])) for one in series] == [("loss", 2), ("held-out loss", 1)]


def test_logs_are_split_by_their_files() -> None:
    text = "== rank-0.log\none\n== not a heading\n\n== run.log\nTraceback\n"
    assert runs.split_logs(text) == {"rank-0.log": "one\n== not a heading", "run.log": "Traceback"}
    assert runs.split_logs("") == {}


def test_what_was_dropped_is_ordered_and_named() -> None:
    rules = (
        RuleCount(rule="short", dropped=1, examples=(HOSTILE,)),
        RuleCount(rule="copies", dropped=4),
        RuleCount(rule="quiet", dropped=0),
    )
    skipped = (Skipped(source="a.pdf", reason=HOSTILE),)
    drawn = data.curation(CurationReport(read=10, kept=5, read_bytes=100, kept_bytes=50, rules=rules, skipped=skipped))
    assert drawn.index("copies") < drawn.index("short")
    assert "4 (40.0 %)" in drawn
    assert "Found nothing: quiet" in drawn
    assert "<img" not in drawn


def test_scores_of_one_unit_share_a_scale_from_zero() -> None:
    def score(name: str, value: float, unit: str, baseline: float | None = None) -> Score:
        return Score(name=name, value=value, unit=unit, higher_is_better=False, baseline=baseline, baseline_name="b")

    scores = [score("a", 2.0, "bits", 3.0), score("b", -1.0, "bits"), score("c", 0.4, "share")]
    assert models.scales(scores) == {"bits": (-1.0, 3.0), "share": (0.0, 1.0)}
    assert "better than b 3" in models.score_line(scores[0], (-1.0, 3.0))
    assert "not better" not in models.score_line(scores[0], (-1.0, 3.0))
    assert models.score_line(score("zero", 0.0, "x"), (0.0, 0.0))


def test_a_flow_is_where_its_latest_event_left_it() -> None:
    config = {"steps": {"b": {"call": "x:b"}, "a": {"call": "x:a"}}, "needs": {"b": ["a"]}}
    steps = {step.name: step for step in flows.described(config)}
    told = {"state": "RUNNING", "fraction": 0.5, "message": "half", "run": "r1", "seconds": 2.0, "attempt": 2}
    events = [
        Event(seq=seq, time_s=0.0, kind="flow.step", subject="f", data_json=json.dumps({"step": name, **told}))
        for seq, name in enumerate(("a", "unknown"))
    ]
    after = flows.heard(steps, events)
    assert (after["a"].state, after["a"].attempt, after["a"].needs) == ("RUNNING", 2, ())
    assert (after["b"].state, after["b"].needs) == ("PENDING", ("a",))


def test_an_empty_workspace_has_a_wheel_that_stands_still() -> None:
    stages = wheel.turns((), (), ())
    assert len(stages) == 8
    assert {stage.tone for stage in stages} == {"off"}
    assert "0/8" in wheel.draw(stages)


def test_columns_without_anything_are_left_out() -> None:
    drawn = table(("name", "tags", "size"), [("a", "", 1), ("b", Markup(""), 2)], numbers=(2,))
    assert "tags" not in drawn
    assert drawn.count('class="number"') == 3


def test_a_bar_stays_within_its_track() -> None:
    assert "width:100.0%" in bar(7.0, "over")
    assert 'aria-valuenow="0"' in bar(-1.0, "under")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0, "0.0 s"), (0.002, "2 ms"), (3.21, "3.2 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (200_000, "2 d")],
)
def test_durations_read_like_a_person_says_them(seconds: float, told: str) -> None:
    assert words.duration(seconds) == told


@pytest.mark.parametrize(("number", "told"), [(12, "12"), (4096, "4,096"), (1_234_567, "1.23 M"), (0.25, "0.25")])
def test_counts_read_like_a_person_says_them(number: float, told: str) -> None:
    assert words.count(number) == told


def test_a_step_and_its_flow_tell_how_far_they_are(settings: Settings) -> None:
    with Workspace(settings) as workspace:
        store = workspace.store
        config = {"steps": {"read": {"call": "x:read"}, "learn": {"call": "x:learn"}}, "needs": {"learn": ["read"]}}
        flow = store.start_run("flow", "wheel", config=config)
        step = store.start_run("step", "learn", config={"flow": flow.id, "step": "learn"})
        told = {
            "step": "read",
            "state": "CACHED",
            "fraction": 1.0,
            "message": "",
            "run": "",
            "seconds": 0,
            "attempt": 1,
        }
        store.emit("flow.step", flow.id, {**told, "attempt": 1})
        followed: dict[str, flows.Watched] = {}
        for fraction in (0.25, 0.5):
            moved = {"step": "learn", "state": "RUNNING", "fraction": fraction, "message": "step 9", "run": step.id}
            store.emit("flow.step", flow.id, {**told, **moved, "attempt": 1})
            found = flows.progress_of(workspace, [flow, step], followed)
            assert found == {flow.id: ((1 + fraction) / 2, "1 of 2 steps"), step.id: (fraction, "step 9")}
        assert list(followed) == [flow.id]


def test_a_long_curve_is_read_through_its_mean() -> None:
    rows = [{"step": float(step), "loss": 3.0 + (step % 2)} for step in range(1, 401)]
    faint, smooth = charts.loss_options(rows)["series"]
    assert faint["lineStyle"]["opacity"] < smooth["lineStyle"]["opacity"] == 1
    assert [value for _, value in smooth["data"][20:]] == [3.5] * 380
    assert [line["name"] for line in charts.loss_options(rows[:10])["series"]] == ["loss"]


@pytest.mark.parametrize(
    ("part", "of", "told"),
    [(0, 10, "0.0 %"), (1, 3490, "<0.1 %"), (60, 3490, "1.7 %"), (4, 4, "100.0 %"), (0, 0, "0.0 %")],
)
def test_a_share_that_is_there_is_never_said_to_be_nothing(part: int, of: int, told: str) -> None:
    assert words.share(part, of) == told


def test_one_is_not_many() -> None:
    assert [words.several(n, "run") for n in (0, 1, 2, 1200)] == ["0 runs", "1 run", "2 runs", "1,200 runs"]


def test_a_cluster_is_drawn_with_every_job_named_and_a_sick_device_marked(settings: Settings) -> None:
    with Workspace(settings) as workspace:
        fill_books(workspace.store)
        enqueue(workspace.store, HOSTILE, "product", 1, 60)
        nodes, shares, waiting = workspace.nodes(), workspace.usage(), workspace.queue()
        why = workspace.why("ablation")[0]
    drawn = fleet.topology(nodes) + fleet.tree(shares) + fleet.line(waiting)
    assert "<img" not in drawn
    assert drawn.count("device sick") == 1
    assert drawn.count('aria-label="device 0: pretrain"') == 3
    assert "research" in drawn
    assert 'href="/cluster?job=ablation"' in drawn
    assert "It would start with" in fleet.answer(why)
    assert "33 of 47" in fleet.totals(nodes, ())


def test_a_share_of_a_device_fills_a_part_of_it_and_a_closed_node_says_so() -> None:
    node = NodeUse(
        name="n",
        domain=("rack-1",),
        model="T4",
        open=False,
        cpu_milli=4000,
        cpu_held_milli=1000,
        memory_mib=1024,
        memory_held_mib=0,
        held=(250, 0),
        sick=(),
        holders=(("a",), ()),
        gangs=("a",),
    )
    drawn = fleet.topology([node])
    assert "height:25%" in drawn
    assert "25 % of it" in drawn
    assert "closed" in drawn
    assert "rack-1" in drawn
    assert "Nobody waits" in fleet.line(())
