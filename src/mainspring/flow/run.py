"""Run a graph: independent steps side by side, finished ones remembered, every one recorded.

The calling thread decides and records, one thread per running step computes; a step that will not stop cannot keep the
flow from ending, because nothing it returns later is recorded. A step's success, its remembered result and
its event are one commit, so after kill -9 it has either happened or not. The result of a step is plain data,
specs, paths and artifacts; anything else has to be published as an artifact and returned as that.
"""

import logging
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from types import FrameType
from typing import Any, Literal

from mainspring.flow.check import Checked, check_graph, convert
from mainspring.flow.execution import STOP_POLL_S, is_stop_requested, write_progress
from mainspring.flow.graph import Graph
from mainspring.flow.key import Digests, action_key, decode, encode
from mainspring.flow.node import Output, Param, inside, references, replace_references
from mainspring.flow.work import Report, Work, told
from mainspring.spec import (
    Artifact,
    Cancelled,
    Failed,
    JobState,
    MainspringError,
    NotFound,
    RunRecord,
    SpecError,
    spec,
)
from mainspring.store import Store

log = logging.getLogger(__name__)

StepState = Literal["RUNNING", "SUCCEEDED", "CACHED", "FAILED", "SKIPPED", "CANCELLED"]
GRACE_S = 5.0
"""How long a cancelled flow waits for its running steps to notice."""
PROGRESS_S = 1.0
"""Progress is recorded at most this often per step; `on_event` hears all of it."""


@spec
class FlowEvent:
    """What the console draws and the terminal prints: a step changed its state or got further."""

    step: str
    state: StepState
    fraction: float = 0.0
    message: str = ""
    run: str = ""
    seconds: float = 0.0
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """How one step ended. Not a spec: it holds the live value and exception and never leaves the process."""

    name: str
    state: StepState
    value: Any = None
    run: str = ""
    seconds: float = 0.0
    failure: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowResult:
    """How a flow ended, step by step in the order of the graph."""

    run: RunRecord
    state: JobState
    steps: tuple[StepResult, ...]

    def step(self, name: str) -> StepResult:
        """The result of one step."""
        for found in self.steps:
            if found.name == name:
                return found
        raise NotFound(f"no step {name!r}", hint="steps: " + ", ".join(found.name for found in self.steps))

    def check(self) -> "FlowResult":
        """This result if the flow succeeded; otherwise raise an error with the step's name, its cause and its hint."""
        for found in self.steps:
            if found.state == "FAILED" and found.failure is not None:
                cause = found.failure
                kind = type(cause) if isinstance(cause, MainspringError) else Failed
                raise kind(
                    f"step {found.name} failed: {told(cause)}",
                    hint=getattr(cause, "hint", "") or f"see `mainspring logs {found.run}`",
                ) from cause
        if self.state == "CANCELLED":
            raise Cancelled(f"flow {self.run.name} was stopped", hint="run it again: finished steps are remembered")
        return self


def run_graph(
    graph: Graph,
    store: Store,
    *,
    params: Mapping[str, Any] | None = None,
    workers: int = 2,
    on_event: Callable[[FlowEvent], None] | None = None,
    stop: threading.Event | None = None,
) -> FlowResult:
    """Run what is stale in `graph`, at most `workers` steps at a time.

    Raises `SpecError` before anything starts when the graph, its arguments or `params` are wrong. A failing step
    is told in the result (`check()` raises it). Ctrl-C, or setting `stop`, ends the flow as CANCELLED.
    """
    if workers < 1:
        raise SpecError(f"workers must be at least 1, got {workers}")
    steps = check_graph(graph, params or {})
    store.reap_dead_runs()
    config = {**graph.describe(), "values": dict(params or {}), "needs": {s.node.name: s.needs for s in steps}}
    record = store.start_run("flow", graph.name, config=config)
    store.set_run_state(record.id, "RUNNING")
    conductor = _Conductor(
        store=store,
        steps={checked.node.name: checked for checked in steps},
        record=record,
        workers=workers,
        on_event=on_event or (lambda _: None),
        stop=stop or threading.Event(),
        waits=TopologicalSorter({checked.node.name: checked.needs for checked in steps}),
    )
    with _interruptible(conductor.stop):
        return conductor.conduct()


