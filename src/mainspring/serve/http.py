"""The OpenAI-compatible server: routes, tokens, limits, and a listener that says when its port is taken.

`router(models)` carries everything a route needs, so that another application can include it; `create_app(models)`
is the same as a server of its own.
"""

import asyncio
import base64
import errno
import logging
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from mainspring import __version__
from mainspring.serve.answer import Answer, Ask, ChatFormat, CompletionFormat
from mainspring.serve.engine.metrics import FALLEN, REGISTRY
from mainspring.serve.models import Models, Registry, open_folder
from mainspring.serve.refusals import RETRY_AFTER_S, Refusal, respond
from mainspring.serve.schema import ChatBody, CompletionBody, EmbeddingBody, GenerationBody, Kind, parse_body
from mainspring.serve.servable import Embeddings, Prompt, Servable
from mainspring.spec import (
    Denied,
    Deployment,
    NotFound,
    SamplingParams,
    ServePayload,
    SpecError,
    Task,
    Unavailable,
)
from mainspring.store.parse import read_dict, to_json

log = logging.getLogger(__name__)

CheckToken = Callable[[str], object]
"""Returns who a bearer token belongs to, or raises `Denied`."""

BODY_BYTES = 16 * 1024**2
CHOICES = 2048
"""One request may not fill the engine's queue with millions of one-letter prompts."""
DEFAULT_TOKENS = 16
"""What `/v1/completions` generates when not told, as in the OpenAI API."""


class OpenAIRoute(APIRoute):
    """A route whose errors are OpenAI error bodies and whose responses carry the request's id."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's own handler."""
        handle = super().get_route_handler()

        async def handle_and_explain(request: Request) -> Response:
            request_id = request.headers.get("x-request-id") or f"req-{uuid4().hex}"
            try:
                response = await handle(request)
            except Exception as error:  # noqa: BLE001 the edge of a request: the client hears of everything
                response = respond(error)
            response.headers["x-request-id"] = request_id
            return response

        return handle_and_explain


