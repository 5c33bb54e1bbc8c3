"""The control API: one resource per file, all under `/api/v1`, described by OpenAPI at `/docs`.

The same process serves `/v1`, the OpenAI-compatible side of everything published. Errors of our tree become
`{"error": {"type", "message", "hint"}}` with the status the error carries.
"""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline

from mainspring import __version__
from mainspring.api import apps, artifacts, cluster, data, machine, runs
from mainspring.api.access import Access, BodyLimit, SameOrigin
from mainspring.serve.http import router
from mainspring.spec import MainspringError, NotFound
from mainspring.workspace import Workspace

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def create_app(workspace: Workspace, *, host: str = "127.0.0.1") -> FastAPI:
    """The application for `workspace` when listening on `host`.

    Raises `SpecError` when others could reach `host` and the workspace has no token to keep them out.
    """
    check_token = workspace.guard(host)
    app = FastAPIOffline(title="Mainspring", version=__version__, description="The verbs of a Mainspring workspace.")
    app.state.check_token = check_token
    access = Access(check_token)
    app.add_middleware(BodyLimit)
    app.add_middleware(SameOrigin, loopback=check_token is None)
    for resource in (runs, artifacts, data, machine, cluster, apps):
        app.include_router(resource.router(workspace, access), prefix="/api/v1")
    app.include_router(router(workspace.offers(), check_token=check_token))
    for path in ("/api/{path:path}", "/v1/{path:path}"):
        app.add_api_route(path, _nowhere, methods=list(METHODS), include_in_schema=False)
    app.add_exception_handler(MainspringError, _explain)
    app.add_exception_handler(RequestValidationError, _explain_body)
    return app


def _nowhere(request: Request) -> None:
    raise NotFound(f"there is nothing to {request.method} at {request.url.path}", hint="see /docs for what there is")


async def _explain(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MainspringError)
    return _answer(error.http_status, type(error).__name__, str(error), error.hint)


async def _explain_body(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    wrong = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'body'}: {e['msg']}" for e in error.errors())
    return _answer(400, "SpecError", wrong, "see /docs for what this resource takes")


def _answer(status: int, kind: str, message: str, hint: str) -> JSONResponse:
    headers = {"Retry-After": "5"} if status == 503 else None
    return JSONResponse({"error": {"type": kind, "message": message, "hint": hint}}, status, headers)
