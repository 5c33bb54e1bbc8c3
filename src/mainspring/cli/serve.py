"""`mainspring serve`: one model behind an OpenAI-compatible server, in the foreground."""

import sys
from typing import Annotated

import typer

from mainspring.cli.completion import refs
from mainspring.cli.output import print_json
from mainspring.cli.session import GUARDED, AsJson, local_workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("serve", epilog="Example: mainspring serve model:handbook-lm --port 8000")(serve)


def serve(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="An artifact, a folder in the Hugging Face layout, or a hub name.",
            autocompletion=refs("model"),
        ),
    ],
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a token.")] = "127.0.0.1",
    name: Annotated[str, typer.Option(help="Model name clients ask for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Serve MODEL over the OpenAI API until Ctrl-C."""

    workspace = local_workspace_of(context)
    guarded = workspace.guard(host) is not None

    def ready(url: str) -> None:
        if as_json:
            print_json({"url": f"{url}/v1", "metrics": f"{url}/metrics", "token": guarded})
        else:
            print(f"OpenAI   {url}/v1\nmetrics  {url}/metrics{GUARDED if guarded else ''}\nCtrl-C stops it")
        sys.stdout.flush()  # whoever starts this from a script waits for the address

    workspace.serve_forever(model, host=host, port=port, name=name, on_ready=ready)
