"""A workspace with one of everything that the API shows, behind a real server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import mainspring as ms
from mainspring.api.app import create_app
from mainspring.evaluate.gate import GENERATOR, decide
from mainspring.evaluate.report import publish_report
from mainspring.serve.http import listen
from mainspring.spec import Report, Score, Settings
from mainspring.testing.books import fill_books, write_quotas
from mainspring.workspace import Workspace

PAGES = {
    "join": "Join two or more pathname components, inserting a separator as needed. An absolute component discards "
    "all that came before it, and an empty last part leaves a result that ends with a separator.",
    "copytree": "Recursively copy an entire directory tree rooted at the source to a directory named by the second "
    "argument and return the destination directory. Permissions and times of directories are copied as well.",
    "counter": "A counter is a dictionary for counting hashable objects. Elements are stored as keys and their counts "
    "are stored as values, which may be any integer including zero or negative counts.",
    "wrap": "Wrap the single paragraph in text so that every line is at most width characters long. It returns a list "
    "of output lines without final newlines, and an empty list for an empty text.",
}


def write_pages(folder: Path) -> None:
    folder.mkdir()
    for name, text in PAGES.items():
        (folder / f"{name}.md").write_text(f"# {name}\n\n{text}\n", encoding="utf-8")
    (folder / "stub.md").write_text("Soon.", encoding="utf-8")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Two versions of a dataset, an assistant, a report and a training run with logs."""
    folder = tmp_path_factory.mktemp("api")
    docs = folder / "docs"
    write_pages(docs)
    with Workspace(Settings(home=str(folder / "home"), quotas=str(write_quotas(folder)))) as workspace:
        fill_books(workspace.store)
        workspace.publish_data("handbook", source=str(docs)).result(60)
        (docs / "wrap.md").unlink()
        workspace.publish_data("handbook", source=str(docs)).result(60)
        workspace.publish_app("handbook", corpus="dataset:handbook").result(60)
        score = Score(name="bits_per_byte_minus_ngram", value=-0.5, unit="bits/byte", higher_is_better=False)
        report = Report(subject="dataset:handbook@1", snapshot="", scores=(score,))
        publish_report(workspace.store, report, decision=decide(report, GENERATOR))
        run = workspace.store.start_run("train", "lm", config={"steps": 2})
        workspace.store.set_run_state(run.id, "RUNNING")
        kept = workspace.store.run_dir(run.id)
        (kept / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": 2.0 / n}) + "\n" for n in (1, 2)))
        (kept / "rank-0.log").write_text("one\ntwo\nthree\n")
        workspace.store.set_run_state(run.id, "FAILED", "the disk is full")
        yield workspace


@pytest.fixture(scope="module")
def url(filled: Workspace) -> Iterator[str]:
    with listen(create_app(filled)) as found:
        yield found


@pytest.fixture
def remote(url: str) -> Iterator["ms.remote.RemoteWorkspace"]:
    with ms.connect(url) as found:
        yield found
