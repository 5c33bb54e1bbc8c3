"""What this workspace offers under one roof: every published model and assistant, by name.

A name stands for the newest version of its artifact. It is loaded when first asked for, and a version published while
the server runs takes over at the next request; requests in flight finish on the old one. When a model and an
assistant share a name, the assistant is meant and the model is reached as `model:name`.
"""

import threading

from mainspring.serve.models import EngineServable, Registry
from mainspring.serve.servable import Servable
from mainspring.spec import Artifact, NotFound
from mainspring.store import Store


class Published(Registry):
    """The registry of a workspace; `close` ends every engine it has started."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loaded: dict[str, tuple[str, Servable]] = {}
        self._retired: list[Servable] = []
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
        with self._lock:
            ref, servable = self._loaded.get(name, ("", None))
            if servable is None or ref != artifact.ref:
                if servable is not None:
                    self._retired.append(servable)
                servable = self._load(name, artifact)
                self._loaded[name] = (artifact.ref, servable)
            return servable

    def close(self) -> None:
        """Close whatever was loaded."""
        for servable in (*(loaded for _, loaded in self._loaded.values()), *self._retired):
            servable.close()
        self._loaded.clear()
        self._retired.clear()

    def _load(self, name: str, artifact: Artifact) -> Servable:
        if artifact.kind == "app":
            from mainspring.apps.rag.servable import open_servable

            return open_servable(self._store, artifact.ref, name=name)
        return EngineServable(name, self._store.fetch(artifact))

    def _offers(self) -> dict[str, Artifact]:
        apps = _newest(self._store.artifacts("app"))
        models = _newest(self._store.artifacts("model"))
        return apps | {f"model:{name}" if name in apps else name: model for name, model in models.items()}


def _newest(artifacts: tuple[Artifact, ...]) -> dict[str, Artifact]:
    """The highest version of each name."""
    newest: dict[str, Artifact] = {}
    for artifact in artifacts:
        if artifact.name not in newest or artifact.version > newest[artifact.name].version:
            newest[artifact.name] = artifact
    return newest
