"""What bash does to a line before it asks for completions, undone; and the completers of references and runs.

Bash splits words also at the characters of `COMP_WORDBREAKS`, among them `:`, `@` and `=`: `model:hand` arrives as
three words, and bash replaces only what stands behind the last break. So the pieces are put together before typer
reads them, and what bash keeps is cut off what it is told. zsh and fish hand words over whole.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Annotated

import typer

from mainspring.cli.session import Session
from mainspring.spec import MainspringError

if TYPE_CHECKING:
    from mainspring.workspace import Workspace

BREAKS = frozenset(":@=")


@contextmanager
def whole_words() -> Iterator[None]:
    """While bash asks for completions: its words put together again, and answers without what it keeps."""
    told = os.environ  # noqa: TID251 the shell's protocol, not a setting of ours
    pieces = told.get("COMP_WORDS", "").split("\n")
    at = int(told.get("COMP_CWORD") or 0)
    if told.get("_MAINSPRING_COMPLETE") != "complete_bash" or at >= len(pieces):
        yield
        return
    words, kept = glued(pieces[: at + 1])
    told["COMP_WORDS"], told["COMP_CWORD"] = "\n".join(words), str(len(words) - 1)
    answers = StringIO()
    try:
        with redirect_stdout(answers):
            yield
    finally:
        for answer in answers.getvalue().splitlines():
            print(answer.removeprefix(kept))


def glued(pieces: Sequence[str]) -> tuple[list[str], str]:
    """The words as they were typed, and what bash keeps of the last one (of its value, if it is `--option=value`)."""
    words: list[str] = []
    beginning, joins = "", False
    for piece in pieces:
        breaks = bool(piece) and set(piece) <= BREAKS
        if words and piece and (breaks or joins):
            beginning = words[-1] + piece if breaks else words[-1]
            words[-1] += piece
        else:
            words.append(piece)
            beginning = ""
        joins = breaks
    kept = beginning.partition("=")[2] if beginning.startswith("--") else beginning
    return words, kept.removesuffix("@")  # readline replaces an @ together with what stands behind it


def refs(kind: str = "") -> Callable[[typer.Context, str], list[str]]:
    """A completer of references of artifacts of `kind`, or of every kind, newest first."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return _known(context, lambda workspace: [made.ref for made in workspace.artifacts(kind=kind)], incomplete)

    return complete


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of runs, newest first."""
    return _known(context, lambda workspace: [record.id for record in workspace.runs()], incomplete)


def complete_app(context: typer.Context, incomplete: str) -> list[str]:
    """Names of assistants."""

    def names(workspace: "Workspace") -> list[str]:
        return list(dict.fromkeys(made.name for made in workspace.artifacts(kind="app")))

    return _known(context, names, incomplete)


def _known(context: typer.Context, known: "Callable[[Workspace], list[str]]", incomplete: str) -> list[str]:
    given = context.find_root().params  # no verb runs during completion, so nobody has made the session yet
    session = Session(home=given["home"] or "", address=given["address"] or "", token=given["token_value"] or "")
    try:
        return [name for name in known(session.workspace) if name.startswith(incomplete)]
    except MainspringError:
        return []
    finally:
        session.close()


Ref = Annotated[
    str, typer.Argument(metavar="REF", help="kind:name, kind:name@version or kind:name@tag.", autocompletion=refs())
]
DatasetRef = Annotated[
    str, typer.Argument(metavar="REF", help="dataset:name, or with @version or @tag.", autocompletion=refs("dataset"))
]
ModelRef = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model, e.g. model:handbook.", autocompletion=refs("model"))
]
RunId = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, or its beginning or end.", autocompletion=complete_run)
]
AppName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the assistant.", autocompletion=complete_app)]
