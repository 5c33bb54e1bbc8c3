"""Run, artifact, lineage and event nouns: what is remembered."""

from typing import Literal

from mainspring.spec._spec import spec
from mainspring.spec.job import JobState

Role = Literal["viewer", "editor", "admin"]


@spec
class RunRecord:
    """One recorded run: what was asked, with what, by which code, and how it went.

    Times are UTC seconds since the epoch; `config_json` is the full configuration, `environment_json` the Python,
    platform and library versions, `code` the package version plus the digest of the user's recipe.
    """

    id: str
    workspace: str
    kind: str
    name: str
    state: JobState
    config_json: str
    environment_json: str
    code: str
    seed: int
    created_s: float
    started_s: float | None = None
    ended_s: float | None = None
    reason: str = ""


@spec
class FileEntry:
    """One file of an artifact: its relative path and content digest (SHA-256, hex)."""

    path: str
    digest: str
    size_bytes: int


@spec
class Artifact:
    """An immutable, content-addressed, versioned thing: `model:handbook@3`.

    `digest` is the SHA-256 over the sorted file entries and the metadata; the same content published again under
    the same name gets the same version back.
    """

    kind: str
    name: str
    version: int
    digest: str
    size_bytes: int
    created_s: float
    files: tuple[FileEntry, ...]
    meta_json: str = "{}"
    run: str = ""
    tags: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """`kind:name@version`."""
        return f"{self.kind}:{self.name}@{self.version}"


@spec
class Edge:
    """A lineage edge: `run` read (`input`) or wrote (`output`) the artifact `ref`."""

    run: str
    ref: str
    role: Literal["input", "output"]


@spec
class Lineage:
    """A connected piece of history around one artifact or run."""

    artifacts: tuple[Artifact, ...]
    runs: tuple[RunRecord, ...]
    edges: tuple[Edge, ...]


@spec
class Event:
    """One appended fact: a decision, a state change, a trace, a piece of feedback. Never changed, never deleted."""

    seq: int
    time_s: float
    kind: str
    subject: str
    data_json: str


@spec
class Identity:
    """Who is calling, and what they may do."""

    name: str
    role: Role
