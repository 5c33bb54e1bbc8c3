"""`mainspring quota`: the tree of queues, what each is guaranteed and entitled to, and what it holds."""

from typing import Annotated

import typer

from mainspring.cli.gang import SceneFile
from mainspring.cli.output import print_json, print_table
from mainspring.cli.session import AsJson, workspace_of
from mainspring.spec import SpecError


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("quota", epilog="Example: mainspring quota quotas.toml --cluster cluster.toml")(quota)


def quota(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="Check this quota file in TOML, instead of showing who holds what.")] = "",
    cluster: Annotated[str, typer.Option(help="Check it against this cluster file, not the machines at hand.")] = "",
    scene: SceneFile = "",
    as_json: AsJson = False,
) -> None:
    """Show what every queue holds, waits for and is entitled to; of a quota file, the parts of all."""
    if cluster and not file:
        raise SpecError("a cluster file is for checking a quota file", hint="name the quota file too")
    workspace = workspace_of(context)
    found = workspace.shares(file, cluster=cluster) if file else workspace.usage(scene)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            "  " * part.depth + part.queue,
            str(part.weight),
            part.resource,
            f"{part.min:g}",
            f"{part.share:.4g}",
            "-" if part.max is None else f"{part.max:g}",
            f"{part.used:g}",
            f"{part.waiting:g}",
        )
        for part in found
    ]
    print_table(
        ("queue", "weight", "resource", "min", "share", "max", "used", "waiting"),
        rows,
        drop=("weight",),
    )
