"""The command line: verbs in the order of the wheel, one exit code per kind of error.

Nothing heavier than typer is imported here or at the top of a verb's file, so that `--help` answers at once. Errors
of our own tree print as two lines (what happened, what to do next) and exit with their own code; anything else is a
bug of ours and keeps its traceback.
"""

import gc
import json
import os
import signal
import sys
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from mainspring import __version__
from mainspring.cli import (
    app_verb,
    artifacts,
    completion,
    compress,
    data,
    doctor,
    drain,
    estimate,
    eval_verb,
    flow_verb,
    gather,
    hw,
    job,
    manifest,
    nodes,
    plan,
    queue,
    quota,
    runs,
    serve,
    simulate,
    token,
    train,
    up,
    why,
)
from mainspring.cli.session import Session
from mainspring.spec import MainspringError, SpecError, logs

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer carries its own click, and exports only this one

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
    estimate,
    plan,
    train,
    eval_verb,
    compress,
    serve,
    flow_verb,
    app_verb,
    simulate,
    quota,
    why,
    queue,
    nodes,
    gather,
    manifest,
    job,
    drain,
    runs,
    artifacts,
    up,
    doctor,
    token,
):
    module.add_to(cli)


def main() -> NoReturn:
    """Run the command line; the process exits with the error's own code, or 128 and the signal that ended it."""
    received = [signal.SIGINT]

    def interrupt(number: int, _frame: FrameType | None) -> None:
        received[0] = signal.Signals(number)
        raise KeyboardInterrupt

    # `kill` and a closed terminal are as good a reason to stop as Ctrl-C; `nohup` has set its signal to be ignored.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, interrupt)
    try:
        with completion.whole_words():
            code = cli(standalone_mode=False)
        sys.stdout.flush()  # here, so that a reader who has gone is met by the clause below
        sys.exit(code if isinstance(code, int) else 0)
    except MainspringError as error:
        sys.exit(report(error))
    except UsageError as error:
        told = _explain(error)
        sys.exit(report(told) if str(told) else told.exit_code)  # without words its help has been printed
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(128 + received[0])
    except BrokenPipeError:
        _reader_left()
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # typer exits with 1 when it meets one inside a verb
            _reader_left()
        raise
    finally:
        gc.freeze()  # at its end Python would look for cycles in all that was imported


def _reader_left() -> NoReturn:
    """Exit as a program does that SIGPIPE has ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
    sys.exit(128 + signal.SIGPIPE)


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


def _explain(error: Any) -> SpecError:
    """A command line that makes no sense, as an error of our own."""
    told = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    where = error.ctx.command_path if error.ctx else "mainspring"
    return SpecError(told[:1].lower() + told[1:], hint=f"{where} --help")
