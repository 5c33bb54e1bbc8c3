"""Opening, migrating and sharing the database."""

import contextlib
import multiprocessing.pool
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from mainspring.spec import Settings, SpecError, Unavailable
from mainspring.store import Store
from mainspring.store.database import HEAD, metadata
from mainspring.store.migrate import newest


def test_the_migrations_end_at_the_tables_the_code_declares(store: Store) -> None:
    with store.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert newest() == HEAD


def test_first_opens_at_the_same_moment_make_one_schema(settings: Settings) -> None:
    gate = threading.Barrier(6)

    def first_open(index: int) -> int:
        gate.wait()
        with Store.open(settings) as store:
            return store.emit("opened", str(index), {}).seq

    with multiprocessing.pool.ThreadPool(6) as pool:
        numbers = pool.map(first_open, range(6))
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("table", ["events", "artifacts", "files", "edges"])
@pytest.mark.parametrize("change", ["update {} set {}", "delete from {}"])
def test_history_cannot_be_rewritten_even_by_hand(store: Store, folder: Path, table: str, change: str) -> None:
    made = store.start_run("train", "x", config={})
    store.publish("model", "x", folder, run=made.id)
    column = {"events": "kind", "artifacts": "name", "files": "path", "edges": "ref"}[table]
    with pytest.raises(Unavailable, match=f"{table} is append-only"), store.transaction() as connection:
        connection.execute(text(change.format(table, f"{column} = 'other'")))
    assert store.resolve("model:x@1").run == made.id


def _emit_and_fail(store: Store) -> None:
    with store.transaction():
        store.emit("undone", "b", {})
        raise ZeroDivisionError


def _swallow(store: Store) -> None:
    with store.transaction():
        store.emit("undone", "a", {})
        with contextlib.suppress(ZeroDivisionError):
            _emit_and_fail(store)


def test_a_transaction_is_kept_or_undone_as_a_whole(store: Store) -> None:
    with store.transaction():
        store.emit("kept", "a", {})
        assert store.events()[0].subject == "a"
        with store.transaction():
            store.emit("kept", "b", {})
    with pytest.raises(ZeroDivisionError):
        _emit_and_fail(store)
    with pytest.raises(RuntimeError, match="swallowed"):
        _swallow(store)
    store.emit("kept", "c", {})
    assert [(event.kind, event.subject) for event in store.events()] == [("kept", s) for s in "abc"]


def test_workspaces_on_one_database_do_not_see_each_other(settings: Settings, folder: Path) -> None:
    other = Settings(home=settings.home, database_url=settings.database_url, workspace="other")
    with Store.open(settings) as mine, Store.open(other) as theirs:
        mine.publish("model", "x", folder)
        mine.remember("k", {"v": 1})
        token = mine.create_token("ann", "admin")
        run = mine.start_run("train", "x", config={})
        assert (theirs.artifacts(), theirs.events(), theirs.runs(), theirs.recall("k")) == ((), (), (), None)
        with pytest.raises(SpecError, match="no run"):
            theirs.run(run.id)
        with pytest.raises(SpecError, match="not known"):
            theirs.check_token(token)


@pytest.mark.parametrize(
    ("url", "kind", "said"),
    [
        ("what is this", SpecError, "cannot understand"),
        ("oracle://x", SpecError, "not supported"),
        ("sqlite://", SpecError, "cannot be shared"),
        ("postgresql://nobody@/none?host=/nonexistent", Unavailable, "says"),
    ],
)
def test_a_wrong_database_url_is_explained(tmp_path: Path, url: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        Store.open(Settings(home=str(tmp_path), database_url=url))
    assert caught.value.hint  # type: ignore[attr-defined]


def test_a_file_that_is_no_database_and_a_newer_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mainspring.db").write_text("these are my notes, not a database; " * 100)
    with pytest.raises(Unavailable, match="not a database"):
        Store.open(Settings(home=str(tmp_path)))
    newer = Settings(home=str(tmp_path / "newer"))
    with Store.open(newer) as store, store.transaction() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(SpecError, match="9999"):
        Store.open(newer)


def test_a_home_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot make") as caught:
        Store.open(Settings(home=str(tmp_path / "file" / "home")))
    assert "MAINSPRING_HOME" in caught.value.hint


def test_a_home_with_odd_characters_works(tmp_path: Path, folder: Path) -> None:
    home = tmp_path / "50% off, ünïcode & spaces?#"
    with Store.open(Settings(home=str(home))) as store:
        store.publish("model", "x", folder)
        assert (store.fetch("model:x") / "a.txt").read_text() == "alpha"
    assert (home / "mainspring.db").is_file()
