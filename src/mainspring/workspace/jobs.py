"""The verbs about jobs that outlive the process that submitted them, and about the nodes they run on."""

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mainspring.spec import (
    ACTIVE,
    GatherPlan,
    Job,
    JobRecord,
    Lease,
    MenuFile,
    NodeNote,
    NotFound,
    Progress,
    Resources,
    SpecError,
    silent,
)
from mainspring.store import parse
from mainspring.workspace.capacity import Capacity

POLL_S = 0.5


class Jobs(Capacity):
    """What a workspace has others run for it."""

    def submit(self, job: Job, *, menu: str | Path = "") -> JobRecord:
        """Leave `job` to whichever scheduler of this workspace and address comes first, now or later.

        It gets an id when it has none; its ranks find modules, and start, where this process does unless it says else.
        With the shapes of the TOML file `menu` it runs in one that the scheduler chooses, and changes.
        """
        from mainspring.cluster.gang import driver_imports
        from mainspring.cluster.launcher import check_job

        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        job = replace(
            job,
            id=job.id or f"job-{stamp}-{secrets.token_hex(5)}",
            folder=job.folder or str(Path.cwd()),
            imports=job.imports or driver_imports(),
        )
        job = _with_menu(job, menu) if menu else job
        check_job(job)
        return self.store.enqueue(job, address=self.settings.address)

    def map(
        self,
        entry: str,
        items: str | Path,
        *,
        ranks: int = 1,
        queue: str = "default",
        resources: Resources | None = None,
        block_s: float = 2.0,
    ) -> JobRecord:
        """Leave a call of `entry` for each line of a JSON-lines file to the scheduler, as one gang.

        Ranks take blocks of some `block_s` seconds. Answers are in `answers-RANK.jsonl` of the job's folder.
        """
        from mainspring.cluster.tasks import ENTRY, read_items

        payload = {"entry": entry, "items": read_items(Path(items)), "blocks": {"aim_ms": round(1000 * block_s)}}
        job = Job(id="", name=entry, entry=ENTRY, payload_json=parse.to_json(payload), ranks=ranks, queue=queue)
        return self.submit(replace(job, resources=resources or Resources()))

    def schedule(self, stopped: threading.Event) -> None:
        """See to submitted jobs until `stopped`; what runs then waits some minutes for the next scheduler."""
        from mainspring.cluster import Launcher

        quotas = self.quota_file()
        with Launcher(self.store, address=self.settings.address, quotas=quotas, serves=True) as launcher:
            launcher.serve(stopped)

    def job(self, job_id: str) -> JobRecord:  # house: the workspace is the only way in
        """Where a job is in life and how it ended."""
        return self.store.job(job_id)

    def jobs(self, *, limit: int = 100) -> tuple[JobRecord, ...]:  # house: the workspace is the only way in
        """Jobs of this workspace, newest first: submitted ones, and the gangs of its runs."""
        return self.store.jobs(limit=limit)

    def stop_job(self, job_id: str) -> JobRecord:
        """Ask whoever sees to a job to stop it; returns at once."""
        return self.store.cancel_job(job_id, "stopped")

    def gather(self, queue: str, job_id: str, *, hours: float = 24.0) -> GatherPlan:
        """Pool all quotas under `queue` for a job that waits: others save, stop and wait again, and it starts.

        All is given back when the job has ended, or after `hours`. Raises `SpecError` when that makes no room.
        """
        plan = self.plan_gather(queue, job_id, hours=hours)
        self.store.pool(job_id, Lease(queue=queue, until_s=time.time() + 3600 * hours))
        return plan

    def drain(self, node: str, *, reason: str = "", progress: Progress = silent) -> NodeNote:
        """Give `node` nothing new, move what can be started again to others, and wait until the rest has ended too.

        Jobs are asked to stop, have time to save what they have, and wait for their next attempt. Raises `NotFound` for
        a node that the cluster does not have, `SpecError` for a local cluster, which has but one.
        """
        note = replace(self._note(node), closed=True, reason=reason)
        self.store.note_node(note)
        left, pause = self._on(note), threading.Event()
        first = len(left)
        while left:
            names = ", ".join(f"{record.job.id}{'' if _moves(record) else ' (stays to its end)'}" for record in left)
            progress(1 - len(left) / max(first, len(left)), f"{note.node} is left by {names}")
            pause.wait(POLL_S)
            left = self._on(note)
        progress(1.0, f"{note.node} is empty")
        return note

    def reopen(self, node: str) -> NodeNote:
        """Let a drained node be used again."""
        note = replace(self._note(node), closed=False, reason="")
        self.store.note_node(note)
        return note

    def _note(self, node: str) -> NodeNote:
        """What is known of a node of the cluster at hand, by its name or the beginning of it."""
        from mainspring.cluster.engine import connect

        address = self.settings.address
        if address == "local":
            raise SpecError(
                "a local cluster has one node and ends with the process that started it",
                hint="name the cluster with --address auto or ray://host:port",
            )
        engine = connect(address)
        try:
            cluster, names = engine.cluster_id(), [member.capacity.node for member in engine.members()]
        finally:
            engine.close()
        notes = {note.node: note for note in self.store.node_notes(cluster)}
        known = sorted({*names, *notes})
        found = [name for name in known if name == node] or [name for name in known if name.startswith(node)]
        if len(found) != 1:
            raise NotFound(f"{len(found) or 'no'} nodes are called {node!r}", hint=f"there are {', '.join(known[:8])}")
        return notes.get(found[0], NodeNote(cluster=cluster, node=found[0]))

    def _on(self, note: NodeNote) -> Sequence[JobRecord]:
        """Who holds places on a node."""
        records = self.store.jobs_of(note.cluster, address=self.settings.address)
        return [
            each for each in records if each.state in ACTIVE and each.placement and note.node in each.placement.nodes
        ]


def _moves(record: JobRecord) -> bool:
    return record.losses + 1 < record.job.starts


def _with_menu(job: Job, path: str | Path) -> Job:
    shapes = parse.load_toml(Path(path), MenuFile).menu
    if not shapes:
        raise SpecError(f"{path} has no shape", hint="write one [[menu]] table for each")
    least = min(shapes, key=lambda shape: shape.ranks)
    try:
        return replace(job, menu=shapes, ranks=least.ranks, resources=least.resources)
    except ValueError as error:
        raise SpecError(f"{path}: {error}") from error
