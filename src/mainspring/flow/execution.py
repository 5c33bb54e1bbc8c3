"""One recorded piece of work on a thread of this process: started, followed, stopped, remembered.

Every verb of the workspace that takes longer than a glance runs as an `Execution`: the store knows it from before it
starts until after it ends, its latest progress and log are files in the run's folder (so that another process can
show them), and a request to stop may come from any process that shares the store.

Absent on purpose: queues and placement. Work that needs ranks submits a gang to `cluster` from inside its body.
"""

import errno
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mainspring.spec import TERMINAL, Cancelled, Failed, MainspringError, RunRecord, SpecError, Unavailable
from mainspring.store import Store

log = logging.getLogger(__name__)

STOP_POLL_S = 0.5
PROGRESS_FILE = "progress.json"
LOG_FILE = "run.log"
METRICS_FILE = "metrics.jsonl"
TAIL_BYTES = 256 << 10
LOG_BYTES = 8 << 20
WHOLE_BYTES = 2 << 20
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Execution:
    """A run of this process; `body(execution)` does the work and returns what `result` hands out."""

    def __init__(self, store: Store, record: RunRecord, body: Callable[["Execution"], Any]) -> None:
        self.store = store
        self.id = record.id
        self.folder: Path = store.run_dir(record.id)
        self._body = body
        self._value: Any = None
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"run-{record.id}", daemon=True)

    def start(self) -> "Execution":
        """Start the thread; returns itself."""
        self._thread.start()
        return self

    @property
    def done(self) -> bool:
        """Whether the work has ended, well or badly."""
        return self._done.is_set()

    def progress(self, fraction: float, message: str) -> None:
        """Note how far the work is; raises `Cancelled` when somebody asked it to stop."""
        if self._stop.is_set():
            raise Cancelled(f"run {self.id} was stopped at {message!r}")
        write_progress(self.folder, fraction, message)

    def stop(self) -> None:
        """Ask the work to end, which its next `progress` does; returns at once."""
        self._stop.set()

    def abandon(self) -> None:
        """Record the work as stopped without waiting for it: the last act of a process that leaves it behind."""
        if not self.done:
            self.store.set_run_state(self.id, "CANCELLED", "stopped, and not waited for")

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the end and return the body's value, or raise its error.

        Raises `Unavailable` when the work is still running after `timeout_s` seconds.
        """
        if not self._done.wait(timeout_s):
            raise Unavailable(f"run {self.id} is still running after {timeout_s} s")
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self) -> None:
        watcher = threading.Thread(target=self._watch_for_stop, name=f"stop-{self.id}", daemon=True)
        try:
            self.store.set_run_state(self.id, "RUNNING")
            watcher.start()
            self._value = self._body(self)
            self.store.set_run_state(self.id, "SUCCEEDED")
        except Cancelled as error:
            self._end("CANCELLED", error)
        except MainspringError as error:
            # A body that fails because what it waited for was cancelled was itself stopped.
            self._end("CANCELLED" if self._stop.is_set() else "FAILED", error)
        except BaseException as error:  # noqa: BLE001 the edge of a worker thread: recorded, then raised in result()
            self._end("FAILED", self._explain(error))
        finally:
            self._done.set()

    def _explain(self, error: BaseException) -> MainspringError:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            told = f"no room to write {error.filename or self.store.home}: {error.strerror}"
            failure: MainspringError = Unavailable(told, hint="free some disk space, then run it again")
        else:
            failure = Failed(f"{type(error).__name__}: {error}", hint=f"mainspring logs {self.id}")
        failure.__cause__ = error
        return failure

    def _end(self, state: Any, error: MainspringError) -> None:
        self._error = error
        log.info("run ended", extra={"run": self.id, "state": state, "reason": str(error)})
        try:
            with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
        except OSError as full:
            log.info("the log of a run is not whole", extra={"run": self.id, "reason": str(full)})
        try:
            self.store.set_run_state(self.id, state, str(error))
        except MainspringError as unwritten:
            # A full disk. The caller hears `error`; the record is closed when this process is seen to be gone.
            log.info("the end of a run is not recorded", extra={"run": self.id, "reason": str(unwritten)})

    def _watch_for_stop(self) -> None:
        while not self._done.wait(STOP_POLL_S):
            if not self._stop.is_set() and is_stop_requested(self.store, self.id):
                self.stop()


def start(
    store: Store,
    body: Callable[[Execution], Any],
    *,
    kind: str,
    name: str,
    config: Mapping[str, Any],
    code: str = "",
    inputs: Sequence[str] = (),
) -> Execution:
    """Record a run of `kind` and start `body` on a thread."""
    seed = config.get("seed", 0)
    record = store.start_run(
        kind, name, config=config, code=code, seed=seed if isinstance(seed, int) else 0, inputs=inputs
    )
    return Execution(store, record, body).start()


def request_stop(store: Store, run_id: str) -> RunRecord:
    """Ask the process that owns `run_id` to stop it; a run that has ended is returned as it is."""
    record = store.run(run_id)
    if record.state not in TERMINAL:
        store.emit("run.stop", record.id, {})
    return record


def is_stop_requested(store: Store, run_id: str) -> bool:
    """Whether anybody asked for the run's end; a store that does not answer now is asked again later."""
    try:
        return bool(store.events(kind="run.stop", subject=run_id, limit=1))
    except Unavailable as error:
        log.warning("cannot ask whether a run is to stop", extra={"run": run_id, "reason": str(error)})
        return False


