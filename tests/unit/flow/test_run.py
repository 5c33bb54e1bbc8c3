"""Steps run once, in order, side by side; what is finished is never done again."""

import json
import re
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mainspring.flow.execution import read_progress, request_stop
from mainspring.flow.graph import Graph, from_toml
from mainspring.flow.node import Output, StepOptions
from mainspring.flow.run import FlowEvent, FlowResult, run_graph
from mainspring.spec import Artifact, Cancelled, Failed, Progress, Settings, SpecError, Unavailable
from mainspring.store import Store
from mainspring.store.events import event_data


def _mark(folder: str, name: str) -> None:
    with (Path(folder) / name).open("a") as sink:
        sink.write(f"{time.monotonic()}\n")


def _times(folder: Path, name: str) -> list[float]:
    path = folder / name
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


def _states(result: FlowResult) -> dict[str, str]:
    return {step.name: step.state for step in result.steps}


def visit(marks: str, name: str, before: list[str]) -> str:
    _mark(marks, name)
    assert all((Path(marks) / other).exists() for other in before)
    return name


@st.composite
def dags(draw: st.DrawFn) -> list[list[int]]:
    """For each node the earlier nodes it needs."""
    count = draw(st.integers(1, 12))
    return [sorted(draw(st.sets(st.integers(0, node - 1), max_size=4))) if node else [] for node in range(count)]


@hypothesis_settings(max_examples=20, deadline=None)
@given(dag=dags(), workers=st.integers(1, 4), names=st.randoms())
def test_every_node_runs_exactly_once_after_what_it_needs_and_not_at_all_the_second_time(
    tmp_path_factory: pytest.TempPathFactory, dag: list[list[int]], workers: int, names: object
) -> None:
    folder = tmp_path_factory.mktemp("dag")
    graph = Graph("dag")
    order = list(range(len(dag)))
    names.shuffle(order)  # type: ignore[attr-defined]  the order of adding is not the order of running
    for node in order:
        before = [Output(f"n{other}") for other in dag[node][::2]]
        given_ = {"marks": str(folder), "name": f"n{node}", "before": before}
        graph.add(visit, given_, name=f"n{node}", after=[f"n{other}" for other in dag[node][1::2]])
    with Store.open(Settings(home=str(folder / "home"))) as store:
        first = run_graph(graph, store, workers=workers).check()
        again = run_graph(graph, store, workers=workers).check()
        assert len(store.runs("step")) == len(dag)
    assert set(_states(first).values()) == {"SUCCEEDED"}
    assert set(_states(again).values()) == {"CACHED"}
    assert [step.value for step in again.steps] == [step.value for step in first.steps]
    times = {node: _times(folder, f"n{node}") for node in range(len(dag))}
    assert all(len(found) == 1 for found in times.values())
    assert all(times[other][0] <= times[node][0] for node, needs in enumerate(dag) for other in needs)


def add(a: int, b: int) -> int:
    return a + b


def test_a_step_is_recorded_in_few_statements_and_a_cached_step_in_fewer(store: Store) -> None:
    graph = Graph("chain")
    value: object = 0
    for index in range(100):
        value = graph.add(add, {"a": value, "b": index}, name=f"s{index}")
    statements: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        statements.append(statement)  # not time: that depends on what else runs

    spent = []
    event.listen(Engine, "before_cursor_execute", count)
    try:
        for _ in range(2):
            statements.clear()
            run_graph(graph, store).check()
            spent.append(len(statements) / 100)
    finally:
        event.remove(Engine, "before_cursor_execute", count)
    executed, cached = spent
    assert executed <= 18
    assert cached <= 4


def publish(store: Store, run: str, marks: str, text: str) -> Artifact:
    _mark(marks, "publish")
    with store.scratch() as scratch:
        (scratch / "text").write_text(text.strip())
        return store.publish("dataset", "text", scratch / "text", run=run)


def count_letters(store: Store, data: Artifact, marks: str) -> int:
    _mark(marks, "count")
    return len((store.fetch(data) / "text").read_text())


def name_of(data: str) -> str:
    return data


def _publishing(marks: Path, text: str) -> Graph:
    graph = Graph("publishing")
    data = graph.add(publish, {"marks": str(marks), "text": text})
    graph.add(count_letters, {"data": data, "marks": str(marks)})
    graph.add(name_of, {"data": data})
    return graph


