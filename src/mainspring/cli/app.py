"""The command line: verbs in the order of the wheel, one exit code per kind of error.

Nothing heavier than typer is imported here or at the top of a verb's file, so that `--help` answers at once. Errors
of our own tree print as two lines (what happened, what to do next) and exit with their own code; anything else is a
bug of ours and keeps its traceback.
"""

import json
import sys
from typing import Annotated

import typer

from mainspring import __version__
from mainspring.cli import (
    app_verb,
    artifacts,
    compress,
    data,
    doctor,
    eval_verb,
    flow_verb,
    hw,
    plan,
    runs,
    serve,
    token,
    train,
    up,
)
from mainspring.cli.session import Session
from mainspring.spec import MainspringError, logs

cli = typer.Typer(
    name="mainspring",
    help="From raw documents to a served assistant that gets better, on mixed and failing hardware.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    """Print the version and leave, when asked to."""
    if wanted:
        print(f"mainspring {__version__}")
        raise typer.Exit


@cli.callback()
def options(
    context: typer.Context,
    home: Annotated[str, typer.Option(help="Folder of the workspace.", envvar="MAINSPRING_HOME")] = "",
    address: Annotated[
        str,
        typer.Option(help="local, auto, ray://host:port, or the URL of a console.", envvar="MAINSPRING_ADDRESS"),
    ] = "",
    token_value: Annotated[
        str, typer.Option("--token", help="Token for a console elsewhere.", envvar="MAINSPRING_TOKEN")
    ] = "",
    version: Annotated[  # noqa: ARG001 read by its callback
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options every verb shares."""
    context.obj = Session(home=home, address=address, token=token_value)
    logs.configure(context.obj.settings.log_level)
    context.call_on_close(context.obj.close)


for module in (
    hw,
    data,
    plan,
    train,
    eval_verb,
    compress,
    serve,
    flow_verb,
    app_verb,
    runs,
    artifacts,
    up,
    doctor,
    token,
):
    module.add_to(cli)


def main() -> None:
    """Run the command line; the process exits with the error's own code."""
    try:
        cli()
    except MainspringError as error:
        sys.exit(report(error))


def report(error: MainspringError) -> int:
    """Print `error` for a person, or as JSON when the command line asked for JSON; returns its exit code."""
    if "--json" in sys.argv:
        told = {"type": type(error).__name__, "message": str(error), "hint": error.hint}
        print(json.dumps({"error": told}), file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code
