"""`mainspring up`: API, console and every published model and assistant, on one port."""

from typing import Annotated

import typer

from mainspring.cli.session import workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("up")(up)


def up(
    context: typer.Context,
    port: Annotated[int | None, typer.Option(help="Port to listen on (8420 by default).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a token.")] = "",
) -> None:
    """Start API and console until Ctrl-C."""
    from mainspring.api.app import create_app
    from mainspring.console.app import mount
    from mainspring.serve.http import serve_forever

    workspace = workspace_of(context)
    settings = workspace.settings
    host, port = host or settings.host, port or settings.port
    app = create_app(workspace, host=host)
    mount(app, workspace)
    print(
        f"console  http://{host}:{port}\nAPI      http://{host}:{port}/api/v1  (OpenAPI at /docs)\n"
        f"OpenAI   http://{host}:{port}/v1\nCtrl-C stops it"
    )
    serve_forever(app, host=host, port=port)