def test_artifacts_travel_between_steps_with_lineage(store: Store, marks: Path) -> None:
    result = run_graph(_publishing(marks, "alpha"), store).check()
    assert (result.step("count_letters").value, result.step("name_of").value) == (5, "dataset:text@1")
    down = store.lineage("dataset:text", "down")
    assert {run.name for run in down.runs} == {"count_letters", "name_of"}
    assert {run.name for run in store.lineage("dataset:text", "up").runs} == {"publish"}


def test_a_step_that_makes_the_same_thing_again_leaves_its_dependants_fresh(store: Store, marks: Path) -> None:
    run_graph(_publishing(marks, "alpha"), store).check()
    again = run_graph(_publishing(marks, " alpha "), store).check()
    assert _states(again) == {"publish": "SUCCEEDED", "count_letters": "CACHED", "name_of": "CACHED"}
    other = run_graph(_publishing(marks, "beta"), store).check()
    assert _states(other) == dict.fromkeys(_states(again), "SUCCEEDED")
    assert other.step("count_letters").value == 4


def test_every_step_is_recorded_and_a_console_can_draw_the_flow_live(store: Store, marks: Path) -> None:
    heard: list[FlowEvent] = []
    result = run_graph(_publishing(marks, "alpha"), store, on_event=heard.append)
    flow = store.run(result.run.id)
    drawn = json.loads(flow.config_json)
    assert (flow.kind, flow.state, flow.name) == ("flow", "SUCCEEDED", "publishing")
    assert drawn["needs"] == {"publish": [], "count_letters": ["publish"], "name_of": ["publish"]}
    assert drawn["steps"]["count_letters"]["with"]["data"] == "${publish}"
    events = [event_data(event) for event in store.events(kind="flow.step", subject=flow.id)]
    for name in drawn["steps"]:
        assert [event["state"] for event in events if event["step"] == name] == ["RUNNING", "SUCCEEDED"]
        step = store.run(result.step(name).run)
        assert (step.kind, step.state) == ("step", "SUCCEEDED")
        assert json.loads(step.config_json)["flow"] == flow.id
    assert [event.state for event in heard if event.step == "publish"] == ["RUNNING", "SUCCEEDED"]


def slow(marks: str, name: str) -> None:
    _mark(marks, name)
    threading.Event().wait(0.3)
    _mark(marks, name)


def test_branches_run_side_by_side_up_to_the_number_of_workers(store: Store, marks: Path) -> None:
    graph = Graph("branches")
    for name in "abc":
        graph.add(slow, {"marks": str(marks), "name": name}, name=name)
    run_graph(graph, store, workers=2).check()
    a, b, c = (_times(marks, name) for name in "abc")
    assert b[0] < a[1]
    assert c[0] > min(a[1], b[1])


def flaky(marks: str, wins_at: int) -> int:
    _mark(marks, "flaky")
    tries = len(_times(Path(marks), "flaky"))
    if tries < wins_at:
        raise ConnectionError("not yet")
    return tries


def test_a_failed_attempt_is_tried_again_with_growing_pauses(store: Store, marks: Path) -> None:
    heard: list[FlowEvent] = []
    graph = Graph("retrying")
    options = StepOptions(retries=3, backoff_s=0.05)
    graph.add(flaky, {"marks": str(marks), "wins_at": 3}, options=options)
    assert run_graph(graph, store, on_event=heard.append).check().step("flaky").value == 3
    first, second, third = _times(marks, "flaky")
    assert second - first >= 0.05
    assert third - second >= 0.1
    assert next(event.message for event in heard if event.attempt == 3) == "ConnectionError: not yet; again in 0.1 s"


def refuse(marks: str) -> int:
    _mark(marks, "refuse")
    raise SpecError("this will never do", hint="do something else")


def fill_disk(x: int) -> int:
    raise Unavailable("no space left", hint="free some disk space")


