"""`mainspring doctor`: is everything in order, and what to do where it is not."""

from typing import Annotated

import typer

from mainspring.cli.output import print_json, print_table
from mainspring.cli.session import AsJson, workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("doctor", epilog="Example: mainspring doctor --repair")(doctor)


def doctor(
    context: typer.Context,
    repair: Annotated[bool, typer.Option("--repair", help="Remove orphans and close runs whose process died.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check settings, store, disk, devices and libraries; exits 1 when something needs you."""
    checks = workspace_of(context).doctor(repair=repair)
    if as_json:
        print_json(checks)
    else:
        print_table(("check", "state", "detail"), [(c.name, c.state, c.detail) for c in checks])
    if any(check.state == "bad" for check in checks):
        raise typer.Exit(1)
