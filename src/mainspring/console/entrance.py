"""Who may see the console: anybody on loopback, else whoever has a token of the workspace.

The token is kept in a cookie, signed with a key of this workspace together with the moment it ends, so that it cannot
be made longer or swapped by a page that can set cookies; it is checked against the store at every request, and every
few seconds while a websocket is open, so that a revoked token loses the pages it has too. Everything that is not on
the short list below is behind it: pages, scripts and websocket.
"""

import asyncio
import base64
import hmac
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from html import escape
from pathlib import Path
from urllib.parse import parse_qs, quote

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mainspring.spec import Denied, Identity, MainspringError

Check = Callable[..., Identity]
COOKIE = "mainspring_session"
SESSION_S = 7 * 86400
KEY_FILE = "console.key"
OPEN = frozenset({"/health", "/metrics", "/version", "/login"})
OPEN_UNDER = ("/api/", "/v1/", "/console/")
"""What answers without a session: what asks for a bearer token itself, and what is the same for everybody."""
RECHECK_S = 2.0
LONGEST_FORM = 4096
LOCAL = Identity(name="local", role="admin")


class Sessions:
    """Signs what a visitor's cookie holds, and reads it back."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, token: str, *, now_s: float) -> str:
        """A cookie's value that holds `token` until `SESSION_S` from now."""
        body = base64.urlsafe_b64encode(f"{int(now_s + SESSION_S)}:{token}".encode()).decode()
        return f"{body}.{self._sign(body)}"

    def token(self, value: str, *, now_s: float) -> str:
        """The token in a cookie of ours; `Denied` when it is not ours or has ended."""
        body, _, signature = value.rpartition(".")
        if not body or not hmac.compare_digest(_bytes(signature), self._sign(body).encode()):
            raise Denied("no session", hint="sign in with a token")
        until, _, token = base64.urlsafe_b64decode(body).decode().partition(":")
        if int(until) < now_s:
            raise Denied("the session has ended", hint="sign in again")
        return token

    def _sign(self, body: str) -> str:
        return hmac.new(self._key, _bytes(body), sha256).hexdigest()


def _bytes(text: str) -> bytes:
    """Of any text, also of one that no encoding has."""
    return text.encode("utf-8", "surrogatepass")


def load_key(home: Path) -> bytes:
    """The workspace's signing key, made on first use and readable by its owner alone."""
    path = home / KEY_FILE
    if not path.exists():
        partial = home / f".{KEY_FILE}.{secrets.token_hex(6)}"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):  # another process was first, and its key is whole
            os.link(partial, path)
        partial.unlink()
    return path.read_bytes()


class Entrance:
    """Puts the visitor's `Identity` into the request's state, or sends them to the login page."""

    def __init__(self, app: ASGIApp, *, check: Check | None, sessions: Sessions) -> None:
        self._app, self._check, self._sessions = app, check, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, redirect it, or refuse the socket."""
        if scope["type"] not in ("http", "websocket") or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            who = await asyncio.to_thread(self._who, HTTPConnection(scope))
        except Denied:
            await _refuse(scope, receive, send)
            return
        scope.setdefault("state", {})["identity"] = who
        if self._check is None or scope["type"] == "http":
            await self._app(scope, receive, send)
        else:
            await self._carry(scope, receive, send)

    async def _carry(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry a websocket for as long as its visitor may stay."""
        ended = False

        async def send_on(message: Message) -> None:
            if not ended:
                await send(message)

        async def watch() -> None:
            nonlocal ended
            while not ended:
                await asyncio.sleep(RECHECK_S)
                try:
                    await asyncio.to_thread(self._who, HTTPConnection(scope))
                except MainspringError:  # `Denied`; and a store that does not answer lets nobody stay either
                    ended = True
                    await send({"type": "websocket.close", "code": 1008, "reason": "sign in"})

        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch())
            await self._app(scope, receive, send_on)
            watching.cancel()

    def _who(self, connection: HTTPConnection) -> Identity:
        if self._check is None:
            return LOCAL
        return self._check(self._sessions.token(connection.cookies.get(COOKIE, ""), now_s=time.time()))


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_UNDER)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": "sign in"})
        return
    to = quote(scope["path"] + (f"?{scope['query_string'].decode()}" if scope["query_string"] else ""))
    await RedirectResponse(f"/login?to={to}", 303)(scope, receive, send)


def add_to(app: FastAPI, *, check: Check | None, home: Path) -> None:
    """Guard `app`, and add the page that takes a token."""
    sessions = Sessions(load_key(home) if check else secrets.token_bytes(32))
    app.add_middleware(Entrance, check=check, sessions=sessions)

    @app.get("/login", include_in_schema=False)
    def login(to: str = "/") -> HTMLResponse:
        return _login_page(to)

    @app.post("/login", include_in_schema=False)
    async def enter(request: Request) -> Response:
        form = parse_qs((await _read_form(request)).decode("utf-8", "replace"))
        token, to = form.get("token", [""])[0].strip(), form.get("to", ["/"])[0]
        try:
            if check:
                await asyncio.to_thread(check, token)
        except Denied as error:
            return _login_page(to, told=f"{error}.", status=401)
        response = RedirectResponse(_local(to), 303)
        cookie = sessions.issue(token, now_s=time.time())
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, cookie, max_age=SESSION_S, httponly=True, samesite="lax", secure=secure)
        return response

    @app.post("/logout", include_in_schema=False)
    def leave() -> RedirectResponse:
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE)
        return response


async def _read_form(request: Request) -> bytes:
    """The body as far as a form of ours is long: nobody here has shown who they are yet."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_FORM:
            break
    return bytes(body[:LONGEST_FORM])


def _local(to: str) -> str:
    """A path of this server: where a login leads must not be somebody else's page."""
    return to if to.startswith("/") and not to.startswith(("//", "/\\")) else "/"


def _login_page(to: str, *, told: str = "", status: int = 200) -> HTMLResponse:
    alert = f'<div class="alert" role="alert">{escape(told)}</div>' if told else ""
    return HTMLResponse(
        f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sign in - Mainspring</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="/console/mark.svg">
<link rel="stylesheet" href="/console/console.css"><script src="/console/theme.js"></script></head>
<body class="gate-page"><form class="panel" method="post" action="/login">
<div class="brand"><img src="/console/mark.svg" alt="">Mainspring</div>{alert}
<label for="token">Access token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<input type="hidden" name="to" value="{escape(_local(to))}">
<button class="button primary">Sign in</button>
<p class="note">An admin makes one with <code>mainspring token create NAME</code>.</p></form></body></html>""",
        status_code=status,
    )
