"""`mainspring why`: what a job waits for, and what would unblock it; each answer was tried on a copy of the books."""

from typing import Annotated

import typer

from mainspring.cli.gang import Cpus, Devices, Level, Model, Priority, Ranks, SceneFile, describe
from mainspring.cli.output import print_json, print_table
from mainspring.cli.session import AsJson, workspace_of
from mainspring.spec import SpecError, Why


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("why", epilog="Example: mainspring why --queue research --ranks 16 --devices 8")(why)


def why(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="The job; every one by default.")] = "",
    scene: SceneFile = "",
    queue: Annotated[str, typer.Option(help="The queue of a job that is described.")] = "",
    ranks: Ranks = 0,
    devices: Devices = 0.0,
    model: Model = None,
    cpus: Cpus = 0.0,
    priority: Priority = 0,
    level: Level = "",
    as_json: AsJson = False,
) -> None:
    """Say where a job runs or why it waits, and what would let it start; or what would happen to one that came now."""
    if job and ranks:
        raise SpecError(f"{job} is a job already, and --ranks describes another", hint="give one of them")
    asked = (
        describe(queue=queue, ranks=ranks, devices=devices, models=model, cpus=cpus, priority=priority, level=level)
        if ranks
        else job
    )
    found = workspace_of(context).why(asked, scene=scene)
    if as_json:
        print_json(found)
        return
    rows = [(each.gang, each.state, each.plan, ", ".join(each.nodes) or each.reason) for each in found]
    chosen = any(each.plan for each in found)
    columns = ("job", "state", "plan", "where or why") if chosen else ("job", "state", "where or why")
    print_table(columns, rows if chosen else [(a, b, d) for a, b, _, d in rows], empty="no job waits or runs")
    for each in found:
        _print_more(each)


def _print_more(found: Why) -> None:
    if found.ahead:
        print(f"{found.gang} has {found.ahead} of its queue before it")
    for unblock in found.unblocks:
        print(f"{found.gang} would start with {unblock}" if found.state == "waiting" else f"hint: {unblock}")
    for victim in found.victims:
        verb = "move" if victim.moved_to else "stop"
        print(f"{found.gang} would {verb} {victim.gang}, which loses {victim.lost_device_hours:.2f} device-hours")