def test_a_failure_keeps_its_dependants_from_running_and_lets_the_others_finish(store: Store, marks: Path) -> None:
    graph = Graph("failing")
    good = graph.add(add, {"a": 1, "b": 2}, name="good")
    bad = graph.add(refuse, {"marks": str(marks)}, options=StepOptions(retries=3))
    graph.add(add, {"a": bad, "b": good}, name="after_bad")
    graph.add(add, {"a": 1, "b": 1}, name="later", after=["after_bad"])
    graph.add(add, {"a": good, "b": 1}, name="after_good")
    result = run_graph(graph, store, workers=1)
    assert _states(result) == {
        "good": "SUCCEEDED",
        "refuse": "FAILED",
        "after_bad": "SKIPPED",
        "later": "SKIPPED",
        "after_good": "SUCCEEDED",
    }
    assert len(_times(marks, "refuse")) == 1  # a wrong request is not tried again
    assert (result.state, store.run(result.run.id).state) == ("FAILED", "FAILED")
    assert store.run(result.run.id).reason == "step refuse: this will never do"
    with pytest.raises(SpecError, match="step refuse failed: this will never do") as caught:
        result.check()
    assert caught.value.hint == "do something else"
    assert isinstance(caught.value.__cause__, SpecError)
    log = (store.run_dir(result.step("refuse").run) / "run.log").read_text()
    assert "in refuse" in log


def crash(x: int) -> float:
    return 1 / x


def leave(x: int) -> int:
    sys.exit(3)


def opaque(x: int) -> object:
    return threading.Lock()


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (crash, Failed, "step it failed: ZeroDivisionError: division by zero"),
        (fill_disk, Unavailable, "step it failed: no space left"),
        (leave, Failed, "step it failed: SystemExit: 3"),
        (opaque, SpecError, "the result of it cannot be remembered: value of type lock"),
    ],
)
def test_whatever_a_step_raises_is_told_with_its_name_and_cause(
    store: Store, call: object, kind: type[Exception], said: str
) -> None:
    graph = Graph("crashing")
    graph.add(call, {"x": 0}, name="it")  # type: ignore[arg-type]
    result = run_graph(graph, store)
    with pytest.raises(kind, match=re.escape(said)):
        result.check()
    assert store.run(result.step("it").run).state == "FAILED"
    assert _states(run_graph(graph, store)) == {"it": "FAILED"}  # failures are not remembered


def wrong_keys() -> dict[str, int]:
    return {"one": 1}


def as_text() -> object:
    return "three"


def test_what_only_shows_at_run_time_fails_the_step_that_needed_it(store: Store) -> None:
    graph = Graph("late")
    keys, text = graph.add(wrong_keys), graph.add(as_text)
    graph.add(add, {"a": keys["two"], "b": 1}, name="key")
    graph.add(add, {"a": text, "b": 1}, name="type")
    result = run_graph(graph, store)
    assert "steps.key.with.a: what wrong_keys returned has no 'two'" in str(result.step("key").failure)
    assert "steps.type.with.a: Input should be a valid integer, got 'three'" in str(result.step("type").failure)


def write_file(folder: str, text: str) -> Path:
    path = Path(folder) / "made.txt"
    path.write_text(text)
    return path


def read_file(path: Path) -> str:
    return path.read_text()


def test_files_that_steps_make_count_by_their_content(store: Store, marks: Path) -> None:
    def graph_of(text: str) -> Graph:
        graph = Graph("files")
        graph.add(read_file, {"path": graph.add(write_file, {"folder": str(marks), "text": text})})
        return graph

    run_graph(graph_of("one"), store).check()
    assert set(_states(run_graph(graph_of("one"), store)).values()) == {"CACHED"}
    assert run_graph(graph_of("two"), store).check().step("read_file").value == "two"
    (marks / "made.txt").write_text("somebody else was here")
    mended = run_graph(graph_of("two"), store).check()
    assert _states(mended) == {"write_file": "SUCCEEDED", "read_file": "CACHED"}
    (marks / "made.txt").unlink()
    assert _states(run_graph(graph_of("two"), store))["write_file"] == "SUCCEEDED"


MODULE = """
FACTOR = 2
TABLE = {"a": 1}

def helper(x: int) -> int:
    return x * FACTOR

def unrelated() -> int:
    return 1

def work(x: int) -> int:
    return helper(x) + TABLE["a"]
"""


@pytest.mark.parametrize(
    ("old", "new", "state"),
    [
        ("x * FACTOR", "FACTOR * x", "SUCCEEDED"),
        ("FACTOR = 2", "FACTOR = 3", "SUCCEEDED"),
        ('{"a": 1}', '{"a": 2}', "SUCCEEDED"),
        ("return helper(x)", "return 1 + helper(x)", "SUCCEEDED"),
        ("return 1\n", "return 2\n", "CACHED"),
        ("\nFACTOR", "\n\n# a remark\nFACTOR", "CACHED"),
    ],
)
def test_a_step_is_stale_when_its_code_or_what_it_mentions_was_edited(
    store: Store, tmp_path: Path, old: str, new: str, state: str
) -> None:
    (tmp_path / "flow.toml").write_text('[flow]\nname = "edit"\n[steps.work]\ncall = "code.py:work"\nwith = {x = 2}\n')
    (tmp_path / "code.py").write_text(MODULE)
    run_graph(from_toml(tmp_path / "flow.toml"), store).check()
    assert MODULE.count(old) == 1
    (tmp_path / "code.py").write_text(MODULE.replace(old, new))
    assert _states(run_graph(from_toml(tmp_path / "flow.toml"), store)) == {"work": state}


