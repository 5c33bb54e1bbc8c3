"""`mainspring quota`: the tree of queues, what each is guaranteed, and its part when everybody wants everything."""

from typing import Annotated

import typer

from mainspring.cli.output import print_json, print_table
from mainspring.cli.session import AsJson, local_workspace_of
from mainspring.spec import SpecError


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("quota")(quota)


def quota(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="A quota file in TOML; MAINSPRING_QUOTAS by default.")] = "",
    cluster: Annotated[str, typer.Option(help="Check it against this cluster file, not the machines at hand.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check a quota file against a cluster, and show every queue's guarantee, share and limit."""
    workspace = local_workspace_of(context)
    if not file and not workspace.settings.quotas:
        raise SpecError("no quota file is in force", hint="name one, or set MAINSPRING_QUOTAS")
    found = workspace.shares(file, cluster=cluster)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            "  " * part.depth + part.queue,
            str(part.weight),
            part.resource,
            f"{part.min:g}",
            f"{part.share:g}",
            "-" if part.max is None else f"{part.max:g}",
            "yes" if part.jobs else "in its parts",
        )
        for part in found
    ]
    print_table(("queue", "weight", "resource", "min", "share", "max", "takes jobs"), rows, drop=("weight",))
