"""What the verbs share: the workspace behind the options, and the options that many of them take."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mainspring.spec import Settings, SpecError, load_settings

if TYPE_CHECKING:
    from mainspring.workspace import Workspace

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="NAME=VALUE", help="Override one value, e.g. -s lr=3e-4."),
]
GUARDED = "\ntoken    asked of every caller while tokens exist; `mainspring token create NAME` makes another"
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

            where = self.settings.address
            if where not in ("local", "auto") and ":" not in where:
                raise SpecError(
                    f"{where!r} is not an address", hint="local, auto, ray://host:port, or http://host:port"
                )
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


def workspace_of(context: typer.Context) -> "Workspace":
    """The workspace behind this command's options."""
    session: Any = context.obj
    return session.workspace
