"""Graphs in Python and TOML are the same thing, and what is wrong with one is told before anything starts."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.flow.check import check_graph
from mainspring.flow.graph import Graph, from_toml, step
from mainspring.flow.node import Output, StepOptions, read_references, write_references
from mainspring.flow.run import run_graph
from mainspring.spec import NotFound, SamplingParams, SpecError
from mainspring.store import Store

FUNCTIONS = """
from pathlib import Path
from mainspring.flow.graph import step
from mainspring.spec import Progress, SamplingParams
from mainspring.store import Store

@step(version="2", retries=1)
def collect(folder: Path, store: Store, progress: Progress) -> dict:
    progress(0.5, "half")
    return {"count": len(list(folder.iterdir())), "folder": str(folder)}

def train(count: int, sampling: SamplingParams, *, lr: float = 0.1, names: tuple[str, ...] = ()) -> float:
    return count * lr

def report(loss: float, text: str) -> str:
    return f"{text}: {loss}"
"""
FLOW = """
[flow]
name = "handbook"

[params]
docs = "docs"
lr = 0.5

[steps.collect]
call = "flow.py:collect"
with = {folder = "${params.docs}"}
watch = ["${params.docs}", "extra.txt"]

[steps.train]
call = "flow.py:train"
with = {count = "${collect.count}", sampling = {temperature = 0.5}, lr = "${params.lr}", names = ["a", "b"]}
retries = 3
backoff_s = 0.0
cache = false

