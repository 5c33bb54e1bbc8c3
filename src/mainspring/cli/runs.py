"""`mainspring ps`, `logs`, `stop`: what is running, what it says, and ending it."""

from typing import Annotated

import typer

from mainspring.cli.completion import RunId
from mainspring.cli.output import ago, print_json, print_table
from mainspring.cli.session import AsJson, workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verbs."""
    cli.command("ps", epilog="Example: mainspring ps --all --kind train")(ps)
    cli.command("logs", epilog="Example: mainspring logs RUN --rank 0 --tail 50")(logs)
    cli.command("stop", epilog="Example: mainspring stop RUN")(stop)


def ps(
    context: typer.Context,
    kind: Annotated[str, typer.Option(help="Only runs of this kind, e.g. train.")] = "",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Ended runs too.")] = False,
    limit: Annotated[int, typer.Option("-n", help="How many at most.", min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    workspace = workspace_of(context)
    records = workspace.runs(kind=kind, active=not everything, limit=limit)
    if as_json:
        print_json(records)
        return
    rows = [(r.id, r.kind, r.name, r.state, ago(r.created_s), r.reason[:160]) for r in records]
    of = f" of kind {kind!r}" if kind else ""
    empty = f"no runs{of} yet" if everything else f"nothing{of} is running (mainspring ps --all shows ended runs)"
    print_table(("run", "kind", "name", "state", "age", "reason"), rows, empty=empty, drop=("kind", "name", "age"))
    newest = next((record for record in records if record.kind == "train"), None)
    if newest is not None and workspace.can_resume(newest.id):
        print(f"to go on from its last checkpoint: mainspring train --resume {newest.id}")


def logs(
    context: typer.Context,
    run: RunId,
    rank: Annotated[int | None, typer.Option(help="Only this rank's log.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", "-n", help="Only this many of its last lines.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a run said."""
    found = workspace_of(context).run(run)
    text = found.logs(rank, tail=tail)
    print_json({"run": found.id, "log": text}) if as_json else print(text)


def stop(context: typer.Context, run: RunId, as_json: AsJson = False) -> None:
    """Ask a run to stop, whichever process it belongs to."""
    found = workspace_of(context).run(run)
    ended = found.record.state if found.done else ""
    if not ended:
        found.stop()
    if as_json:
        print_json(found.record)
    else:
        print(f"{found.id} has ended already: {ended}" if ended else f"asked {found.id} to stop")
