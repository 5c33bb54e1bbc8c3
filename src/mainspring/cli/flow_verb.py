"""`mainspring run`: a flow file, step by step, repeating nothing that is still fresh."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from mainspring.cli.follow import SAY_EVERY_S
from mainspring.cli.output import print_json, print_table
from mainspring.cli.session import AsJson, DryRun, Overrides, local_workspace_of
from mainspring.spec import Cancelled, MainspringError

if TYPE_CHECKING:
    from mainspring.flow.run import FlowEvent, FlowResult
    from mainspring.workspace import OnEvent

MARKS = {"RUNNING": "…", "SUCCEEDED": "✓", "CACHED": "=", "FAILED": "✗", "SKIPPED": "-", "CANCELLED": "-"}


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("run", epilog="Example: mainspring run flow.toml --watch -s docs=./docs")(run)


def run(
    context: typer.Context,
    flow: Annotated[str, typer.Argument(metavar="FLOW", help="A flow file in TOML.")],
    overrides: Overrides = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep running; rerun what a changed document makes stale.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the steps of FLOW that are not fresh, in parallel where the graph allows."""
    workspace = local_workspace_of(context)
    given = overrides or ()
    if dry_run:
        steps = workspace.flow_steps(flow, overrides=given)
        print_json(steps) if as_json else print_table(("step", "calls", "after"), steps)
        return
    with drawn(quiet=as_json) as on_event:
        if not watch:
            show(workspace.flow(flow, overrides=given, on_event=on_event), as_json=as_json)
            return
        for result in workspace.watch_flow(flow, overrides=given, on_event=on_event):
            try:
                if isinstance(result, MainspringError):
                    raise result
                show(result, as_json=as_json)
            except Cancelled:
                raise
            except MainspringError as error:  # the next change may mend it
                print(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
            print("waiting for a change (Ctrl-C stops)", file=sys.stderr, flush=True)


def show(result: "FlowResult", *, as_json: bool) -> None:
    """Print how each step ended; raises the error of a step that failed."""
    rows = [(step.name, step.state, step.seconds, getattr(step.value, "ref", step.value)) for step in result.steps]
    if as_json:
        keys = ("step", "state", "seconds", "value")
        print_json({"run": result.run, "steps": [dict(zip(keys, row, strict=True)) for row in rows]})
    else:
        rows = [(name, state, f"{seconds:.1f} s", str(value or "")[:80]) for name, state, seconds, value in rows]
        print_table(("step", "state", "time", "made"), rows, title=f"{result.run.id}: {result.state}")
    result.check()


@contextmanager
def drawn(*, quiet: bool = False) -> Iterator["OnEvent"]:
    """Draw the events of a flow on stderr: a bar per step on a terminal, a line per change elsewhere."""
    if quiet:
        yield lambda _event: None
    elif not sys.stderr.isatty():
        yield _Teller()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        columns = (
            TextColumn("{task.fields[mark]} {task.fields[step]:<20}", markup=False),
            BarColumn(16),
            TimeElapsedColumn(),
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
        )
        with Progress(*columns, console=Console(stderr=True), expand=True) as bars:
            rows: dict[str, int] = {}

            def draw(event: "FlowEvent") -> None:
                if event.step not in rows:
                    rows[event.step] = bars.add_task("", total=1.0, step=event.step, mark="…")
                ended = event.state in ("SUCCEEDED", "CACHED")
                bars.update(
                    rows[event.step],  # pyright: ignore[reportArgumentType]
                    completed=1.0 if ended else event.fraction,
                    mark=MARKS[event.state],
                    description="remembered" if event.state == "CACHED" else event.message,
                )
                if ended:
                    bars.stop_task(rows[event.step])  # pyright: ignore[reportArgumentType]

            yield draw


class _Teller:
    """Without a terminal: a line when a step ends, and every ten seconds what a running one is doing."""

    def __init__(self) -> None:
        self._said_s: dict[str, float] = {}

    def __call__(self, event: "FlowEvent") -> None:
        how = str(event.state)
        if event.state == "RUNNING":
            now = time.monotonic()
            if now - self._said_s.setdefault(event.step, now) < SAY_EVERY_S:
                return
            self._said_s[event.step] = now
            how = f"{event.fraction:.0%}"
        print(f"{MARKS[event.state]} {event.step} {how} {event.message}".rstrip(), file=sys.stderr, flush=True)