[steps.report]
call = "flow.py:report"
with = {loss = "${train}", text = "$${loss} of"}
after = ["collect"]
"""


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("a")
    (tmp_path / "extra.txt").write_text("x")
    (tmp_path / "flow.py").write_text(FUNCTIONS)
    (tmp_path / "flow.toml").write_text(FLOW)
    return tmp_path / "flow.toml"


def test_a_toml_flow_runs_with_typed_arguments_and_paths_relative_to_it(flow: Path, store: Store) -> None:
    result = run_graph(from_toml(flow), store).check()
    assert result.step("collect").value == {"count": 1, "folder": str(flow.parent / "docs")}
    assert result.step("report").value == "${loss} of: 0.5"
    assert run_graph(from_toml(flow), store, params={"lr": 2}).step("report").value == "${loss} of: 2.0"
    with pytest.raises(NotFound, match="no step 'x'"):
        result.step("x")


def test_a_graph_written_as_toml_reads_back_equal(flow: Path) -> None:
    graph = from_toml(flow)
    assert graph.nodes["collect"].options == StepOptions(version="2", retries=1)
    assert graph.nodes["train"].options == StepOptions(retries=3, backoff_s=0.0, cache=False)
    again = flow.with_name("again.toml")
    again.write_text(graph.to_toml())
    assert from_toml(again).describe() == graph.describe()
    assert from_toml(again).to_toml() == graph.to_toml()


def double(x: int) -> int:
    return 2 * x


def total(values: list[int], more: dict[str, int], title: str = "") -> int:
    return sum(values) + sum(more.values())


def test_a_graph_made_in_python_and_its_toml_give_the_same_result(tmp_path: Path, store: Store) -> None:
    graph = Graph("sums", base=tmp_path)
    start = graph.param("start", 5)
    two = graph.add(double, {"x": start})
    four = graph.add(double, {"x": two}, name="four", after=[two])
    graph.add(total, {"values": [two, four, 1], "more": {"a b": four, "ü": 2}, "title": 'say "${hi}"\n\x7f'})
    (tmp_path / "sums.toml").write_text(graph.to_toml(), encoding="utf-8")
    read = from_toml(tmp_path / "sums.toml")
    assert read.describe() == graph.describe()
    assert run_graph(graph, store).check().step("total").value == 10 + 20 + 1 + 20 + 2
    assert {s.state for s in run_graph(read, store).check().steps} == {"CACHED"}
    assert run_graph(read, store, params={"start": 1}).step("total").value == 2 + 4 + 1 + 4 + 2


def test_a_decorated_function_becomes_a_node(store: Store) -> None:
    graph = Graph("decorated")
    one = graph.add(double, {"x": 1})

    @graph.node({"x": one})
    @step(cache=False)
    def plus(x: int) -> int:
        return x + 1

    assert plus == Output("plus")
    assert run_graph(graph, store).check().step("plus").value == 3
    with pytest.raises(SpecError, match="cannot be named in a file"):
        graph.to_toml()


plain = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(value=plain)
def test_any_literal_survives_toml(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    graph = Graph("any", base=Path("/"))
    graph.param("value", value)
    graph.add(double, {"x": [value, Output("y", ("k",))]}, name="z")
    path = tmp_path_factory.mktemp("any") / "any.toml"
    path.write_text(graph.to_toml(), encoding="utf-8", newline="\n")
    read = from_toml(path)
    assert read.describe() == graph.describe()
    assert read.params == {"value": value}
    assert read_references(write_references(value), "x") == value


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('name = "handbook"', 'nam = "handbook"', "flow.nam: no such key", "did you mean name?"),
        ('name = "handbook"', 'name = "hand book"', "flow.name: 'hand book' is not a name", "a letter"),
        ("retries = 3", "retrys = 3", "steps.train.retrys: no such key", "did you mean retries?"),
        ("retries = 3", "wiht = {}", "steps.train.wiht: no such key", "did you mean with?"),
        ("retries = 3", 'retries = "3"', "steps.train.retries: Input should be a valid integer, got '3'", ""),
        ("retries = 3", "retries = -1", "must not be negative", ""),
        ("${collect.count}", "${colect.count}", "steps.train: there is no step 'colect'", "did you mean collect?"),
        ("${params.lr}", "${params.l}", "steps.train: there is no parameter 'l'", "did you mean lr?"),
        ("${train}", "a ${train}", "steps.report.with.loss: 'a ${train}' is not a reference", "write"),
        ("${train}", "${train.x}", "with.loss: train returns float, which has no keys", ""),
        ("${train}", "${collect}", "with.loss: collect returns dict, flow.py:report wants float", ""),
        ("loss = ", "los = ", "with.los: flow.py:report has no such argument", "did you mean loss?"),
        ('text = "$${loss} of"', "text = 3", "with.text: Input should be a valid string, got 3", ""),
        (', text = "$${loss} of"', "", "flow.py:report needs the argument 'text'", ""),
        (
            "temperature = 0.5",
            "temprature = 0.5",
            "with.sampling: temprature: no such key",
            "did you mean temperature?",
        ),
        ("temperature = 0.5", "temperature = 5.0", "temperature must be between 0 and 2, got 5.0", ""),
        ('["a", "b"]', '["a", 1]', "with.names: 1: Input should be a valid string", ""),
        ('after = ["collect"]', 'after = ["nobody"]', "there is no step 'nobody'", "known"),
        ('"extra.txt"', '"missing.txt"', "steps.collect.watch: there is no", "paths start at"),
        ("flow.py:collect", "flow.py:colect", "steps.collect.call: flow.py has no 'colect'", "did you mean collect?"),
        ("flow.py:collect", "none.py:collect", "steps.collect.call: cannot read", ""),
        ("flow.py:collect", "no.such.module:f", "steps.collect.call: cannot import", ""),
        ("flow.py:collect", "collect", "is not an entry point", "write it as"),
        ("flow.py:collect", "flow.py:Path.__doc__", "has no", ""),
        ("lr = 0.5", 'lr = "fast"', "with.lr: Input should be a valid number, got 'fast'", ""),
        ("[steps.collect]", "[steps.params]", "steps.params: not a name for a step", "name="),
    ],
)
def test_a_mistake_in_a_flow_is_told_by_its_path_before_anything_starts(
    flow: Path, store: Store, old: str, new: str, message: str, hint: str
) -> None:
    assert FLOW.count(old) >= 1
    flow.write_text(FLOW.replace(old, new, 1))
    with pytest.raises(SpecError) as caught:
        run_graph(from_toml(flow), store)
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert store.runs() == ()


def test_every_mistake_is_told_at_once(flow: Path) -> None:
    flow.write_text(FLOW.replace("${train}", "${tran}").replace("${collect.count}", "x").replace('"extra.txt"', '"no"'))
    with pytest.raises(SpecError) as caught:
        check_graph(from_toml(flow), {"doc": 1})
    for part in ("no step 'tran'", "with.count: ", "there is no /", "params.doc: the flow has no such parameter"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(:\n", "line 1 raises SyntaxError"),
        ("import no_such_thing\n", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDiv"),
    ],
)
def test_a_python_file_that_cannot_be_loaded_is_told(flow: Path, source: str, said: str) -> None:
    flow.with_name("flow.py").write_text(source)
    with pytest.raises(SpecError, match=re.escape(said)):
        from_toml(flow)


def test_steps_that_wait_for_each_other_are_named(flow: Path) -> None:
    flow.write_text(FLOW.replace("retries = 3", 'after = ["report"]'))
    with pytest.raises(SpecError, match=r"wait for each other: (train -> report -> train|report -> train -> report)"):
        check_graph(from_toml(flow), {})


def test_a_file_may_import_its_neighbours(flow: Path, store: Store) -> None:
    flow.with_name("neighbour_of_flow.py").write_text("FACTOR = 3\n")
    flow.with_name("flow.py").write_text(
        "from neighbour_of_flow import FACTOR\ndef f(x: int) -> int:\n    return x * FACTOR\n"
    )
    flow.write_text('[flow]\nname = "n"\n[steps.a]\ncall = "flow.py:f"\nwith = {x = 2}\n')
    assert run_graph(from_toml(flow), store).check().step("a").value == 6


def test_graphs_made_in_python_are_checked_too(store: Store) -> None:
    graph = Graph("g")
    graph.add(double, {"x": 1})
    with pytest.raises(SpecError, match="already"):
        graph.add(double, {"x": 2})
    with pytest.raises(SpecError, match="not a name"):
        graph.add(lambda: 1)
    with pytest.raises(ValueError, match="must not be negative"):
        StepOptions(retries=-1)
    graph.param("p", 1)
    with pytest.raises(SpecError, match="twice"):
        graph.param("p", 1)
    with pytest.raises(SpecError, match=r"params\.p: Input should be a valid integer"):
        run_graph(graph, store, params={"p": "one"})
    with pytest.raises(SpecError, match="has no steps"):
        run_graph(Graph("empty"), store)
    with pytest.raises(SpecError, match="workers"):
        run_graph(graph, store, workers=0)


def test_a_spec_may_be_an_argument_in_python_too(store: Store) -> None:
    def show(sampling: SamplingParams, run: str) -> list[object]:
        return [sampling.temperature, run.startswith("step-")]

    graph = Graph("specs")
    graph.add(show, {"sampling": SamplingParams(temperature=0.25)})
    assert run_graph(graph, store).check().step("show").value == [0.25, True]
