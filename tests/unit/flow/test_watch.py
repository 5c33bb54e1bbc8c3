"""Watching reruns what a change made stale, and nothing else."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.flow.graph import Graph
from mainspring.flow.run import FlowResult
from mainspring.flow.watch import watch
from mainspring.spec import SpecError
from mainspring.store import Store

FLOW = """
[flow]
name = "documents"
[params]
docs = "docs"
[steps.words]
call = "words.py:words"
with = {folder = "${params.docs}"}
watch = ["${params.docs}"]
[steps.total]
call = "words.py:total"
with = {words = "${words}"}
[steps.other]
call = "words.py:other"
watch = ["other.txt"]
"""
WORDS = """
from pathlib import Path

def words(folder: Path) -> list[str]:
    return sorted({word for path in folder.glob("*.md") for word in path.read_text().split()})

def total(words: list[str]) -> int:
    return len(words)

def other() -> str:
    return "other"
"""


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("one two")
    (tmp_path / "other.txt").write_text("x")
    (tmp_path / "words.py").write_text(WORDS)
    (tmp_path / "flow.toml").write_text(FLOW)
    return tmp_path / "flow.toml"


def _watched(flow: Path, store: Store, stop: threading.Event) -> Iterator[FlowResult | SpecError]:
    return watch(flow, store, stop=stop, poll_s=0.02)


def _states(result: FlowResult | SpecError) -> dict[str, str]:
    assert isinstance(result, FlowResult), result
    return {step.name: step.state for step in result.steps}


def test_only_what_a_change_made_stale_runs_again(flow: Path, store: Store) -> None:
    stop = threading.Event()
    results = _watched(flow, store, stop)
    assert _states(next(results)) == dict.fromkeys(("words", "total", "other"), "SUCCEEDED")

    (flow.parent / "docs" / "a.md").write_text("one two three")
    assert _states(next(results)) == {"words": "SUCCEEDED", "total": "SUCCEEDED", "other": "CACHED"}

    (flow.parent / "docs" / "b.md").write_text("two two")  # the words stay the same, so the total is fresh
    assert _states(next(results)) == {"words": "SUCCEEDED", "total": "CACHED", "other": "CACHED"}

    (flow.parent / "docs" / "b.md").write_text("four")
    assert _states(next(results)) == {"words": "SUCCEEDED", "total": "SUCCEEDED", "other": "CACHED"}

    (flow.parent / "docs" / "b.md").unlink()  # what was there before is remembered, for every step
    assert _states(next(results)) == {"words": "CACHED", "total": "CACHED", "other": "CACHED"}

    (flow.parent / "docs" / "a.md").unlink()
    assert _states(next(results)) == {"words": "SUCCEEDED", "total": "SUCCEEDED", "other": "CACHED"}

    (flow.parent / "words.py").write_text(WORDS.replace('"other"', '"another"'))
    assert _states(next(results)) == {"words": "CACHED", "total": "CACHED", "other": "SUCCEEDED"}

    flow.write_text(FLOW.replace("with = {words", "wiht = {words"))
    broken = next(results)
    assert isinstance(broken, SpecError)
    assert "steps.total.wiht: no such key" in str(broken)

    flow.write_text(FLOW)
    assert set(_states(next(results)).values()) == {"CACHED"}

    stop.set()
    assert list(results) == []


def test_nothing_changed_means_nothing_runs(flow: Path, store: Store) -> None:
    stop = threading.Event()
    results = _watched(flow, store, stop)
    next(results)
    (flow.parent / "docs" / "a.md").touch()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    assert list(results) == []
    timer.join()


def test_a_graph_that_watches_nothing_cannot_be_watched(store: Store) -> None:
    graph = Graph("blind")
    graph.add(lambda: 1, name="one")
    with pytest.raises(SpecError, match="watches nothing"):
        next(watch(graph, store))
