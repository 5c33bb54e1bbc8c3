"""`mainspring token`: who may call the API from elsewhere."""

from typing import Annotated

import typer

from mainspring.cli.output import print_json
from mainspring.cli.session import AsJson, local_workspace_of
from mainspring.spec import Role

Whose = Annotated[str, typer.Argument(metavar="NAME", help="Who it is for.")]
verbs = typer.Typer(help="Tokens for callers elsewhere.", no_args_is_help=True)


def add_to(cli: typer.Typer) -> None:
    """Register the group."""
    cli.add_typer(verbs, name="token")


@verbs.command("create", epilog="Example: mainspring token create anna --role viewer --days 30")
def create(
    context: typer.Context,
    name: Whose,
    role: Annotated[Role, typer.Option(help="What it lets its bearer do.")] = "editor",
    days: Annotated[float | None, typer.Option(help="How long it is good for; for ever by default.", min=0)] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it once; only its hash is kept."""
    token = local_workspace_of(context).create_token(name, role=role, days=days)
    print_json({"name": name, "role": role, "token": token}) if as_json else print(token)


@verbs.command("revoke", epilog="Example: mainspring token revoke anna")
def revoke(context: typer.Context, name: Whose, as_json: AsJson = False) -> None:
    """Make every token of NAME worthless."""
    local_workspace_of(context).revoke_token(name)
    print_json({"revoked": name}) if as_json else print(f"revoked {name}")
