"""Following a run: a bar with what it is doing and its latest loss; Ctrl-C stops the run, not only the bar."""

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from mainspring.spec import Cancelled, Unavailable

if TYPE_CHECKING:
    from mainspring.workspace import Run

POLL_S = 0.2
SAY_EVERY_S = 10.0
STOP_GRACE_S = 30.0


def follow(run: "Run", *, quiet: bool = False) -> Any:
    """Wait for `run` and return its result, drawing progress on stderr unless `quiet`."""
    try:
        if not quiet:
            _draw(run) if sys.stderr.isatty() else _tell(run)
        return run.result()
    except KeyboardInterrupt:
        return _stop(run, quiet=quiet)


def _stop(run: "Run", *, quiet: bool) -> Any:
    """End the run as asked by Ctrl-C; a second one, or work that does not listen, ends this process instead."""
    try:
        run.stop()
        if not quiet:
            print(f"stopping {run.id} (Ctrl-C again: at once)", file=sys.stderr)
        return run.result(STOP_GRACE_S)
    except (KeyboardInterrupt, Unavailable):
        run.abandon()
        print(f"left {run.id} without waiting for it", file=sys.stderr, flush=True)
        # Work on threads that do not listen would keep the interpreter alive; a local Ray's guard ends its ranks.
        os._exit(Cancelled.exit_code)


def _draw(run: "Run") -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    one_line = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        TextColumn("{task.fields[kind]}", markup=False),
        BarColumn(16),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False, table_column=one_line),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as bar:
        task = bar.add_task("", total=1.0, kind=run.record.kind)
        while not run.done:
            fraction, message = run.progress
            bar.update(task, completed=fraction, description=message)
            threading.Event().wait(POLL_S)
        fraction, message = run.progress
        bar.update(task, completed=1.0 if run.record.state == "SUCCEEDED" else fraction, description=message)


def _tell(run: "Run") -> None:
    """Without a terminal: a line when the message changes its first word, and every ten seconds."""
    last, said_s, kind = "", 0.0, run.record.kind
    while not run.done:
        fraction, message = run.progress
        word = message.partition(" ")[0]
        if message and (word != last or time.monotonic() - said_s > SAY_EVERY_S):
            last, said_s = word, time.monotonic()
            print(f"{kind} {fraction:4.0%} {message}", file=sys.stderr, flush=True)
        threading.Event().wait(POLL_S)
