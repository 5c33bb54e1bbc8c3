"""What the verbs share: the workspace behind the options, and the options that many of them take."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mainspring.spec import MainspringError, Settings, SpecError, load_settings

if TYPE_CHECKING:
    from mainspring.workspace import Workspace

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="NAME=VALUE", help="Override one value, e.g. -s lr=3e-4."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen; start nothing.")]


class Session:
    """The workspace of this command, opened when a verb first asks for it."""

    def __init__(self, *, home: str, address: str, token: str) -> None:
        self._home, self._address, self._token = home, address, token
        self._workspace: Workspace | None = None

    @property
    def settings(self) -> Settings:
        """Settings from the environment, with this command's options on top."""
        given = {"home": self._home, "address": self._address, "token": self._token}
        return replace(load_settings(), **{key: value for key, value in given.items() if value})

    @property
    def workspace(self) -> "Workspace":
        """The local workspace, or the one behind a console's URL, which answers to the same verbs."""
        if self._workspace is None:
            from mainspring.workspace import connect

            self._workspace = cast("Workspace", connect(settings=self.settings))
        return self._workspace

    def close(self) -> None:
        """Close what was opened."""
        if self._workspace is not None:
            self._workspace.close()


def local_workspace_of(context: typer.Context) -> "Workspace":
    """The workspace behind this command's options, for verbs that need its own files and processes."""
    session: Any = context.obj
    if session.settings.address.startswith(("http://", "https://")):
        raise SpecError(
            f"`{context.command_path}` cannot be done through {session.settings.address}",
            hint="run it on the machine that owns the workspace",
        )
    return session.workspace


def complete_ref(context: typer.Context, incomplete: str) -> list[str]:
    """References of artifacts, for the shell's completion."""
    return _complete(context, lambda workspace: [found.ref for found in workspace.artifacts()], incomplete)


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of runs, newest first, for the shell's completion."""
    return _complete(context, lambda workspace: [record.id for record in workspace.runs()], incomplete)


def _complete(context: typer.Context, known: "Callable[[Workspace], list[str]]", incomplete: str) -> list[str]:
    given = context.find_root().params  # no verb runs during completion, so nobody has made the session yet
    session = Session(home=given["home"] or "", address=given["address"] or "", token=given["token_value"] or "")
    try:
        return [name for name in known(session.workspace) if name.startswith(incomplete)]
    except MainspringError:
        return []
    finally:
        session.close()


Ref = Annotated[str, typer.Argument(help="kind:name, kind:name@version or kind:name@tag.", autocompletion=complete_ref)]
RunId = Annotated[str, typer.Argument(help="A run's id, or its beginning or end.", autocompletion=complete_run)]


def workspace_of(context: typer.Context) -> "Workspace":
    """The workspace behind this command's options."""
    session: Any = context.obj
    return session.workspace
