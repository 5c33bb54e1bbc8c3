"""What this workspace offers under one roof: every published model and assistant, by name.

A name stands for the newest version of its artifact. It is loaded when first asked for, and a version published while
the server runs takes over at the next request; requests in flight finish on the old one, which is closed when the last
of them is done, as its weights and its cache may be most of the machine. When a model and an assistant share a name,
the assistant is meant and the model is reached as `model:name`.
"""

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from mainspring.serve.models import Registry, open_folder
from mainspring.serve.servable import Embeddable, Embeddings, Piece, Prompt, Servable
from mainspring.spec import Artifact, NotFound, SamplingParams
from mainspring.store import Store

RETIRE_S = 10.0
"""A replaced version is closed no sooner: somebody may have been handed it and not have asked it yet."""


class Published(Registry):
    """The registry of a workspace; `close` ends every engine it has started."""

    def __init__(self, store: Store, *, retire_s: float = RETIRE_S) -> None:
        self._store = store
        self._retire_s = retire_s
        self._loaded: dict[str, tuple[str, Lent]] = {}
        self._retired: set[Lent] = set()
        self._lock = threading.Lock()

    def names(self) -> tuple[str, ...]:
        """Every name that can be asked for now, assistants first."""
        return tuple(self._offers())

    def get(self, name: str) -> Servable:
        """The newest version of `name`, loading it if need be."""
        offers = self._offers()
        if name not in offers:
            raise NotFound(f"the model {name!r} does not exist", hint=f"served: {', '.join(offers) or 'nothing yet'}")
        artifact = offers[name]
        ref, servable = self._loaded.get(name, ("", None))
        if servable is not None and ref == artifact.ref:
            return servable  # not behind the lock, which is held while another name loads
        with self._lock:
            ref, servable = self._loaded.get(name, ("", None))
            if servable is None or ref != artifact.ref:
                fresh = Lent(self._load(name, artifact), on_close=self._retired.discard)
                if servable is not None:
                    self._retired.add(servable)
                    servable.retire(self._retire_s)
                servable = fresh
                self._loaded[name] = (artifact.ref, servable)
            return servable

    def close(self) -> None:
        """Close whatever was loaded."""
        for servable in (*(loaded for _, loaded in self._loaded.values()), *self._retired):
            servable.close()
        self._loaded.clear()

    def _load(self, name: str, artifact: Artifact) -> Servable:
        if artifact.kind == "app":
            from mainspring.apps.rag.servable import open_servable

            return open_servable(self._store, artifact.ref, name=name)
        return open_folder(name, self._store.fetch(artifact))

    def _offers(self) -> dict[str, Artifact]:
        apps = {app.name: app for app in self._store.newest("app")}
        models = {model.name: model for model in self._store.newest("model")}
        return apps | {f"model:{name}" if name in apps else name: model for name, model in models.items()}


class Lent:
    """A servable that counts who uses it, so that one that was replaced is closed by its last user."""

    def __init__(self, servable: Servable, *, on_close: "Callable[[Lent], Any]") -> None:
        self.name, self.created_s, self.context = servable.name, servable.created_s, servable.context
        self._servable = servable
        self._on_close = on_close
        self._users = 0
        self._retired = False
        self._lock = threading.Lock()

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncIterator[Piece]:
        """What the servable streams."""
        self._enter()
        try:
            async with aclosing(self._servable.stream(prompt, sampling)) as pieces:  # pyright: ignore[reportArgumentType] streams are generators
                async for piece in pieces:
                    yield piece
        finally:
            self._leave()

    async def embed(self, inputs: Sequence[Embeddable]) -> Embeddings:
        """What the servable embeds."""
        self._enter()
        try:
            return await self._servable.embed(inputs)
        finally:
            self._leave()

    def retire(self, after_s: float) -> None:
        """Close it once nobody uses it, but not before `after_s` seconds."""
        timer = threading.Timer(after_s, self._close_when_idle)
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        """Close it now."""
        self._servable.close()
        self._on_close(self)

    def _enter(self) -> None:
        with self._lock:
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._retired and not self._users
        if last:  # on a thread, as an engine's end is waited for and this may be an event loop
            threading.Thread(target=self.close, daemon=True).start()

    def _close_when_idle(self) -> None:
        with self._lock:
            self._retired = True
            idle = not self._users
        if idle:
            self.close()
