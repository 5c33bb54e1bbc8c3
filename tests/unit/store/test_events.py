"""Events, remembered values and identities."""

import multiprocessing.pool
import threading

import pytest

from mainspring.spec import Denied, NotFound, SpecError
from mainspring.store import Store
from mainspring.store.events import event_data


def test_events_are_read_in_order_from_where_a_reader_left_off(store: Store) -> None:
    for index in range(5):
        store.emit("even" if index % 2 == 0 else "odd", f"run{index % 3}", {"index": index})
    everything = store.events()
    assert [event_data(event)["index"] for event in everything] == [0, 1, 2, 3, 4]
    assert store.events(after=everything[1].seq) == everything[2:]
    assert [event_data(event)["index"] for event in store.events(kind="even", subject="run0")] == [0]
    assert store.events(limit=2) == everything[:2]


def test_a_reader_who_follows_the_numbers_misses_nothing_while_others_write(store: Store) -> None:
    done, seen = threading.Event(), []

    def follow() -> None:
        last = 0
        while True:
            finished = done.is_set()
            for event in store.events(after=last):
                seen.append(event.seq)
                last = event.seq
            if finished:
                return

    with multiprocessing.pool.ThreadPool(5) as pool:
        reader = pool.apply_async(follow)
        written = pool.map(lambda index: store.emit("e", str(index), {}).seq, range(120))
        done.set()
        reader.get(60)
    assert seen == sorted(written)
    assert len(set(seen)) == 120


def test_what_is_remembered_can_be_recalled_and_replaced(store: Store) -> None:
    assert store.recall("key") is None
    store.remember("key", {"a": [1, {"b": None}], "ü": "é"})
    assert store.recall("key") == {"a": [1, {"b": None}], "ü": "é"}
    store.remember("key", {})
    assert store.recall("key") == {}


def test_a_token_lets_its_owner_in_until_it_is_revoked(store: Store) -> None:
    token = store.create_token("ann", "editor")
    assert (store.check_token(token).name, store.check_token(token, needs="editor").role) == ("ann", "editor")
    with pytest.raises(Denied, match="needs the role admin"):
        store.check_token(token, needs="admin")
    for wrong in ("", token[:-1], token + "x", "ms_"):
        with pytest.raises(Denied, match="not known"):
            store.check_token(wrong)
    with pytest.raises(SpecError, match="already"):
        store.create_token("ann", "viewer")
    assert [identity.name for identity in store.identities()] == ["ann"]
    store.revoke_token("ann")
    with pytest.raises(Denied):
        store.check_token(token)
    with pytest.raises(NotFound):
        store.revoke_token("ann")
    assert store.check_token(store.create_token("ann", "viewer")).role == "viewer"
    assert [event.kind for event in store.events()] == ["token.created", "token.revoked", "token.created"]


def test_a_token_expires_and_its_name_is_free_again(store: Store) -> None:
    token = store.create_token("ann", "admin", ttl_s=1e-3)
    threading.Event().wait(0.01)
    with pytest.raises(Denied, match="expired"):
        store.check_token(token)
    assert store.identities() == ()
    assert store.check_token(store.create_token("ann", "viewer", ttl_s=60)).role == "viewer"
    for ttl in (0, -1):
        with pytest.raises(SpecError):
            store.create_token("bob", "viewer", ttl_s=ttl)
    with pytest.raises(SpecError, match="not a role"):
        store.create_token("bob", "root")  # type: ignore[arg-type]


def test_no_token_lies_in_the_database(store: Store) -> None:
    token = store.create_token("ann", "admin")
    secret = token.removeprefix("ms_").encode()
    assert not any(secret in path.read_bytes() for path in store.home.rglob("*") if path.is_file())
