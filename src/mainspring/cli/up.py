"""`mainspring up`: API, console and every published model and assistant, on one port."""

import sys
from typing import Annotated

import typer

from mainspring.cli.output import print_json
from mainspring.cli.session import GUARDED, AsJson, local_workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("up", epilog="Example: mainspring up --port 8420")(up)


def up(
    context: typer.Context,
    port: Annotated[int | None, typer.Option(help="Port to listen on (8420 by default).", min=0, max=65535)] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a token.")] = "",
    as_json: AsJson = False,
) -> None:
    """Start API and console until Ctrl-C."""
    workspace = local_workspace_of(context)
    host, port = host or workspace.settings.host, workspace.settings.port if port is None else port
    guarded = workspace.guard(host) is not None  # before anything heavy is imported
    from mainspring.api.app import create_app
    from mainspring.console.app import mount
    from mainspring.serve.http import serve_forever

    app = create_app(workspace, host=host)
    mount(app, workspace)

    def ready(url: str) -> None:
        told = {"console": url, "api": f"{url}/api/v1", "openapi": f"{url}/docs", "openai": f"{url}/v1"}
        if as_json:
            print_json({**told, "token": guarded})
        else:
            where = "\n".join(f"{name:<8} {place}" for name, place in told.items())
            print(f"{where}{GUARDED if guarded else ''}\nCtrl-C stops it")
        sys.stdout.flush()  # whoever starts this from a script waits for the address

    serve_forever(app, host=host, port=port, on_ready=ready)