def write_progress(folder: Path, fraction: float, message: str) -> None:
    """Replace the run's progress file in one step, so that a reader never sees half of one."""
    temporary = folder / f".{PROGRESS_FILE}"
    temporary.write_text(json.dumps({"fraction": fraction, "message": message, "time_s": time.time()}), "utf-8")
    temporary.replace(folder / PROGRESS_FILE)


def read_progress(folder: Path) -> tuple[float, str]:
    """The latest `(fraction, message)` a run reported; `(0.0, "")` before the first."""
    path = folder / PROGRESS_FILE
    if not path.exists():
        return 0.0, ""
    noted = json.loads(path.read_text("utf-8"))
    return float(noted["fraction"]), str(noted["message"])


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run has used so far: wall seconds, and joules as its meter or estimate saw them."""

    seconds: float
    joules: float


def cost_of(record: RunRecord, metrics: Sequence[Mapping[str, float]]) -> Cost:
    """Cost of a run from its record and the last line of its metrics."""
    end_s = record.ended_s or time.time()
    joules = float(metrics[-1].get("joules", 0.0)) if metrics else 0.0
    return Cost(seconds=end_s - record.started_s if record.started_s else 0.0, joules=joules)


def read_metrics(folder: Path, *, most: int | None = None) -> tuple[dict[str, float], ...]:
    """Every complete line of the run's `metrics.jsonl`; a line still being written is left for the next call.

    With `most` at most that many, evenly spread and always the last one; of a long file little more than them is read.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return ()
    with path.open("rb") as file:
        size = path.stat().st_size
        lines = file.read(size).split(b"\n")[:-1] if most is None or size <= WHOLE_BYTES else _spread(file, size, most)
    if most is not None and len(lines) > most:
        lines = [lines[len(lines) * (index + 1) // most - 1] for index in range(most)]
    return tuple(json.loads(line) for line in lines if line)


def _spread(file: BinaryIO, size: int, most: int) -> list[bytes]:
    """The first whole line behind each of `most` places of a file, and its last one."""
    found: dict[int, bytes] = {}
    for index in range(most):
        file.seek(size * index // most)
        if index:
            file.readline()  # the rest of a line
        line = file.readline()
        if line.endswith(b"\n") and file.tell() <= size:
            found[file.tell()] = line
    start = max(0, size - TAIL_BYTES)
    file.seek(start)
    end = file.read(size - start).rpartition(b"\n")[0]
    found[start + len(end) + 1] = end.rpartition(b"\n")[2]
    return [found[place] for place in sorted(found)]


def read_logs(folder: Path, rank: int | None = None, *, tail: int | None = None) -> str:
    """The log of one rank, or of the run itself and all its ranks, each under its file's name.

    With `tail`, at most that many of the last lines of each. Of a log beyond `LOG_BYTES` only the end is read, after a
    line that says so.
    """
    if rank is not None:
        path = folder / f"rank-{rank}.log"
        if not path.exists():
            known = ", ".join(sorted(found.stem.removeprefix("rank-") for found in folder.glob("rank-*.log")))
            raise SpecError(f"run {folder.name} has no log of rank {rank}", hint=f"ranks with logs: {known or 'none'}")
        return _read_text(path, tail)
    parts = [path for path in sorted(folder.glob("*.log")) if path.stat().st_size]
    return "\n".join(f"== {path.name}\n{_read_text(path, tail)}" for path in parts)


def _read_text(path: Path, tail: int | None) -> str:
    size, limit = path.stat().st_size, LOG_BYTES if tail is None else TAIL_BYTES
    with path.open("rb") as file:
        file.seek(max(0, size - limit))
        lines = file.read(limit).decode("utf-8", "replace").splitlines(keepends=True)
    if tail is not None:
        return "".join(lines[-tail:])
    left_out = [f"... the first {size - limit:,} bytes are in {path}\n"] if size > limit else []
    return "".join(left_out + lines)
