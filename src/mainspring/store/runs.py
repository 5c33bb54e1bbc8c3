"""Runs: what was asked, by which process, and how it went.

    PENDING -> ADMITTED -> PLACED -> RUNNING -> SUCCEEDED | FAILED | CANCELLED
                    any of these -> PREEMPTED -> PENDING

In-process work that no scheduler admits goes from PENDING to RUNNING directly.
"""

import functools
import platform
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from sqlalchemy import Row, bindparam, insert, select, update

from mainspring.spec import TERMINAL, JobState, NotFound, RunRecord, SpecError, Unavailable
from mainspring.store.catalogue import Catalogue
from mainspring.store.database import edges, insert_or_update, runs
from mainspring.store.parse import read_json, to_json
from mainspring.store.process import Owner, is_gone, this_process

NEXT: Mapping[JobState, frozenset[JobState]] = {
    "PENDING": frozenset({"ADMITTED", "RUNNING", "FAILED", "CANCELLED"}),
    "ADMITTED": frozenset({"PLACED", "PREEMPTED", "FAILED", "CANCELLED"}),
    "PLACED": frozenset({"RUNNING", "PREEMPTED", "FAILED", "CANCELLED"}),
    "RUNNING": frozenset({"SUCCEEDED", "PREEMPTED", "FAILED", "CANCELLED"}),
    "PREEMPTED": frozenset({"PENDING", "FAILED", "CANCELLED"}),
    "SUCCEEDED": frozenset(),
    "FAILED": frozenset(),
    "CANCELLED": frozenset(),
}
LIBRARIES = ("torch", "ray", "transformers", "daft", "pylance", "lancedb", "onnxruntime", "numpy", "sqlalchemy")
COLUMNS = tuple(field.name for field in fields(RunRecord))
BY_ID = select(runs).where(runs.c.workspace == bindparam("of"), runs.c.id == bindparam("wanted"))
UPDATE = update(runs).where(runs.c.id == bindparam("wanted"))
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RunLog(Catalogue):
    """Record runs of this workspace and what they read."""

    def start_run(
        self,
        kind: str,
        name: str,
        *,
        config: Mapping[str, Any],
        code: str = "",
        seed: int = 0,
        inputs: Sequence[str] = (),
    ) -> RunRecord:
        """Record a new run in state PENDING, with this process's environment, and emit `run.state`."""
        now = time.time()
        record = RunRecord(
            id=f"{kind}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(5)}",
            workspace=self.workspace,
            kind=kind,
            name=name,
            state="PENDING",
            config_json=to_json(config),
            environment_json=_environment(),
            code=f"mainspring {_version('mainspring')}" + (f", {code}" if code else ""),
            seed=seed,
            created_s=now,
        )
        with self.transaction() as connection:
            connection.execute(insert(runs), {**_columns(record), "owner_json": to_json(this_process())})
            for ref in inputs:
                self._connect(record.id, ref, "input")
            self.emit("run.state", record.id, {"state": "PENDING", "kind": kind, "name": name})
        return record

    def record_input(self, run_id: str, ref: str) -> None:
        """Record that the run read the artifact `ref`."""
        with self.transaction():
            self._connect(self.run(run_id).id, ref, "input")

    def _connect(self, run_id: str, ref: str, role: Literal["input", "output"]) -> None:
        values = {"run": run_id, "ref": self.resolve(ref).ref, "role": role}
        with self.transaction() as connection:
            insert_or_update(connection, edges, key=tuple(values), values=values)

    def set_run_state(self, run_id: str, state: JobState, reason: str = "") -> RunRecord:
        """Move a run along its state machine; repeating its present state changes nothing.

        The process that reports RUNNING becomes the run's owner. Raises `SpecError` for an illegal transition.
        """
        if state not in get_args(JobState):
            raise SpecError(f"{state!r} is not a job state", hint="one of " + ", ".join(get_args(JobState)))
        with self.transaction() as connection:
            before = self.run(run_id)
            if before.state == state:
                return before
            if state not in NEXT[before.state]:
                legal = ", ".join(sorted(NEXT[before.state])) or "nothing: it has ended"
                raise SpecError(f"run {run_id} is {before.state} and cannot become {state}", hint=f"legal: {legal}")
            values: dict[str, Any] = {"state": state, "reason": reason}
            if state == "RUNNING":
                values |= {"started_s": before.started_s or time.time(), "owner_json": to_json(this_process())}
            if state in TERMINAL:
                values["ended_s"] = time.time()
            connection.execute(UPDATE, {"wanted": before.id, **values})
            self.emit(
                "run.state", before.id, {"state": state, "kind": before.kind, "name": before.name, "reason": reason}
            )
            return replace(before, **{name: values[name] for name in values if name in COLUMNS})

    def run(self, run_id: str) -> RunRecord:
        """The run called `run_id`; an unambiguous beginning or end of the id is enough."""
        with self.read() as connection:
            row = connection.execute(BY_ID, {"of": self.workspace, "wanted": run_id}).one_or_none()
            if row is not None:
                return _record(row)
            mine = select(runs).where(runs.c.workspace == self.workspace)
            near = runs.c.id.startswith(run_id, autoescape=True) | runs.c.id.endswith(run_id, autoescape=True)
            rows = connection.execute(mine.where(near).limit(3)).all() if run_id else []
        if len(rows) == 1:
            return _record(rows[0])
        if rows:
            raise SpecError(f"{run_id!r} is the beginning or end of several runs", hint="give more of the id")
        raise NotFound(f"no run {run_id!r} in workspace {self.workspace!r}", hint="list them with `mainspring ps`")

    def runs(self, kind: str | None = None, state: JobState | None = None, limit: int = 100) -> tuple[RunRecord, ...]:
        """Runs of this workspace, newest first."""
        query = select(runs).where(runs.c.workspace == self.workspace)
        if kind is not None:
            query = query.where(runs.c.kind == kind)
        if state is not None:
            query = query.where(runs.c.state == state)
        with self.read() as connection:
            rows = connection.execute(query.order_by(runs.c.created_s.desc(), runs.c.id).limit(limit)).all()
        return tuple(_record(row) for row in rows)

    def run_dir(self, run_id: str) -> Path:
        """The run's folder for logs and metrics, made when it is missing."""
        if not RUN_ID.fullmatch(run_id):
            raise SpecError(f"{run_id!r} is not a run id")
        folder = self.home / "runs" / run_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                f"cannot make {folder}: {error.strerror}", hint="free some disk space, or set MAINSPRING_HOME"
            ) from error
        return folder

    def dead_runs(self) -> tuple[RunRecord, ...]:
        """Runs that have not ended although the process that ran them, on this machine, is gone."""
        query = select(runs).where(runs.c.workspace == self.workspace, runs.c.state.not_in(sorted(TERMINAL)))
        with self.read() as connection:
            rows = connection.execute(query).all()
        return tuple(_record(row) for row in rows if is_gone(read_json(row.owner_json, Owner)))

    def reap_dead_runs(self) -> tuple[RunRecord, ...]:
        """Mark `dead_runs()` FAILED and return them."""
        with self.transaction():
            return tuple(
                self.set_run_state(record.id, "FAILED", "the process that ran it is gone")
                for record in self.dead_runs()
            )


def _columns(record: RunRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in COLUMNS}


def _record(row: Row[Any]) -> RunRecord:
    return RunRecord(**{name: getattr(row, name) for name in COLUMNS})


@functools.cache
def _environment() -> str:
    found = {name: _version(name) for name in LIBRARIES}
    return to_json(
        {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "host": platform.node(),
            "libraries": {name: version for name, version in found.items() if version != "absent"},
        }
    )


@functools.cache
def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"
