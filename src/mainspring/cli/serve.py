"""`mainspring serve`: one model behind an OpenAI-compatible server, in the foreground."""

from typing import Annotated

import typer

from mainspring.cli.session import workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("serve")(serve)


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="An artifact, a folder in the Hugging Face layout, or a hub name.")],
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a token.")] = "127.0.0.1",
    name: Annotated[str, typer.Option(help="Model name clients ask for.")] = "",
) -> None:
    """Serve MODEL over the OpenAI API until Ctrl-C."""
    workspace_of(context).serve_forever(model, host=host, port=port, name=name)