def test_a_declared_version_and_a_variable_of_the_function_around_are_part_of_the_code(store: Store) -> None:
    def graph_of(number: int, version: str = "") -> Graph:
        def inner() -> int:
            return number

        graph = Graph("closures")
        graph.add(inner, options=StepOptions(version=version))
        return graph

    assert run_graph(graph_of(1), store).step("inner").value == 1
    assert run_graph(graph_of(2), store).step("inner").value == 2
    assert _states(run_graph(graph_of(2), store)) == {"inner": "CACHED"}
    assert _states(run_graph(graph_of(2, "2"), store)) == {"inner": "SUCCEEDED"}
    lock = threading.Lock()
    graph = Graph("lock")
    graph.add(lambda: (lock.locked(), 1), name="look")
    assert "uses 'lock' of the function around it" in str(run_graph(graph, store).step("look").failure)


def uncached(marks: str) -> int:
    _mark(marks, "uncached")
    return 7


def test_a_step_without_cache_runs_every_time_and_its_dependants_only_when_its_value_changes(
    store: Store, marks: Path
) -> None:
    graph = Graph("uncached")
    value = graph.add(uncached, {"marks": str(marks)}, options=StepOptions(cache=False))
    graph.add(add, {"a": value, "b": 1})
    run_graph(graph, store).check()
    assert _states(run_graph(graph, store)) == {"uncached": "SUCCEEDED", "add": "CACHED"}


def test_a_step_that_fails_where_nothing_can_be_written_still_ends(store: Store) -> None:
    (store.home / "runs").write_text("a file where the folder of runs should be")
    graph = Graph("full")
    graph.add(lambda: 1 / 0, name="divide")
    assert isinstance(run_graph(graph, store).step("divide").failure, ZeroDivisionError)


def patient(marks: str, progress: Progress) -> None:
    for index in range(1000):
        progress(index / 1000, "waiting")
        _mark(marks, "patient")
        threading.Event().wait(0.01)


def half(progress: Progress) -> str:
    progress(0.5, "half way")
    return "done"


def test_how_far_a_step_is_stands_with_its_run(store: Store) -> None:
    graph = Graph("progress")
    graph.add(half)
    result = run_graph(graph, store)
    assert read_progress(store.run_dir(result.step("half").run)) == (0.5, "half way")


def test_a_flow_is_stopped_by_whoever_shares_its_store(store: Store, marks: Path) -> None:
    graph = Graph("stopping")
    graph.add(patient, {"marks": str(marks)})

    def listen(event: FlowEvent) -> None:
        if event.state == "RUNNING" and not event.fraction:
            (flow,) = store.runs(kind="flow")
            request_stop(store, flow.id[: -len("abc")])

    assert run_graph(graph, store, on_event=listen).state == "CANCELLED"


def test_a_flow_that_is_stopped_keeps_what_was_finished(store: Store, marks: Path) -> None:
    stop = threading.Event()
    graph = Graph("stopping")
    first = graph.add(add, {"a": 1, "b": 2}, name="first")
    graph.add(patient, {"marks": str(marks)}, after=[first])
    graph.add(add, {"a": 1, "b": 3}, name="last", after=["patient"])

    def listen(event: FlowEvent) -> None:
        if event.step == "patient" and event.fraction > 0.01:
            stop.set()

    result = run_graph(graph, store, on_event=listen, stop=stop)
    assert _states(result) == {"first": "SUCCEEDED", "patient": "CANCELLED", "last": "CANCELLED"}
    assert (store.run(result.run.id).state, store.run(result.step("patient").run).state) == ("CANCELLED",) * 2
    with pytest.raises(Cancelled, match="stopping was stopped"):
        result.check()
    seen = len(_times(marks, "patient"))
    threading.Event().wait(0.05)
    assert len(_times(marks, "patient")) == seen  # its thread has really ended
