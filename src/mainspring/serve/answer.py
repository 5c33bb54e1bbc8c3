"""Writing generated pieces in the formats of the OpenAI API, as one JSON document or as server-sent events.

One task per choice reads its stream and writes; one more watches for the client to leave, which cancels the rest
and so frees whatever the request holds in the engine. Errors before the first byte become an HTTP status, later
ones an error event.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from uuid import uuid4

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mainspring.serve.refusals import describe, respond
from mainspring.serve.servable import Piece, Prompt, Servable, TokenLogprob
from mainspring.spec import SamplingParams

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """One choice to generate; `first` of its prompt, whose tokens are then counted; `drop` the generated text."""

    prompt: Prompt
    sampling: SamplingParams
    first: bool = True
    drop: bool = False


@dataclass(slots=True)
class Usage:
    """Token counts over all choices."""

    prompt: int = 0
    completion: int = 0

    def as_json(self) -> Json:
        """The `usage` object."""
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


class Format(Protocol):
    """One of the two shapes of a generation."""

    prefix: str
    whole: str
    chunk: str

    def opening(self, index: int) -> Json | None:
        """What a choice's stream begins with."""
        ...

    def delta(self, index: int, piece: Piece) -> Json:
        """One choice of a streamed chunk."""
        ...

    def choice(self, index: int, piece: Piece) -> Json:
        """One finished choice."""
        ...


class ChatFormat(Format):
    """`/v1/chat/completions`."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> Json:
        """The role comes first and alone."""
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, piece: Piece) -> Json:
        """The next text; the last delta may be empty."""
        delta = {"content": piece.text} if piece.text else {}
        return {"index": index, "delta": delta, "logprobs": self._logprobs(piece), "finish_reason": piece.finish}

    def choice(self, index: int, piece: Piece) -> Json:
        """The whole message."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(piece), "finish_reason": piece.finish}

    def _logprobs(self, piece: Piece) -> Json | None:
        if piece.logprobs is None:
            return None
        return {
            "content": [
                _entry(each.text, each.logprob) | {"top_logprobs": [_entry(*top) for top in each.top]}
                for each in piece.logprobs
            ],
            "refusal": None,
        }


class CompletionFormat(Format):
    """`/v1/completions`. `offsets` remember where each choice's next token starts in its text."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"

    def __init__(self) -> None:
        self._offsets: dict[int, int] = {}

    def opening(self, index: int) -> None:
        """Completions begin with text."""

    def delta(self, index: int, piece: Piece) -> Json:
        """The next text, after the echoed prompt where one was asked for."""
        text = piece.prompt_text + piece.text
        logprobs = self._logprobs(index, piece)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": piece.finish}

    choice = delta

    def _logprobs(self, index: int, piece: Piece) -> Json | None:
        if piece.logprobs is None:
            return None
        tokens = (*(piece.prompt_logprobs or ()), *piece.logprobs)
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_alternatives(token) for token in tokens],
            "text_offset": offsets,
        }


def _alternatives(token: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens and the chosen one; None where nothing precedes."""
    return None if token.logprob is None else {**dict(token.top), token.text: token.logprob}


def _entry(text: str, logprob: float | None) -> Json:
    """One token; its bytes are unknown where it is only a part of a character."""
    found = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": logprob, "bytes": found}


def join(pieces: Iterable[Piece]) -> Piece:
    """All pieces of a choice as one."""
    found = list(pieces)
    scored = [each.logprobs for each in found if each.logprobs is not None]
    metadata: dict[str, object] = {}
    for each in found:
        metadata.update(each.metadata or {})
    return Piece(
        text="".join(each.text for each in found),
        token_ids=tuple(token for each in found for token in each.token_ids),
        logprobs=tuple(token for tokens in scored for token in tokens) if scored else None,
        finish=found[-1].finish,
        prompt_tokens=found[-1].prompt_tokens,
        metadata=metadata or None,
        prompt_text=found[0].prompt_text,
        prompt_logprobs=found[0].prompt_logprobs,
    )


@dataclass(slots=True)
class Writing:
    """One response being written: whether its head is out, and the lock that keeps it before everything else."""

    send: Send
    headers: list[tuple[bytes, bytes]]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    begun: bool = False

    async def event(self, data: str) -> None:
        """Send one server-sent event, the response's head before the first."""
        async with self.lock:
            if not self.begun:
                self.begun = True
                await self.send({"type": "http.response.start", "status": 200, "headers": self.headers})
            body = f"data: {data}\n\n".encode()
            await self.send({"type": "http.response.body", "body": body, "more_body": True})


