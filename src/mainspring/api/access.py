"""Who may do what: roles by token, and from a browser only pages that this server itself has served.

A browser sends requests to 127.0.0.1 on behalf of any page it shows. Without a token the only thing that tells such a
page from ours is where it came from, so a foreign `Origin` and a foreign `Host` (DNS rebinding) are refused.
"""

from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import HTTPException, Query, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mainspring.spec import Denied, Identity, Role
from mainspring.workspace import LOOPBACK

CheckToken = Callable[..., Identity]
BODY_BYTES = 16 << 20
MOST = 10_000
Count = Annotated[int, Query(ge=0, le=MOST)]
"""How many of something to list."""
Position = Annotated[int, Query(ge=0, lt=1 << 53)]
"""Where to go on in a list."""


class Access:
    """Makes the dependency that lets a request pass only for a role."""

    def __init__(self, check_token: CheckToken | None) -> None:
        self._check_token = check_token

    def needs(self, role: Role) -> Callable[[Request], Identity]:
        """A FastAPI dependency: who is calling, or `Denied`."""

        def check(request: Request) -> Identity:
            if self._check_token is None:
                return Identity(name="local", role="admin")
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not token:
                raise Denied("no token was sent", hint="send the header Authorization: Bearer TOKEN")
            return self._check_token(token, needs=role)

        return check


class SameOrigin:
    """Refuses what a page of another site asks this server for, HTTP and websocket alike.

    A browser sends `Origin` with every websocket and with every request that could change something. It must be this
    server's own `Host`; on `loopback`, where no token tells callers apart, that must also be a name of this machine,
    or a name that an attacker points at 127.0.0.1 (DNS rebinding) would be an origin of its own.
    """

    def __init__(self, app: ASGIApp, *, loopback: bool) -> None:
        self._app, self._loopback = app, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        if scope["type"] in ("http", "websocket") and (foreign := self._foreign(Headers(scope=scope))):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": "foreign origin"})
                return
            told = {"type": "Denied", "message": foreign, "hint": "open this server's own address"}
            await JSONResponse({"error": told}, 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _foreign(self, headers: Headers) -> str:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            named, from_there = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
        except ValueError:  # brackets that do not hold an IPv6 address
            return f"host {host!r} or origin {origin!r} is no address"
        if self._loopback and named not in LOOPBACK:
            return f"host {host!r} is not this machine"
        if origin is not None and from_there != host:
            return f"origin {origin!r} is not this server"
        return ""


class BodyLimit:
    """Refuses bodies of more than `BODY_BYTES` under `/api`: FastAPI reads a body whole before it asks who sends it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and stop reading it where it becomes too long."""
        if scope["type"] != "http" or not scope["path"].startswith("/api/"):
            await self._app(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > BODY_BYTES:
                raise HTTPException(413, f"the request body is larger than {BODY_BYTES} bytes")
            return message

        await self._app(scope, counted, send)
