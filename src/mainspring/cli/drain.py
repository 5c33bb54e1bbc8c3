"""`mainspring drain`: empty a node before somebody works on it."""

from typing import Annotated

import typer

from mainspring.cli.output import print_json
from mainspring.cli.session import AsJson, local_workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("drain", epilog="Example: mainspring --address auto drain gpu-7 --reason 'new memory'")(drain)


def drain(
    context: typer.Context,
    node: Annotated[str, typer.Argument(help="A node's name, or the beginning of it.")],
    reason: Annotated[str, typer.Option(help="Told to whoever is moved.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Let the node be used again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give a node nothing new, move its jobs to others, and wait until it is empty; Ctrl-C leaves it closed."""
    workspace, said = local_workspace_of(context), [""]

    def tell(_fraction: float, message: str) -> None:
        if message != said[0] and not as_json:
            print(message, flush=True)
        said[0] = message

    note = workspace.reopen(node) if undo else workspace.drain(node, reason=reason, progress=tell)
    if as_json:
        print_json(note)
    elif undo:
        print(f"{note.node} may be used again")
