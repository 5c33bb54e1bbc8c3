"""`mainspring token`: who may call the API from elsewhere."""

from typing import Annotated

import typer

from mainspring.cli.session import workspace_of

verbs = typer.Typer(help="Tokens for callers elsewhere.", no_args_is_help=True)


def add_to(cli: typer.Typer) -> None:
    """Register the group."""
    cli.add_typer(verbs, name="token")


@verbs.command("create")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Who it is for.")],
    role: Annotated[str, typer.Option(help="viewer, editor or admin.")] = "editor",
    days: Annotated[float | None, typer.Option(help="How long it is good for; for ever by default.")] = None,
) -> None:
    """Make a token and print it once; only its hash is kept."""
    print(workspace_of(context).create_token(name, role=role, days=days))


@verbs.command("revoke")
def revoke(context: typer.Context, name: str) -> None:
    """Make every token of NAME worthless."""
    workspace_of(context).revoke_token(name)
    print(f"revoked {name}")
