"""Who may do what: roles by token, and on loopback without tokens, only pages this server itself has served.

A browser sends requests to 127.0.0.1 on behalf of any page it shows. Without a token the only thing that tells such a
page from ours is where it came from, so a foreign `Origin` and a foreign `Host` (DNS rebinding) are refused.
"""

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from mainspring.spec import Denied, Identity, Role
from mainspring.workspace import LOOPBACK

CheckToken = Callable[..., Identity]


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


async def same_origin(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse what a page of another site asks this machine for."""
    for header in ("host", "origin"):
        value = request.headers.get(header, "")
        name = urlsplit(value if "//" in value else f"//{value}").hostname
        if value and name not in LOOPBACK:
            message = f"{header} {value!r} is not this machine"
            return JSONResponse({"error": {"type": "Denied", "message": message, "hint": "use 127.0.0.1"}}, 403)
    return await call_next(request)
