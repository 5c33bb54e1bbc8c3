"""`mainspring queue`: who waits, in which order, and why."""

import typer

from mainspring.cli.gang import SceneFile
from mainspring.cli.output import print_json, print_table
from mainspring.cli.session import AsJson, workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("queue", epilog="Example: mainspring queue --json")(queue)


def queue(context: typer.Context, scene: SceneFile = "", as_json: AsJson = False) -> None:
    """List the jobs that wait, queue by queue in the order of their turns, each with its reason."""
    found = workspace_of(context).queue(scene)
    if as_json:
        print_json(found)
        return
    rows = [(each.queue, str(each.position), each.gang, str(each.priority), each.asks, each.reason) for each in found]
    print_table(
        ("queue", "turn", "job", "priority", "asks for", "waits because"),
        rows,
        empty="nobody waits",
        drop=("priority", "asks for"),
    )
