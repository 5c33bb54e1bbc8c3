"""The served names: what a name stands for, loaded when it is first asked for.

Two kinds of model folder are servable as they are: a decoder (`EngineServable`) and an embedder
(`EmbedderServable`). Applications bring their own `Servable` and are added by name.
"""

import asyncio
import difflib
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mainspring.serve.servable import Embeddable, Embeddings, Piece, Prompt, Servable
from mainspring.spec import EngineConfig, NotFound, SamplingParams, SpecError

if TYPE_CHECKING:
    from mainspring.models.embedder import Embedder


EMBEDDER_MARKS = ("lsa.npz", "modules.json")
"""What only the folder of an embedder has: our own, or sentence-transformers'."""


class Registry(Protocol):
    """Where the HTTP server looks names up; `get` may take as long as loading a model takes."""

    def names(self) -> tuple[str, ...]:
        """Every name that can be asked for."""
        ...

    def get(self, name: str) -> Servable:
        """What `name` stands for; `NotFound` otherwise."""
        ...


class Models(Registry):
    """A registry of loaders. Each is called once, on first use, and closed with the registry."""

    def __init__(self, loaders: Mapping[str, Callable[[], Servable]]) -> None:
        self._loaders = dict(loaders)
        self._loaded: dict[str, Servable] = {}
        self._locks = {name: threading.Lock() for name in self._loaders}

    def names(self) -> tuple[str, ...]:
        """Every name, loaded or not, in the order given."""
        return tuple(self._loaders)

    def get(self, name: str) -> Servable:
        """What `name` stands for, loading it now if need be; two callers never load it twice."""
        if name not in self._loaders:
            near = difflib.get_close_matches(name, self._loaders, n=1)
            hint = f"did you mean {near[0]}?" if near else f"served: {', '.join(self._loaders) or 'nothing'}"
            raise NotFound(f"the model {name!r} does not exist", hint=hint)
        with self._locks[name]:
            if name not in self._loaded:
                self._loaded[name] = self._loaders[name]()
            return self._loaded[name]

    def close(self) -> None:
        """Close whatever was loaded."""
        for servable in self._loaded.values():
            servable.close()
        self._loaded.clear()


class EngineServable:
    """A decoder's folder behind an engine of its own."""

    def __init__(self, name: str, folder: Path | str, config: EngineConfig | None = None) -> None:
        from mainspring.serve.engine.loop import Engine  # loads torch, which a server without a model need not have

        self.name = name
        self.created_s = time.time()
        self.engine = Engine.load(folder, config, name=name)
        self.context = self.engine.context

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncIterator[Piece]:
        """Continue the prompt; see `Engine.generate` for what it raises."""
        tokens = await asyncio.to_thread(self._encode, prompt)
        score = prompt.echo and sampling.logprobs is not None
        async with aclosing(self.engine.generate(tokens, sampling, score=score)) as pieces:
            if prompt.echo:
                text = self.engine.tokenizer.decode(tokens, keep_special=True)
                yield replace(await anext(pieces), prompt_text=prompt.text or text)
            async for piece in pieces:
                yield piece

    async def embed(self, inputs: Sequence[Embeddable]) -> Embeddings:
        """Refuse: a decoder makes no sentence vectors."""
        raise SpecError(
            f"{self.name} generates text and makes no embeddings, asked for {len(inputs)}",
            hint="ask an embedding model",
        )

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        tokenizer = self.engine.tokenizer
        if prompt.messages is not None:
            return tokenizer.chat_ids(prompt.messages)
        if prompt.token_ids is not None:
            return prompt.token_ids
        return tokenizer.encode_prompt(prompt.text or "")


def open_folder(name: str, folder: Path | str, config: EngineConfig | None = None) -> Servable:
    """The model in `folder` under `name`: an embedder where its files say so, a decoder otherwise."""
    return EmbedderServable(name, folder) if _embeds(folder) else EngineServable(name, folder, config)


def check_folder(folder: Path | str, name: str) -> None:
    """Raise why the model in `folder` cannot be served, by its name, before anything is loaded or started."""
    from mainspring.models.config import check_readable

    if not _embeds(folder):
        check_readable(folder, name)


def _embeds(folder: Path | str) -> bool:
    return any(Path(folder, mark).is_file() for mark in EMBEDDER_MARKS)


def embed_with(embedder: "Embedder", inputs: Sequence[Embeddable]) -> Embeddings:
    """What `embedder` makes of texts and of tokens of its own."""
    texts = [each if isinstance(each, str) else embedder.decode(each) for each in inputs]
    return Embeddings(embedder.encode(texts).tolist(), embedder.count(texts), nested=embedder.nested)


class EmbedderServable:
    """An embedder, by folder or hub name."""

    def __init__(self, name: str, folder: Path | str) -> None:
        self.name = name
        self.created_s = time.time()
        self.context = 0
        from mainspring.models.embedder import load_embedder

        self._embedder = load_embedder(folder)

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncIterator[Piece]:  # noqa: ARG002
        """Refuse: an embedder writes nothing."""
        raise SpecError(f"{self.name} makes embeddings and generates no text", hint="ask a generating model")
        yield  # makes this an async generator, as the protocol wants

    async def embed(self, inputs: Sequence[Embeddable]) -> Embeddings:
        """One unit-length vector per input."""
        return await asyncio.to_thread(embed_with, self._embedder, inputs)

    def close(self) -> None:
        """Nothing runs between calls."""