@contextmanager
def _interruptible(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C set `stop`, so that it cannot fall between two halves of a record; a second one raises.

    Where somebody else handles the signal already, or outside the main thread, nothing is changed.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(slots=True)
class _Running:
    run: str
    key: str
    since: float = field(default_factory=time.monotonic)
    recorded_s: float = -PROGRESS_S
    attempt: int = 1


@dataclass(slots=True)
class _Conductor:
    """The state of one flow while it runs. Touched by the calling thread only, but for `reports` and `stop`."""

    store: Store
    steps: Mapping[str, Checked]
    record: RunRecord
    workers: int
    on_event: Callable[[FlowEvent], None]
    stop: threading.Event
    waits: TopologicalSorter[str]
    digests: Digests = field(default_factory=Digests)
    results: dict[str, StepResult] = field(default_factory=dict)
    ready: deque[tuple[Checked, dict[str, Any], str]] = field(default_factory=deque)
    running: dict[str, _Running] = field(default_factory=dict)
    reports: queue.SimpleQueue[Report] = field(default_factory=queue.SimpleQueue)
    unwritten: list[FlowEvent] = field(default_factory=list)
    asked_s: float = 0.0

    def conduct(self) -> FlowResult:
        """Run to the end, whatever that is, and record it."""
        try:
            self._loop()
        except KeyboardInterrupt:
            self.stop.set()
        except BaseException as error:
            self.stop.set()
            self._abandon()
            self.store.set_run_state(self.record.id, "FAILED", told(error))
            raise
        if self.stop.is_set():
            self._wind_down()
        return self._finish()

    def _loop(self) -> None:
        self.waits.prepare()
        while not self.stop.is_set():
            self._advance()
            self._write()
            if not self.running:
                return
            self._hear(0.2)
            self._heed()

    def _heed(self) -> None:
        """Stop when another process asked for it."""
        if time.monotonic() - self.asked_s > STOP_POLL_S:
            self.asked_s = time.monotonic()
            if is_stop_requested(self.store, self.record.id):
                self.stop.set()

    def _advance(self) -> None:
        """Settle every step that can be settled without running, and start as many others as there are workers."""
        while (found := self.waits.get_ready()) and not self.stop.is_set():
            for name in found:
                needed = (self.results[other].state for other in self.steps[name].needs)
                if all(state in ("SUCCEEDED", "CACHED") for state in needed):
                    self._prepare(self.steps[name])
                else:
                    self._settle(StepResult(name=name, state="SKIPPED"))
        while self.ready and len(self.running) < self.workers and not self.stop.is_set():
            self._start(*self.ready.popleft())

    def _prepare(self, checked: Checked) -> None:
        """Work out a step's arguments and key; settle it from memory or put it in line."""
        name = checked.node.name
        try:
            given = self._given(checked)
            key = action_key(checked, given, self.digests) if checked.node.options.cache else ""
        except MainspringError as error:
            self._settle(StepResult(name=name, state="FAILED", failure=error), message=told(error))
            return
        if key and (remembered := self._recall(key)) is not None:
            value, run = remembered
            self._settle(StepResult(name=name, state="CACHED", value=value, run=run))
        else:
            self.ready.append((checked, given, key))

    def _given(self, checked: Checked) -> dict[str, Any]:
        """The step's arguments with every reference replaced and every value of the annotated type."""
        given: dict[str, Any] = {}
        for name, value in checked.given.items():
            where = f"steps.{checked.node.name}.with.{name}"
            found = replace_references(value, lambda reference, where=where: self._output(reference, where))
            hint = checked.hints.get(name)
            if hint is Artifact and isinstance(found, str):
                found = self.store.resolve(found)
            given[name] = found if found is value or hint is None else convert(found, hint, where)
        return given

    def _output(self, reference: Output | Param, where: str) -> Any:
        assert isinstance(reference, Output)  # parameters were replaced when the graph was checked
        value = self.results[reference.step].value
        for key in reference.path:
            if not isinstance(value, Mapping) or key not in value:
                known = ", ".join(map(str, value)) if isinstance(value, Mapping) else "none"
                raise SpecError(f"{where}: what {reference.step} returned has no {key!r}", hint=f"keys: {known}")
            value = value[key]
        return value

    def _recall(self, key: str) -> tuple[Any, str] | None:
        remembered = self.store.recall(f"flow.step:{key}")
        if remembered is None:
            return None
        try:
            return decode(remembered["value"], self.store, self.digests), remembered["run"]
        except NotFound:
            return None  # what the step made is gone or changed, so the step is stale

    def _start(self, checked: Checked, given: dict[str, Any], key: str) -> None:
        node = checked.node
        config = {"flow": self.record.id, "step": node.name, "call": node.entry, "key": key}
        config["with"] = encode(given, self.digests)
        sources = [given, *(self._output(found, node.name) for found in references(checked.given))]
        refs = sorted({artifact.ref for artifact in inside(sources, Artifact)})
        with self.store.transaction():
            run = self.store.start_run("step", node.name, config=config, inputs=refs).id
            self.store.set_run_state(run, "RUNNING")
            self._tell(FlowEvent(step=node.name, state="RUNNING", run=run))
            self._write()
        self.running[node.name] = _Running(run=run, key=key)
        work = Work(checked, given, run=run, store=self.store, reports=self.reports, stop=self.stop)
        threading.Thread(target=work.attempt, name=f"step-{node.name}", daemon=True).start()

    def _hear(self, timeout_s: float) -> None:
        try:
            report = self.reports.get(timeout=timeout_s)
        except queue.Empty:
            return
        running = self.running[report.name]
        if report.kind == "done":
            self._record(report, running)
            return
        running.attempt = report.attempt
        event = FlowEvent(
            step=report.name,
            state="RUNNING",
            fraction=report.fraction,
            message=report.message,
            run=running.run,
            seconds=time.monotonic() - running.since,
            attempt=report.attempt,
        )
        if report.kind == "retry" or event.seconds - running.recorded_s >= PROGRESS_S:
            running.recorded_s = event.seconds
            self._note(event)
            self._tell(event)
        else:
            self.on_event(event)

    def _note(self, event: FlowEvent) -> None:
        """Leave the step's progress where whoever looks at its run finds it."""
        try:
            write_progress(self.store.run_dir(event.run), event.fraction, event.message)
        except (OSError, MainspringError) as full:  # a step goes on when nobody can see how far it is
            log.warning("progress is not noted", extra={"run": event.run, "reason": str(full)})

    def _record(self, report: Report, running: _Running) -> None:
        """Commit how a step ended."""
        name, failure, encoded = report.name, report.failure, None
        if failure is None:
            try:
                encoded = encode(report.value, self.digests)
            except MainspringError as error:
                hint = "return plain data, or publish an artifact and return that"
                failure = SpecError(f"the result of {name} cannot be remembered: {error}", hint=hint)
        state: Literal["SUCCEEDED", "FAILED", "CANCELLED"] = "SUCCEEDED"
        if failure is not None:
            stopped = isinstance(failure, Cancelled | KeyboardInterrupt)
            state = "CANCELLED" if stopped else "FAILED"
        result = StepResult(
            name=name,
            state=state,
            value=report.value,
            run=running.run,
            seconds=time.monotonic() - running.since,
            failure=failure,
        )
        message = "" if failure is None else told(failure)
        with self.store.transaction():
            self.store.set_run_state(running.run, state, message)
            if state == "SUCCEEDED" and running.key:
                remembered = {"value": encoded, "run": running.run, "seconds": result.seconds}
                self.store.remember(f"flow.step:{running.key}", remembered)
            self._settle(result, message=message)
            self._write()
        del self.running[name]
        if state == "CANCELLED":
            self.stop.set()

    def _settle(self, result: StepResult, message: str = "") -> None:
        self.results[result.name] = result
        if self.waits.is_active() and result.state != "CANCELLED":
            self.waits.done(result.name)
        attempt = self.running[result.name].attempt if result.name in self.running else 1
        self._tell(
            FlowEvent(
                step=result.name,
                state=result.state,
                fraction=1.0 if result.state in ("SUCCEEDED", "CACHED") else 0.0,
                message=message,
                run=result.run,
                seconds=result.seconds,
                attempt=attempt,
            )
        )

    def _tell(self, event: FlowEvent) -> None:
        self.unwritten.append(event)
        self.on_event(event)

    def _write(self) -> None:
        """Record the events told since the last time in one commit."""
        if self.unwritten:
            with self.store.transaction():
                for event in self.unwritten:
                    self.store.emit("flow.step", self.record.id, _as_data(event))
            self.unwritten.clear()

    def _wind_down(self) -> None:
        """Give running steps a moment to notice, keep what they still finish, and leave the rest behind."""
        deadline = time.monotonic() + GRACE_S
        if self.running:
            log.warning("stopping, running steps are waited for; Ctrl-C again leaves them")
        try:
            while self.running and time.monotonic() < deadline:
                self._hear(0.1)
        except KeyboardInterrupt:
            log.warning("stopped twice, not waiting for running steps")
        self._abandon()
        for name in self.steps:
            if name not in self.results:
                self._settle(StepResult(name=name, state="CANCELLED"))
        self._write()

    def _abandon(self) -> None:
        for name, running in list(self.running.items()):
            self.store.set_run_state(running.run, "CANCELLED", "the flow was stopped")
            self._settle(StepResult(name=name, state="CANCELLED", run=running.run))
            del self.running[name]

    def _finish(self) -> FlowResult:
        results = tuple(self.results[name] for name in self.steps)
        failed = [result for result in results if result.state == "FAILED"]
        state: JobState = "SUCCEEDED"
        reason = ""
        if failed:
            state = "FAILED"
            reason = "; ".join(f"step {r.name}: {told(r.failure)}" for r in failed if r.failure is not None)
        if any(result.state == "CANCELLED" for result in results):
            state, reason = "CANCELLED", "stopped"
        return FlowResult(run=self.store.set_run_state(self.record.id, state, reason), state=state, steps=results)


def _as_data(event: FlowEvent) -> dict[str, object]:
    return {
        "step": event.step,
        "state": event.state,
        "fraction": event.fraction,
        "message": event.message,
        "run": event.run,
        "seconds": event.seconds,
        "attempt": event.attempt,
    }