class Answer(Response):
    """Generates when called, and writes what comes."""

    def __init__(
        self, servable: Servable, asks: Sequence[Ask], shape: Format, *, stream: bool, include_usage: bool = False
    ) -> None:
        super().__init__(media_type="text/event-stream" if stream else "application/json")
        del self.headers["content-length"]
        self._servable, self._asks, self._format = servable, asks, shape
        self._stream, self._include_usage = stream, include_usage
        self._usage = Usage()
        self._head = {
            "id": f"{shape.prefix}{uuid4().hex}",
            "object": shape.chunk if stream else shape.whole,
            "created": int(time.time()),
            "model": servable.name,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Write until done or until the client leaves."""
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._write(send))
            leaving = tasks.create_task(_wait_for_leave(receive))
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
            writing.cancel()
            leaving.cancel()

    async def _write(self, send: Send) -> None:
        if self._stream:
            self.headers["cache-control"] = "no-cache"
        writing = Writing(send, self.raw_headers)
        failed: list[Exception] = []
        choices: list[asyncio.Task[Json | None]] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                write = self._write_stream if self._stream else self._collect
                choices += [tasks.create_task(write(index, ask, writing)) for index, ask in enumerate(self._asks)]
        except* Exception as group:  # noqa: BLE001 the edge of a request: the client hears of everything
            failed.append(_first(group))
        if failed:
            await self._write_error(failed[0], writing)
        elif self._stream:
            await self._end_stream(writing)
        else:
            body = self._head | {"choices": [task.result() for task in choices], "usage": self._usage.as_json()}
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": _dump(body).encode()})

    async def _end_stream(self, writing: Writing) -> None:
        if self._include_usage:
            await writing.event(_dump(self._head | {"choices": [], "usage": self._usage.as_json()}))
        await writing.event("[DONE]")
        await writing.send({"type": "http.response.body", "body": b""})

    async def _write_error(self, error: Exception, writing: Writing) -> None:
        """A status and a body while nothing is sent yet, an event afterwards."""
        if writing.begun:
            await writing.event(_dump(describe(error)[1]))
            await writing.send({"type": "http.response.body", "body": b""})
            return
        kept = {"x-request-id": self.headers["x-request-id"]} if "x-request-id" in self.headers else {}
        response = respond(error, kept)
        start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        await writing.send(start)
        await writing.send({"type": "http.response.body", "body": response.body})

    async def _write_stream(self, index: int, ask: Ask, writing: Writing) -> None:
        head = _dump(self._head)[:-1]
        tail = ',"usage":null}' if self._include_usage else "}"
        opening = self._format.opening(index)
        async with aclosing(self._open(ask)) as pieces:
            async for piece in pieces:
                choice = self._delta(index, self._count(ask, piece))
                for each in (opening, choice):
                    if each is not None:
                        await writing.event(f'{head},"choices":[{_dump(each)}]{tail}')
                opening = None

    def _delta(self, index: int, piece: Piece) -> Json:
        return self._format.delta(index, piece) | _extension(piece.metadata)

    async def _collect(self, index: int, ask: Ask, writing: Writing) -> Json:  # noqa: ARG002
        async with aclosing(self._open(ask)) as pieces:
            whole = join([self._count(ask, piece) async for piece in pieces])
        return self._format.choice(index, whole) | _extension(whole.metadata)

    def _open(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        # Streams are asynchronous generators: closing one early is how a servable learns that nobody reads on.
        return cast("AsyncGenerator[Piece, None]", self._servable.stream(ask.prompt, ask.sampling))

    def _count(self, ask: Ask, piece: Piece) -> Piece:
        """Add a piece to the usage; without its text where only the prompt was asked for."""
        if ask.drop:
            piece = Piece(
                text="",
                logprobs=None if piece.logprobs is None else (),
                finish=piece.finish,
                prompt_tokens=piece.prompt_tokens,
                prompt_text=piece.prompt_text,
                prompt_logprobs=piece.prompt_logprobs,
            )
        self._usage.completion += len(piece.token_ids)
        if piece.finish and ask.first:
            self._usage.prompt += piece.prompt_tokens
        return piece


def _extension(metadata: Mapping[str, object] | None) -> Json:
    return {"mainspring": dict(metadata)} if metadata else {}


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """One error of a group; choices of one request usually fail alike."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error


async def _wait_for_leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
