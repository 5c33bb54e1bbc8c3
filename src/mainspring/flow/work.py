"""A step at work, on a thread of its own: it calls the step's function and tells the conductor how it goes.

The thread decides nothing and records nothing but tracebacks; all it says goes through one queue. So a step that will
not stop can be left behind, and what it says later is not heard.
"""

import logging
import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from mainspring.flow.check import Checked
from mainspring.flow.execution import LOG_FILE
from mainspring.spec import Cancelled, MainspringError, SpecError
from mainspring.store import Store

BACKOFF_MAX_S = 60.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Report:
    """What a step's thread tells the conductor."""

    name: str
    kind: Literal["progress", "retry", "done"]
    fraction: float = 0.0
    message: str = ""
    attempt: int = 1
    value: Any = None
    failure: BaseException | None = None


@dataclass(slots=True)
class Work:
    """A step's own thread."""

    checked: Checked
    given: dict[str, Any]
    run: str
    store: Store
    reports: queue.SimpleQueue[Report]
    stop: threading.Event

    def attempt(self) -> None:
        """Call the function until it succeeds or has no retries left, and report."""
        node = self.checked.node
        available = {"store": self.store, "run": self.run}
        failure: BaseException | None = None
        for attempt in range(1, node.options.retries + 2):
            injected = {**available, "progress": self._progress(attempt)}
            try:
                value = node.call(**self.given, **{name: injected[name] for name in self.checked.injected})
            except BaseException as error:  # noqa: BLE001  a step is the user's code, and the conductor waits for a word
                failure = error
            else:
                self.reports.put(Report(node.name, "done", value=value, attempt=attempt))
                return
            self._keep_traceback(failure, attempt)
            # A request that is wrong stays wrong; only what may pass is tried again.
            if isinstance(failure, SpecError | Cancelled) or not isinstance(failure, Exception):
                break
            if attempt <= node.options.retries:
                pause_s = min(node.options.backoff_s * 2 ** (attempt - 1), BACKOFF_MAX_S)
                message = f"{told(failure)}; again in {pause_s:g} s"
                self.reports.put(Report(node.name, "retry", message=message, attempt=attempt + 1))
                if self.stop.wait(pause_s):
                    break
        self.reports.put(Report(node.name, "done", failure=failure))

    def _progress(self, attempt: int) -> Callable[[float, str], None]:
        def progress(fraction: float, message: str) -> None:
            if self.stop.is_set():
                raise Cancelled("the flow was stopped")
            report = Report(self.checked.node.name, "progress", attempt=attempt)
            self.reports.put(replace(report, fraction=fraction, message=message))

        return progress

    def _keep_traceback(self, failure: BaseException, attempt: int) -> None:
        text = "".join(traceback.format_exception(failure))
        try:
            with (self.store.run_dir(self.run) / LOG_FILE).open("a", encoding="utf-8", errors="replace") as sink:
                sink.write(f"attempt {attempt} of step {self.checked.node.name}\n{text}\n")
        except (OSError, MainspringError) as full:  # the conductor waits for a word from this thread, whatever happens
            log.warning("the log of a step is not whole", extra={"run": self.run, "reason": str(full)})


def told(error: BaseException) -> str:
    """An error in one line, with its type unless it is one of ours."""
    return str(error) if isinstance(error, MainspringError) else f"{type(error).__name__}: {error}"
