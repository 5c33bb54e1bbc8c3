"""`mainspring ls`, `show`, `lineage`: what was made, what is in it, and where it came from."""

import difflib
import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mainspring.cli.completion import Ref, refs
from mainspring.cli.output import ago, print_json, print_table, size
from mainspring.cli.session import AsJson, workspace_of
from mainspring.spec import SpecError

if TYPE_CHECKING:
    from mainspring.spec import RunRecord

LONGEST = 160
KINDS = ("dataset", "tokenizer", "tokens", "model", "report", "index", "app")


def add_to(cli: typer.Typer) -> None:
    """Register the verbs."""
    cli.command("ls", epilog="Example: mainspring ls model")(ls)
    cli.command("show", epilog="Example: mainspring show model:handbook-lm@1")(show)
    cli.command("lineage", epilog="Example: mainspring lineage app:handbook --direction up")(lineage)


def ls(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"Only this kind: {', '.join(KINDS)}.")] = "",
    as_json: AsJson = False,
) -> None:
    """List artifacts, newest first."""
    found = workspace_of(context).artifacts(kind=kind)
    if kind and not found and kind not in KINDS:  # a plugin's kind is known by what there is of it
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(KINDS)
        raise SpecError(f"nothing is of kind {kind!r}", hint=hint)
    if as_json:
        print_json(found)
        return
    rows = [(a.ref, size(a.size_bytes), ago(a.created_s), ", ".join(a.tags), a.run) for a in found]
    empty = f"no artifacts of kind {kind!r} (mainspring ls shows all)" if kind else "no artifacts yet"
    print_table(("artifact", "size", "age", "tags", "run"), rows, empty=empty, drop=("tags", "age", "size"))


def show(context: typer.Context, ref: Ref, as_json: AsJson = False) -> None:
    """What is in one artifact."""
    found = workspace_of(context).artifact(ref)
    if as_json:
        print_json(found)
        return
    print(f"{found.ref}  {size(found.size_bytes)}  sha256:{found.digest[:16]}  run {found.run or '-'}")
    print_table(("file", "size", "sha256"), [(f.path, size(f.size_bytes), f.digest[:16]) for f in found.files])
    for key, value in json.loads(found.meta_json).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print(f"{key}: {text}" if len(text) <= LONGEST else f"{key}: {text[:LONGEST]}... (whole with --json)")


def lineage(
    context: typer.Context,
    ref: Annotated[str, typer.Argument(metavar="REF", help="An artifact or a run.", autocompletion=refs())],
    direction: Annotated[Literal["up", "down", "both"], typer.Option(help="Sources, results, or both.")] = "both",
    as_json: AsJson = False,
) -> None:
    """What an artifact was made from and what was made from it."""
    found = workspace_of(context).lineage(ref, direction=direction)
    if as_json:
        print_json(found)
        return
    runs = {run.id: run for run in found.runs}
    for run_id in sorted(runs, key=lambda key: runs[key].created_s):
        run = runs[run_id]
        taken = [edge.ref for edge in found.edges if edge.run == run_id and edge.role == "input"] or _source(run)
        made = [edge.ref for edge in found.edges if edge.run == run_id and edge.role == "output"]
        print(f"{', '.join(taken)} --[{run.kind} {run.name} {run.id}]--> {', '.join(made) or '(nothing)'}")


def _source(run: "RunRecord") -> list[str]:
    """What a run without inputs read: the documents' own place."""
    config = json.loads(run.config_json)
    return [str(config.get("source") or config.get("with", {}).get("source") or "(nothing)")]