def create_app(models: Registry, *, check_token: CheckToken | None = None) -> FastAPI:
    """A server for `models`; with `check_token`, `/v1` wants a bearer token."""
    app = FastAPIOffline(title="Mainspring", version=__version__)
    app.include_router(router(models, check_token=check_token))

    @app.exception_handler(HTTPException)
    async def explain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        where = f"{request.method} {request.url.path}"
        return respond(Refusal(f"{where}: {error.detail}", status=error.status_code, hint="see /docs"))

    return app


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What the routes share: where names are looked up, who may ask, and how much they may send."""

    models: Registry
    check_token: CheckToken | None
    started_s: float

    async def read(self, request: Request, kind: type[Kind]) -> Kind:
        """The request's body, once its token is accepted."""
        await self.admit(request)
        return parse_body(kind, await _read_limited(request))

    async def admit(self, request: Request) -> None:
        """Check the bearer token; `Denied` when it is missing or wrong."""
        if self.check_token is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Denied("no token was sent", hint="send the header Authorization: Bearer TOKEN")
        await asyncio.to_thread(self.check_token, token)

    async def find(self, name: str) -> Servable:
        """The named model, loaded. An unknown name is the client's error, a model that does not load is ours."""
        names = await asyncio.to_thread(self.models.names)  # may ask a database
        if name not in names:
            raise NotFound(f"the model {name!r} does not exist", hint=f"served: {', '.join(names) or 'nothing'}")
        try:
            return await asyncio.to_thread(self.models.get, name)
        except SpecError as error:
            raise Unavailable(f"the model {name} cannot be loaded: {error}", hint=error.hint) from error

    def card(self, name: str) -> dict[str, object]:
        """The entry of a name in `/v1/models`."""
        return {"id": name, "object": "model", "created": int(self.started_s), "owned_by": "mainspring"}

    async def list_models(self, request: Request) -> dict[str, object]:
        """Every name that can be asked for."""
        await self.admit(request)
        names = await asyncio.to_thread(self.models.names)
        return {"object": "list", "data": [self.card(name) for name in names]}

    async def show_model(self, request: Request, name: str) -> dict[str, object]:
        """One name, with the longest prompt plus answer; loads it."""
        await self.admit(request)
        return self.card(name) | {"max_model_len": (await self.find(name)).context}

    async def complete(self, request: Request) -> Response:
        """Continue one or several prompts."""
        body = await self.read(request, CompletionBody)
        asked = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        sampling = body.sampling(max_tokens=asked or 1, logprobs=body.logprobs)
        prompts = body.prompts()
        if len(prompts) * (body.n or 1) > CHOICES:
            raise Refusal(f"{len(prompts)} prompts times n = {body.n or 1} is above {CHOICES} choices", param="prompt")
        asks = [ask for prompt in prompts for ask in _asks(prompt, sampling, body, drop=not asked)]
        servable = await self.find(body.model)
        return Answer(servable, asks, CompletionFormat(), stream=bool(body.stream), include_usage=body.include_usage)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body = await self.read(request, ChatBody)
        longest = body.max_completion_tokens or body.max_tokens
        sampling = body.sampling(max_tokens=longest, logprobs=body.chosen_logprobs())
        servable = await self.find(body.model)
        asks = _asks(body.prompt(), sampling, body)
        return Answer(servable, asks, ChatFormat(), stream=bool(body.stream), include_usage=body.include_usage)

    async def embed(self, request: Request) -> Response:
        """One vector per text."""
        body = await self.read(request, EmbeddingBody)
        inputs = body.inputs()
        servable = await self.find(body.model)
        try:
            found = await servable.embed(inputs)
        except SpecError as error:
            param = "model" if isinstance(inputs[0], str) else "input"
            raise Refusal(str(error), param=param, hint=error.hint) from error
        vectors = _cut(found, body.dimensions)
        encode = _base64 if body.encoding_format == "base64" else list
        data = [
            {"object": "embedding", "index": index, "embedding": encode(vector)} for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})

    async def health(self, request: Request) -> Response:
        """Whether the process answers and every engine in it runs; 503 and, for those who may know, why not."""
        reasons = list(FALLEN.values())
        if not reasons:
            return JSONResponse({"status": "ok"})
        try:
            await self.admit(request)
        except (Denied, Unavailable):
            reasons = []
        return JSONResponse({"status": "failed", "reasons": reasons}, 503, {"retry-after": str(RETRY_AFTER_S)})

    async def metrics(self, request: Request) -> Response:
        """Prometheus text, under vLLM's names. It names models, so it wants a token where they do."""
        await self.admit(request)
        return PlainTextResponse(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


def router(models: Registry, *, check_token: CheckToken | None = None) -> APIRouter:
    """The routes, for an application that includes them. `/health` and `/version` need no token."""
    ends = Endpoints(models, check_token, time.time())
    found = APIRouter(route_class=OpenAIRoute)
    found.get("/v1/models", tags=["openai"])(ends.list_models)
    found.get("/v1/models/{name:path}", tags=["openai"])(ends.show_model)
    found.post("/v1/completions", tags=["openai"], response_class=Response)(ends.complete)
    found.post("/v1/chat/completions", tags=["openai"], response_class=Response)(ends.chat)
    found.post("/v1/embeddings", tags=["openai"], response_class=Response)(ends.embed)
    found.get("/health")(ends.health)
    found.get("/metrics", response_class=PlainTextResponse)(ends.metrics)

    @found.get("/version")
    async def version() -> dict[str, str]:
        """Which Mainspring this is."""
        return {"version": __version__}

    return found


def _asks(prompt: Prompt, sampling: SamplingParams, body: GenerationBody, *, drop: bool = False) -> list[Ask]:
    """`n` choices of one prompt; with a seed each has its own, the first the seed itself."""
    seeds = [None if sampling.seed is None else sampling.seed + i for i in range(body.n or 1)]
    return [Ask(prompt, replace(sampling, seed=seed), first=index == 0, drop=drop) for index, seed in enumerate(seeds)]


def _cut(found: Embeddings, dimensions: int | None) -> list[list[float]]:
    """The vectors in `dimensions` (their own by default), of length 1 again."""
    size = len(found.vectors[0])
    if dimensions in (None, size):
        return found.vectors
    if dimensions > size or not found.nested:
        fewer = " or fewer" if found.nested else ""
        raise Refusal(f"these vectors have {size} dimensions{fewer}, not {dimensions}", param="dimensions")
    parts = [vector[:dimensions] for vector in found.vectors]
    lengths = [math.hypot(*part) or 1.0 for part in parts]
    return [[each / length for each in part] for part, length in zip(parts, lengths, strict=True)]


def _base64(vector: list[float]) -> str:
    """Little-endian float32, as the openai package reads it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def _read_limited(request: Request) -> bytes:
    """The body, refused as soon as it is known to be too large."""
    limit = f"the request body is larger than {BODY_BYTES} bytes"
    if int(request.headers.get("content-length") or 0) > BODY_BYTES:
        raise Refusal(limit, code="request_too_large", status=413)
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > BODY_BYTES:
            raise Refusal(limit, code="request_too_large", status=413)
    return bytes(parts)


@contextmanager
def listen(app: FastAPI, host: str = "127.0.0.1", port: int = 0, *, grace_s: float = 10.0) -> Iterator[str]:
    """Serve in a thread of this process while the block runs; gives the server's URL. Port 0 is any free one."""
    ready = threading.Event()
    server = Server(_bind(host, port), app, on_ready=lambda _: ready.set(), grace_s=grace_s)
    thread = threading.Thread(target=server.serve_bound, name="http", daemon=True)
    thread.start()
    while not ready.wait(0.1):
        if not thread.is_alive():
            raise Unavailable("the HTTP server did not start", hint="its log says why")
    try:
        yield server.url
    finally:
        server.should_exit = True
        thread.join()


def serve_forever(
    app: FastAPI,
    host: str,
    port: int,
    *,
    on_ready: Callable[[str], None] | None = None,
    grace_s: float = 10.0,
) -> None:
    """Serve until a signal; then finish streams in flight for at most `grace_s` seconds.

    `on_ready` is told the URL once requests are accepted. Raises `Unavailable` when the port cannot be had.
    """
    Server(_bind(host, port), app, on_ready=on_ready or _log_url, grace_s=grace_s).serve_bound()


def main(task: Task, payload: Mapping[str, object]) -> None:
    """Serve as one rank of a gang: read a `ServePayload`, write where it listens to `endpoint.json`, and serve.

    Ranks of one node listen on consecutive ports; port 0 is any free one.
    """
    wanted = read_dict(payload, ServePayload)
    models = Models({name: partial(open_folder, name, folder, wanted.engine) for name, folder in wanted.models})

    def announce(url: str) -> None:
        found = Deployment(url=url, models=models.names(), run=task.job_id)
        partial_file = Path(task.run_dir, "endpoint.json.partial")
        partial_file.write_text(to_json(found), encoding="utf-8")
        partial_file.rename(Path(task.run_dir, "endpoint.json"))

    port = wanted.port + task.local_rank if wanted.port else 0
    try:
        serve_forever(create_app(models), wanted.host, port, on_ready=announce)
    finally:
        models.close()


class Server(uvicorn.Server):
    """uvicorn on a socket that is already bound, so that a port in use is an error with a hint and not an exit."""

    def __init__(self, bound: socket.socket, app: FastAPI, *, on_ready: Callable[[str], None], grace_s: float) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=max(1, round(grace_s))
        )
        super().__init__(config)
        self._bound, self._on_ready = bound, on_ready
        host, port = bound.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell whoever waits that requests are accepted."""
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready(self.url)

    def serve_bound(self) -> None:
        """Serve until told to stop."""
        with self._bound:
            self.run(sockets=[self._bound])


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        raise Unavailable(
            f"cannot listen on {host}:{port}: {'the port is in use' if taken else error}",
            hint="choose another port, or 0 for any free one" if taken else "choose an address of this machine",
        ) from error
    return bound


def _log_url(url: str) -> None:
    log.info("serving", extra={"url": url})
