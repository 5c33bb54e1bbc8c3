"""The chain from reading to a published snapshot: versions, diffs, corrections, and accounts that add up."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mainspring.data import snapshot as snapshots
from mainspring.data.dataset import Dataset
from mainspring.data.documents import make_document, to_table
from mainspring.data.feedback import Correction, feedback_rows, feedback_table
from mainspring.spec import CurationReport, Feedback, NotFound, Settings, SpecError, Trace
from mainspring.store import Store
from mainspring.store.parse import to_dict

PROSE = "This is the text of document number {}, which is long enough to be kept by every rule there is.\n"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in {
        "a.md": "# Alpha\n\nHow to start the engine in the morning when it is cold outside and damp.\n",
        "b.md": "# Beta\n\nHow to stop the engine in the evening, and what to check before leaving.\n",
        "copy.md": "# Alpha\n\nHow to start the engine in the morning when it is cold outside and damp.\n",
        "short.md": "# x\n",
        "empty.md": "",
    }.items():
        (folder / name).write_text(text)
    return folder


def table_of(*numbers: int):
    return to_table(make_document(f"doc{n}", PROSE.format(n), title=str(n), kind="text") for n in numbers)


def report_of(rows: int) -> CurationReport:
    return CurationReport(read=rows, kept=rows, read_bytes=0, kept_bytes=0, rules=())


def numbers_in(store: Store, ref: str) -> list[int]:
    return sorted(int(document.title) for document in snapshots.texts(store, ref))


def test_the_whole_chain_keeps_accounts_that_add_up(store: Store, docs: Path) -> None:
    artifact = Dataset(store, "handbook").read(str(docs)).clean().dedup().publish()
    assert artifact.ref == "dataset:handbook@1"
    report = snapshots.report(store, artifact.ref)
    assert (report.read, report.kept) == (4, 2)
    assert report.read == report.kept + sum(rule.dropped for rule in report.rules)
    assert {rule.rule: rule.dropped for rule in report.rules if rule.dropped} == {
        "few_letters": 1,
        "exact_duplicates": 1,
    }
    assert [item.source for item in report.skipped] == ["docs/empty.md"]
    assert report.kept_bytes < report.read_bytes


def test_a_chain_is_lazy_and_runs_once(store: Store, docs: Path) -> None:
    chain = Dataset(store, "handbook").read(str(docs / "a.md"))
    missing = Dataset(store, "handbook").read("no/such/folder").clean()
    with pytest.raises(NotFound):
        missing.publish()
    assert chain.frame.count_rows() == 1
    (docs / "a.md").unlink()
    assert chain.publish().ref == "dataset:handbook@1"


def test_the_frame_is_daft_and_of_a_published_dataset_lazy(store: Store, docs: Path) -> None:
    import daft

    chain = Dataset(store, "handbook").read(str(docs))
    assert isinstance(chain.frame, daft.DataFrame)
    chain.publish()
    frame = Dataset(store, "handbook").frame.where(daft.col("title") == "Beta").select("source")
    assert frame.to_pydict() == {"source": ["docs/b.md"]}


def test_a_file_read_twice_is_one_document(store: Store, docs: Path) -> None:
    chain = Dataset(store, "handbook").read(str(docs / "a.md"), str(docs / "a.md"))
    assert chain.frame.count_rows() == 1
    assert [(rule.rule, rule.dropped) for rule in chain.report.rules] == [("read_twice", 1)]
    assert chain.report.read == 2


def test_older_versions_stay_readable_and_differences_are_named(store: Store, docs: Path) -> None:
    Dataset(store, "handbook").read(str(docs)).publish()
    before = {document.source: document.id for document in snapshots.texts(store, "dataset:handbook@1")}
    (docs / "a.md").write_text("# Alpha\n\nAnother text about how the engine is started.\n")
    (docs / "b.md").unlink()
    (docs / "new.md").write_text("# New\n\nA document that was not there before.\n")
    second = Dataset(store, "handbook").read(str(docs))
    assert second.publish().ref == "dataset:handbook@2"
    difference = second.diff(1, 2)
    assert difference.added == ("docs/new.md",)
    assert difference.removed == ("docs/b.md",)
    assert difference.changed == ("docs/a.md",)
    assert second.at(1).count_rows() == 4
    assert {document.id for document in snapshots.texts(store, "dataset:handbook@1")} == set(before.values())


def test_publishing_the_same_documents_again_is_the_same_version(store: Store, docs: Path) -> None:
    first = Dataset(store, "handbook").read(str(docs)).publish()
    again = Dataset(store, "handbook").read(str(docs)).publish()
    assert again.ref == first.ref
    assert Dataset(store, "handbook").snapshot().version == 1


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sets(st.integers(0, 30), min_size=1), min_size=1, max_size=5), st.uuids())
def test_every_version_holds_exactly_what_was_published(store: Store, contents: list[set[int]], name: object) -> None:
    published = [
        snapshots.publish(store, f"d{name}", table_of(*sorted(numbers)), report_of(len(numbers))).ref
        for numbers in contents
    ]
    for ref, numbers in zip(published, contents, strict=True):
        assert numbers_in(store, ref) == sorted(numbers)
        assert snapshots.load_snapshot(store, ref).rows == len(numbers)


def test_order_of_texts_depends_on_the_documents_alone(store: Store) -> None:
    snapshots.publish(store, "one", table_of(1, 2, 3, 4), report_of(4))
    snapshots.publish(store, "two", table_of(4, 9), report_of(2))
    snapshots.publish(store, "two", table_of(3, 1, 4, 2), report_of(4))
    assert list(snapshots.texts(store, "dataset:one")) == list(snapshots.texts(store, "dataset:two"))
    assert snapshots.load_snapshot(store, "dataset:one").digest == snapshots.load_snapshot(store, "dataset:two").digest


def test_an_empty_dataset_is_refused_with_the_rule_to_blame(store: Store, docs: Path) -> None:
    with pytest.raises(SpecError) as caught:
        Dataset(store, "handbook").read(str(docs)).clean(rules={"few_letters": 10_000}).publish()
    assert "few_letters 4" in caught.value.hint
    assert store.artifacts(kind="dataset") == ()


def test_a_dataset_that_was_never_published_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        _ = Dataset(store, "nothing").frame


def test_rows_that_were_deleted_from_disk_are_reported_as_gone(store: Store, docs: Path) -> None:
    artifact = Dataset(store, "handbook").read(str(docs)).publish()
    uri = Path(Dataset(store, "handbook").snapshot().uri)
    uri.rename(uri.with_name("elsewhere"))
    with pytest.raises(NotFound, match="the rows of dataset:handbook@1 are gone"):
        list(snapshots.texts(store, artifact.ref))


def test_an_artifact_of_another_kind_is_no_dataset(store: Store, docs: Path) -> None:
    store.publish("model", "m", docs)
    with pytest.raises(SpecError, match="is of kind model, not a dataset"):
        snapshots.load_snapshot(store, "model:m")


def test_corrections_add_replace_and_remove(store: Store, docs: Path) -> None:
    Dataset(store, "handbook").read(str(docs)).dedup().publish()
    chain = Dataset(store, "handbook").correct(
        [
            Correction(source="docs/a.md", text="# Alpha\n\nTurn the key twice.\n", title="Alpha"),
            Correction(source="docs/b.md", text=""),
            Correction(source="wiki/new", text="Something nobody had written down.\n"),
        ]
    )
    assert chain.publish().ref == "dataset:handbook@2"
    found = {document.source: document.text for document in snapshots.texts(store, "dataset:handbook@2")}
    assert found["docs/a.md"] == "# Alpha\n\nTurn the key twice.\n"
    assert "docs/b.md" not in found
    assert found["wiki/new"] == "Something nobody had written down.\n"
    report = chain.report
    assert report.read == report.kept + sum(rule.dropped for rule in report.rules)


def record(store: Store, trace: str, correction: str, *, age_s: float = 0.0, app: str = "rag") -> None:
    """One answer and what somebody thought of it, as an application writes them."""
    store.emit("trace", app, to_dict(Trace(
        id=trace, app=app, question=f"Why {trace}?", answer="Because.", mode="extracted", index="index:i@1",
        snapshot="dataset:handbook@1", model="", chunks=("c1",), scores=(1.0,), prompt="", seconds=0.1,
    )))  # fmt: skip
    store.emit("feedback", app, to_dict(Feedback(
        trace=trace, thumb="down", correction=correction, comment="", chunks=("c1",),
        snapshot="dataset:handbook@1", author="ada", time_s=time.time() - age_s,
    )))  # fmt: skip


def test_feedback_closes_the_loop_on_data(store: Store, docs: Path) -> None:
    Dataset(store, "handbook").read(str(docs)).publish()
    record(store, "t1", "Because the spring is wound.")
    record(store, "t2", "")
    record(store, "t3", "An old opinion.", age_s=10 * 86400)
    rows = feedback_rows(store, "rag", days=7)
    assert [row.trace for row in rows] == ["t1", "t2"]
    assert feedback_rows(store, "other") == ()
    table = feedback_table(store, "rag")
    assert table["question"].to_pylist() == ["Why t1?", "Why t2?"]
    Dataset(store, "handbook").correct(rows).publish()
    added = Dataset(store, "handbook").diff(1, 2).added
    [document] = [d for d in snapshots.texts(store, "dataset:handbook") if d.source in added]
    assert document.source == "feedback:t1"
    assert document.text == "# Why t1?\n\nBecause the spring is wound.\n"


def test_a_second_correction_of_an_answer_replaces_the_first(store: Store, docs: Path) -> None:
    Dataset(store, "handbook").read(str(docs)).publish()
    record(store, "t1", "First try.")
    Dataset(store, "handbook").correct(feedback_rows(store)).publish()
    record(store, "t1", "Second try.")
    Dataset(store, "handbook").correct(feedback_rows(store)).publish()
    texts = [d.text for d in snapshots.texts(store, "dataset:handbook") if d.source.startswith("feedback:")]
    assert texts == ["# Why t1?\n\nSecond try.\n"]


def publish_many(home: str, first: int, rounds: int) -> None:
    with Store.open(Settings(home=home)) as store:
        for number in range(rounds):
            numbers = range(first + number, first + number + 20)
            artifact = snapshots.publish(store, "shared", table_of(*numbers), report_of(20))
            assert numbers_in(store, artifact.ref) == list(numbers)


@pytest.mark.slow
def test_processes_that_publish_at_once_each_get_what_they_published(settings: Settings) -> None:
    with Store.open(settings) as store:
        context = multiprocessing.get_context("spawn")
        writers = [context.Process(target=publish_many, args=(settings.home, n * 1000, 6)) for n in range(3)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(100)
        assert [writer.exitcode for writer in writers] == [0, 0, 0]
        artifacts = store.artifacts(kind="dataset", name="shared")
        assert len(artifacts) == 18
        for artifact in artifacts:
            numbers = numbers_in(store, artifact.ref)
            assert numbers == list(range(numbers[0], numbers[0] + 20))


PUBLISHER = """
import sys
from mainspring.data import snapshot as snapshots
from mainspring.data.documents import make_document, to_table
from mainspring.spec import CurationReport, Settings
from mainspring.store import Store
with Store.open(Settings(home=sys.argv[1])) as store:
    print("ready", flush=True)
    for n in range(10_000):
        documents = [make_document(f"doc{i}", f"{n} " * 2000, title=str(n), kind="text") for i in range(200)]
        report = CurationReport(read=200, kept=200, read_bytes=0, kept_bytes=0, rules=())
        snapshots.publish(store, "d", to_table(documents), report)
        print(n, flush=True)
"""


@pytest.mark.slow
def test_a_publisher_killed_at_any_moment_leaves_whole_versions_only(settings: Settings, store: Store) -> None:
    for delay in (0.0, 0.011, 0.023, 0.05):
        child = subprocess.Popen([sys.executable, "-c", PUBLISHER, settings.home], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.stdout.readline()  # one publish is through; the kill lands somewhere in a later one
        threading.Event().wait(delay)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        for artifact in store.artifacts(kind="dataset", name="d"):
            documents = list(snapshots.texts(store, artifact.ref))
            assert len(documents) == 200
            assert len({document.title for document in documents}) == 1
            assert (
                snapshots.ids_digest(document.id for document in documents)
                == snapshots.load_snapshot(store, artifact.ref).digest
            )
    after = snapshots.publish(store, "d", table_of(1, 2, 3), report_of(3))
    assert numbers_in(store, after.ref) == [1, 2, 3]
