"""What a workspace remembers, looked up: documents, reports, runs, artifacts, lineage, events, tokens, its health.

These verbs start nothing and change nothing but tokens and, where asked to, leftovers.
"""

from itertools import islice
from typing import Any, get_args

from mainspring.flow.handle import Run
from mainspring.spec import (
    TERMINAL,
    Artifact,
    Check,
    CurationReport,
    Document,
    Event,
    GateDecision,
    JobState,
    Lineage,
    Report,
    Role,
    RunRecord,
    SnapshotDiff,
    SpecError,
)
from mainspring.store import Store, parse
from mainspring.store.lineage import Direction

LIVE: tuple[JobState, ...] = tuple(state for state in get_args(JobState) if state not in TERMINAL)
Named = str | Artifact | Any  # anything with a `.ref`: an artifact, a snapshot, a published dataset


class Records:
    """The part of a workspace that reads its store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.store.home)!r})"

    # -- data and reports

    def data_report(self, ref: Named) -> CurationReport:
        """What was read into a dataset, what was dropped and why."""
        from mainspring.data import snapshot

        return snapshot.report(self.store, ref_of(ref))

    def documents(self, ref: Named, *, count: int = 5, offset: int = 0) -> tuple[Document, ...]:
        """Documents of a snapshot, in order."""
        from mainspring.data import snapshot

        if count < 0 or offset < 0:
            raise SpecError(f"neither count nor offset may be negative, they are {count} and {offset}")
        return tuple(islice(snapshot.texts(self.store, ref_of(ref)), offset, offset + count))

    def data_diff(self, old: Named, new: Named) -> SnapshotDiff:
        """Which documents were added, removed or changed between two snapshots."""
        from mainspring.data import snapshot

        return snapshot.diff(self.store, ref_of(old), ref_of(new))

    def report(self, ref: Named) -> Report:
        """The scores of a published report."""
        return parse.read_json((self.store.fetch(ref_of(ref)) / "report.json").read_text("utf-8"), Report)

    def report_page(self, ref: Named) -> str:
        """A published report as one HTML page with its plots."""
        return (self.store.fetch(ref_of(ref)) / "report.html").read_text("utf-8")

    def gate(self, ref: Named) -> GateDecision:
        """Whether what a published report is about may be published or stand in, rule by rule."""
        from mainspring.evaluate import gate

        report = self.report(ref)
        return gate.decide(report, gate.criteria_for(report))

    # -- runs, artifacts, events

    def run(self, run_id: str) -> Run:
        """A run by id."""
        return Run(self.store, self.store.run(run_id).id)

    def runs(self, *, kind: str = "", active: bool = False, limit: int = 100) -> tuple[RunRecord, ...]:
        """Runs, newest first; runs whose process died are closed first, so that none looks alive."""
        self.store.reap_dead_runs()
        if not active:
            return self.store.runs(kind or None, limit=limit)
        found = [record for state in LIVE for record in self.store.runs(kind or None, state, limit)]
        return tuple(sorted(found, key=lambda record: (-record.created_s, record.id))[:limit])

    def artifacts(self, *, kind: str = "", name: str = "") -> tuple[Artifact, ...]:
        """Artifacts, newest first."""
        return self.store.artifacts(kind or None, name or None)

    def artifact(self, ref: Named) -> Artifact:
        """One artifact by reference."""
        return self.store.resolve(ref_of(ref))

    def lineage(self, ref: Named, *, direction: Direction = "both") -> Lineage:
        """What an artifact or run was made from, and what was made from it."""
        return self.store.lineage(ref_of(ref), direction)

    def events(self, *, kind: str = "", subject: str = "", after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        """Events with a sequence number above `after`, oldest first."""
        return self.store.events(after, kind or None, subject or None, limit)

    def create_token(self, name: str, *, role: Role = "editor", days: float | None = None) -> str:
        """A new token for `name`; only its hash is kept."""
        return self.store.create_token(name, role, ttl_s=days * 86400 if days else None)

    def revoke_token(self, name: str) -> None:  # house: the workspace is the only way in
        """Make every token of `name` worthless."""
        self.store.revoke_token(name)

    def doctor(self, *, repair: bool = False, contents: bool = True) -> tuple[Check, ...]:
        """Whether settings, store, disk, devices and libraries are in order, and what to do where they are not.

        `contents` verifies every artifact, which takes as long as reading them all.
        """
        from mainspring.hardware import checkup

        mended = self.store.doctor(repair=True, contents=False) if repair else ()
        ills = self.store.doctor(contents=contents)
        detail = "; ".join((*mended, *ills)) or ("whole" if contents else "nothing left behind")
        kept = Check(name="store", state="bad" if ills else "ok", detail=detail)
        return (kept, *checkup.checks(self.store.home))


def ref_of(named: Named) -> str:
    """The reference of whatever has one."""
    return named if isinstance(named, str) else named.ref
