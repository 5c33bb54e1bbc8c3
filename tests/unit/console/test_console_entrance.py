"""The console's sessions: only ours, only as long as they last, and no way out to another site."""

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocket, WebSocketDisconnect

from mainspring.console import entrance
from mainspring.console.entrance import SESSION_S, Sessions, load_key
from mainspring.spec import Denied, Settings
from mainspring.store import Store


def test_a_session_lasts_as_long_as_it_says() -> None:
    sessions = Sessions(b"key")
    value = sessions.issue("ms_token", now_s=1000.0)
    assert sessions.token(value, now_s=1000.0 + SESSION_S - 1) == "ms_token"
    with pytest.raises(Denied, match="ended"):
        sessions.token(value, now_s=1000.0 + SESSION_S + 1)


@example("\ud800.", 0, "\ud800")
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


def test_a_revoked_token_loses_the_websockets_it_has_open(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "RECHECK_S", 0.05)

    async def tick(socket: WebSocket) -> None:
        await socket.accept()
        with suppress(RuntimeError):  # what is sent after the end goes nowhere
            while True:
                await socket.send_text(socket.scope["state"]["identity"].name)
                await asyncio.sleep(0.01)

    with Store.open(settings) as store:
        sessions = Sessions(b"key")
        app = entrance.Entrance(
            Starlette(routes=[WebSocketRoute("/", tick)]), check=store.check_token, sessions=sessions
        )
        tokens = {name: store.create_token(name, "viewer") for name in ("ada", "eve")}
        cookies = {name: sessions.issue(token, now_s=time.time()) for name, token in tokens.items()}
        with TestClient(app) as client:
            clients = [_connect(client, cookies[name]) for name in ("ada", "eve")]
            with clients[0] as ada, clients[1] as eve:
                assert (ada.receive_text(), eve.receive_text()) == ("ada", "eve")
                store.revoke_token("eve")
                with pytest.raises(WebSocketDisconnect) as told:
                    deque(iter(eve.receive_text, None), maxlen=0)
                assert told.value.code == 1008
                assert ada.receive_text() == "ada"
            with pytest.raises(WebSocketDisconnect), _connect(client, cookies["eve"]):
                pass


def _connect(client: TestClient, cookie: str) -> WebSocketTestSession:
    return client.websocket_connect("/", headers={"cookie": f"{entrance.COOKIE}={cookie}"})


@pytest.mark.parametrize(
    ("path", "is_open"),
    [("/health", True), ("/healthy", False), ("/metrics", True), ("/metrics/x", False), ("/login", True),
     ("/login/x", False), ("/api/v1/runs", True), ("/v1/models", True), ("/docs", False), ("/console/mark.svg", True)],
)  # fmt: skip
def test_only_what_asks_for_a_token_itself_is_outside(path: str, is_open: bool) -> None:
    assert entrance._is_open(path) is is_open
