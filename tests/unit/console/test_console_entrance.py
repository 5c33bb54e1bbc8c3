"""The console's sessions: only ours, only as long as they last, and no way out to another site."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.console import entrance
from mainspring.console.entrance import SESSION_S, Sessions, load_key
from mainspring.spec import Denied


def test_a_session_lasts_as_long_as_it_says() -> None:
    sessions = Sessions(b"key")
    value = sessions.issue("ms_token", now_s=1000.0)
    assert sessions.token(value, now_s=1000.0 + SESSION_S - 1) == "ms_token"
    with pytest.raises(Denied, match="ended"):
        sessions.token(value, now_s=1000.0 + SESSION_S + 1)


@given(st.text(), st.integers(0, 200), st.characters())
def test_nothing_but_our_own_signature_is_taken(text: str, place: int, other: str) -> None:
    sessions = Sessions(b"key")
    value = sessions.issue("ms_token", now_s=0.0)
    spot = place % len(value)
    forged = value[:spot] + other + value[spot + 1 :]
    for wrong in (text, forged, Sessions(b"another").issue("ms_token", now_s=0.0)):
        if wrong != value:
            with pytest.raises(Denied):
                sessions.token(wrong, now_s=0.0)


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    key = load_key(tmp_path)
    assert len(key) == 32
    assert load_key(tmp_path) == key
    assert (tmp_path / entrance.KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_processes_that_start_at_once_share_one_whole_key(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def load(_: int) -> bytes:
        start.wait()
        return load_key(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(load, range(8)))
    assert [len(key) for key in keys] == [32]
    assert not list(tmp_path.glob(".console.key*"))
