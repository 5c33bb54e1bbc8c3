"""A recorded piece of work: its states, its progress, and stopping it from this process or another."""

import json
import subprocess
import sys
import threading
import tracemalloc
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.flow import execution
from mainspring.flow.handle import Run
from mainspring.spec import Cancelled, Failed, Settings, SpecError, Unavailable
from mainspring.store import Store


def wait_for_ever(work: execution.Execution) -> None:
    while True:
        work.progress(0.5, "waiting")
        threading.Event().wait(0.02)


def test_work_is_recorded_from_start_to_end_and_hands_out_its_value(store: Store) -> None:
    def body(work: execution.Execution) -> int:
        work.progress(0.5, "half way")
        return 42

    work = execution.start(store, body, kind="demo", name="x", config={"seed": 7})
    assert work.result(10) == 42
    record = store.run(work.id)
    assert (record.state, record.seed) == ("SUCCEEDED", 7)
    assert execution.read_progress(store.run_dir(work.id)) == (0.5, "half way")


def test_a_failure_is_recorded_logged_and_raised_with_its_cause(store: Store) -> None:
    def body(work: execution.Execution) -> None:
        raise ZeroDivisionError("one by zero")

    work = execution.start(store, body, kind="demo", name="x", config={})
    with pytest.raises(Failed, match="ZeroDivisionError: one by zero"):
        work.result(10)
    assert store.run(work.id).state == "FAILED"
    assert "ZeroDivisionError" in execution.read_logs(store.run_dir(work.id), None)


def test_an_error_of_our_tree_keeps_its_type(store: Store) -> None:
    def body(work: execution.Execution) -> None:
        raise SpecError("too small", hint="make it larger")

    work = execution.start(store, body, kind="demo", name="x", config={})
    with pytest.raises(SpecError, match="too small"):
        work.result(10)


def test_a_run_can_be_stopped_by_its_owner(store: Store) -> None:
    work = execution.start(store, wait_for_ever, kind="demo", name="x", config={})
    with pytest.raises(Unavailable, match="still running"):
        work.result(0.05)
    work.stop()
    with pytest.raises(Cancelled):
        work.result(10)
    assert store.run(work.id).state == "CANCELLED"


def test_a_run_can_be_stopped_from_another_process(store: Store, settings: Settings) -> None:
    work = execution.start(store, wait_for_ever, kind="demo", name="x", config={})
    script = (
        "from mainspring.flow.execution import request_stop\nfrom mainspring.store import Store\n"
        f"from mainspring.spec import load_settings\nrequest_stop(Store.open(load_settings()), {work.id!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(Cancelled):
        work.result(10)


def test_a_body_that_fails_because_it_was_stopped_was_stopped(store: Store) -> None:
    def body(work: execution.Execution) -> None:
        try:
            wait_for_ever(work)
        except Cancelled as error:
            raise Failed("the gang was cancelled") from error

    work = execution.start(store, body, kind="demo", name="x", config={})
    work.stop()
    with pytest.raises(Failed):
        work.result(10)
    assert store.run(work.id).state == "CANCELLED"


def test_a_half_written_metrics_line_waits_for_the_next_look(store: Store) -> None:
    record = store.start_run("demo", "x", config={})
    folder = store.run_dir(record.id)
    (folder / "metrics.jsonl").write_text('{"step": 1, "joules": 2.5}\n{"step": 2, "jo')
    assert execution.read_metrics(folder) == ({"step": 1, "joules": 2.5},)


def test_the_log_of_a_rank_that_does_not_exist_names_those_that_do(store: Store) -> None:
    folder = store.run_dir(store.start_run("demo", "x", config={}).id)
    (folder / "rank-0.log").write_text("hello")
    assert execution.read_logs(folder, 0) == "hello"
    with pytest.raises(SpecError) as caught:
        execution.read_logs(folder, 3)
    assert "0" in caught.value.hint


def test_the_result_of_a_run_elsewhere_is_what_it_published_last(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    other = store.publish("model", "other", tmp_path, run=store.start_run("train", "y", config={}).id)
    run = store.start_run("train", "x", config={}, inputs=(other.ref,)).id
    store.set_run_state(run, "RUNNING")
    store.publish("tokens", "x", tmp_path, run=run)
    model = store.publish("model", "x", tmp_path, run=run)
    with pytest.raises(Unavailable, match="still RUNNING"):
        Run(store, run).result(0.0)
    store.set_run_state(run, "SUCCEEDED")
    assert Run(store, run).result() == model
    assert Run(store, run).ref == model.ref


def test_the_result_of_a_failed_run_elsewhere_is_its_reason(store: Store) -> None:
    run = store.start_run("train", "x", config={}).id
    store.set_run_state(run, "FAILED", "rank 1: no space")
    with pytest.raises(Failed, match="rank 1: no space"):
        Run(store, run).result()


def test_of_a_log_too_long_to_hold_the_end_is_read_and_the_rest_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "LOG_BYTES", 20)
    path = tmp_path / "rank-0.log"
    path.write_text("".join(f"line {number}\n" for number in range(10)))
    assert execution.read_logs(tmp_path, 0) == f"... the first 50 bytes are in {path}\nine 7\nline 8\nline 9\n"
    assert execution.read_logs(tmp_path, 0, tail=3) == "line 7\nline 8\nline 9\n"


def test_a_long_series_is_read_at_a_few_places_and_always_at_its_end(tmp_path: Path) -> None:
    with (tmp_path / execution.METRICS_FILE).open("w") as file:
        for step in range(1, 200_001):
            file.write(json.dumps({"step": step, "loss": 1 / step, "y": 10 ** (step % 90)}) + "\n")
        file.write('{"step": 200001, "lo')
    whole = execution.read_metrics(tmp_path)
    assert [row["step"] for row in whole] == list(range(1, 200_001))
    tracemalloc.start()
    spread = [row["step"] for row in execution.read_metrics(tmp_path, most=500)]
    assert tracemalloc.get_traced_memory()[1] < 4 * execution.TAIL_BYTES
    tracemalloc.stop()
    assert len(spread) == 500
    assert max(b - a for a, b in pairwise(spread)) < 3 * 200_000 / 500
    assert spread == sorted(set(spread))
    assert [row["step"] for row in execution.read_metrics(tmp_path, most=1)] == [200_000]


@given(st.integers(0, 60), st.integers(0, 80), st.sampled_from([1, 300, 1 << 20]))
def test_at_most_so_many_rows_are_read_each_once_and_in_order(rows: int, most: int, whole: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(execution, "WHOLE_BYTES", whole)
        lines = "".join(json.dumps({"step": step, "x": 10**step}) + "\n" for step in range(rows))
        Path(folder, execution.METRICS_FILE).write_text(lines)
        steps = [row["step"] for row in execution.read_metrics(Path(folder), most=most)]
    assert len(steps) <= most
    assert steps == sorted(set(steps))
    assert steps[-1:] == ([rows - 1] if rows and most else [])
