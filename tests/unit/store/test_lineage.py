"""Lineage is followed across runs, both ways."""

from pathlib import Path

import pytest

from mainspring.spec import NotFound
from mainspring.store import Store


@pytest.fixture
def wheel(store: Store, tmp_path: Path) -> dict[str, str]:
    """dataset -> tokens -> model -> app, and a report on the model; returns the run of each."""
    (tmp_path / "file").write_text("x")
    runs: dict[str, str] = {}
    for kind, inputs in {
        "dataset": [],
        "tokens": ["dataset:x"],
        "model": ["tokens:x", "dataset:x"],
        "report": ["model:x"],
        "app": ["model:x"],
    }.items():
        runs[kind] = store.start_run(kind, "x", config={}, inputs=inputs).id
        store.publish(kind, "x", tmp_path / "file", run=runs[kind])
    return runs


def _refs(store: Store, start: str, direction: str) -> list[str]:
    return [a.ref for a in store.lineage(start, direction).artifacts]  # type: ignore[arg-type]


def test_up_leads_to_the_sources_and_down_to_what_came_of_it(store: Store, wheel: dict[str, str]) -> None:
    assert _refs(store, "model:x", "up") == ["dataset:x@1", "model:x@1", "tokens:x@1"]
    assert _refs(store, "model:x@1", "down") == ["app:x@1", "model:x@1", "report:x@1"]
    assert _refs(store, "app:x", "down") == ["app:x@1"]
    assert len(_refs(store, "tokens:x", "both")) == 5
    assert _refs(store, wheel["tokens"], "up") == ["dataset:x@1"]
    assert _refs(store, wheel["report"], "down") == ["report:x@1"]


def test_edges_name_the_runs_between(store: Store, wheel: dict[str, str]) -> None:
    found = store.lineage("tokens:x", "up")
    assert [(e.run, e.role, e.ref) for e in found.edges] == sorted(
        [
            (wheel["dataset"], "output", "dataset:x@1"),
            (wheel["tokens"], "input", "dataset:x@1"),
            (wheel["tokens"], "output", "tokens:x@1"),
        ]
    )
    assert {run.id for run in found.runs} == {wheel["dataset"], wheel["tokens"]}


def test_inputs_without_a_run_are_not_lost(store: Store, wheel: dict[str, str], tmp_path: Path) -> None:
    made = store.publish("index", "x", tmp_path / "file", inputs=["dataset:x"])
    assert store.run(made.run).state == "SUCCEEDED"
    assert _refs(store, "index:x", "up") == ["dataset:x@1", "index:x@1"]


def test_a_version_made_twice_has_both_makers(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    makers = [store.start_run("train", "x", config={}).id for _ in range(2)]
    first, again = (store.publish("model", "x", tmp_path / "file", run=run) for run in makers)
    assert first == again
    assert {edge.run for edge in store.lineage("model:x").edges} == set(makers)


def test_an_input_read_later_is_recorded_once(store: Store, wheel: dict[str, str]) -> None:
    for _ in range(2):
        store.record_input(wheel["app"], "dataset:x")
    edges = [e for e in store.lineage(wheel["app"], "up").edges if e.run == wheel["app"]]
    assert sorted(edge.ref for edge in edges) == ["dataset:x@1", "model:x@1"]
    with pytest.raises(NotFound):
        store.record_input(wheel["app"], "dataset:y")
    with pytest.raises(NotFound):
        store.lineage("no-such-run")
