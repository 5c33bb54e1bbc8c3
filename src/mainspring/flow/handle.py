"""`Run`: what every verb hands back, and how any process looks at work that another one does."""

import threading
import time
from typing import Any

from mainspring.flow import execution
from mainspring.flow.execution import Execution
from mainspring.spec import TERMINAL, Artifact, Cancelled, Failed, RunRecord, SpecError, Unavailable
from mainspring.store import Store

POLL_S = 0.5


class Run:
    """One piece of recorded work, of this process or another that shares the store."""

    def __init__(self, store: Store, run_id: str, live: Execution | None = None) -> None:
        self.store = store
        self.id = run_id
        self._live = live

    def __repr__(self) -> str:
        return f"Run({self.id!r})"

    @property
    def record(self) -> RunRecord:
        """What the store knows of it now."""
        return self.store.run(self.id)

    @property
    def done(self) -> bool:
        """Whether it has ended, well or badly."""
        return self._live.done if self._live else self.record.state in TERMINAL

    @property
    def progress(self) -> tuple[float, str]:
        """The latest fraction in [0, 1] and what it was doing."""
        return execution.read_progress(self.store.run_dir(self.id))

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the end and return what the verb makes; raises the error that ended it.

        Of a run of another process it is the last artifact that was published. Raises `Unavailable` when the work is
        still going on after `timeout_s` seconds.
        """
        if self._live:
            return self._live.result(timeout_s)
        self._wait(timeout_s)
        record = self.record
        if record.state == "CANCELLED":
            raise Cancelled(f"run {self.id} was stopped: {record.reason}", hint=f"mainspring logs {self.id}")
        if record.state == "FAILED":
            raise Failed(f"run {self.id} failed: {record.reason}", hint=f"mainspring logs {self.id}")
        return next(iter(self._made("output")), None)

    def logs(self, rank: int | None = None, *, tail: int | None = None) -> str:
        """What it said: the log of `rank`, or of the run itself and all its ranks; of each its last `tail` lines."""
        return execution.read_logs(self.store.run_dir(self.id), rank, tail=tail)

    def metrics(self, most: int | None = None) -> tuple[dict[str, float], ...]:
        """The time series it has written so far, one mapping a logged step; `most` of them, spread, when given."""
        return execution.read_metrics(self.store.run_dir(self.id), most=most)

    def stop(self) -> None:
        """Ask it to stop, wherever it runs; returns at once."""
        if self._live:
            self._live.stop()
        else:
            execution.request_stop(self.store, self.id)

    @property
    def ref(self) -> str:
        """The artifact it made, or the model it serves; `SpecError` while there is none."""
        found = self._made("input" if self.record.kind == "serve" else "output")
        if not found:
            raise SpecError(f"run {self.id} has made nothing yet", hint="wait for .result()")
        return found[0].ref

    def abandon(self) -> None:
        """Record it as stopped without waiting for it, if it is this process's own: before leaving at once."""
        if self._live:
            self._live.abandon()

    @property
    def cost(self) -> execution.Cost:
        """Seconds and joules so far."""
        return execution.cost_of(self.record, self.metrics(most=1))

    def _made(self, role: str) -> list[Artifact]:
        """What it read or wrote itself, newest first."""
        refs = {edge.ref for edge in self.store.lineage(self.id).edges if edge.run == self.id and edge.role == role}
        return sorted(map(self.store.resolve, refs), key=lambda made: (made.created_s, made.kind), reverse=True)

    def _wait(self, timeout_s: float | None) -> None:
        deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        waiting = threading.Event()
        while not self.done:
            self.store.reap_dead_runs()
            if deadline is not None and time.monotonic() > deadline:
                raise Unavailable(f"run {self.id} is still {self.record.state} after {timeout_s} s")
            waiting.wait(POLL_S)
