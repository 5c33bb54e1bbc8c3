"""Following a run: a bar with what it is doing and its latest loss; Ctrl-C stops the run, not only the bar."""

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.workspace import Run

POLL_S = 0.2
STOP_GRACE_S = 30.0


def follow(run: "Run", *, quiet: bool = False) -> Any:
    """Wait for `run` and return its result, drawing progress on stderr unless `quiet`."""
    try:
        if quiet:
            return run.result()
        if sys.stderr.isatty():
            _draw(run)
        else:
            _tell(run)
        return run.result()
    except KeyboardInterrupt:
        run.stop()
        print(f"stopping {run.id} ...", file=sys.stderr)
        return run.result(STOP_GRACE_S)


def _draw(run: "Run") -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.fields[kind]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task("", total=1.0, kind=run.record.kind)
        while not run.done:
            fraction, message = run.progress
            bar.update(task, completed=fraction, description=message)
            threading.Event().wait(POLL_S)
        fraction, message = run.progress
        bar.update(task, completed=1.0 if run.record.state == "SUCCEEDED" else fraction, description=message)


def _tell(run: "Run") -> None:
    """Without a terminal: one line whenever the message changes its first word, so that logs stay readable."""
    last = ""
    while not run.done:
        fraction, message = run.progress
        if message.partition(" ")[0] != last:
            last = message.partition(" ")[0]
            print(f"{run.record.kind} {fraction:4.0%} {message}", file=sys.stderr, flush=True)
        threading.Event().wait(POLL_S)
