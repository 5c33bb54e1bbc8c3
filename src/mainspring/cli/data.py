"""`mainspring data`: publish, look at, and compare datasets."""

from typing import Annotated, Literal

import typer

from mainspring.cli.completion import DatasetRef
from mainspring.cli.follow import follow
from mainspring.cli.output import print_json, print_table, size
from mainspring.cli.session import AsJson, workspace_of

SHOWN = 10
Dedup = Literal["strict", "balanced", "aggressive", "none"]  # as in `workspace`, which is not imported for --help

verbs = typer.Typer(help="Publish, look at and compare datasets.", no_args_is_help=True)


def add_to(cli: typer.Typer) -> None:
    """Register the group."""
    cli.add_typer(verbs, name="data")


@verbs.command("publish", epilog="Example: mainspring data publish handbook ./docs")
def publish(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the dataset.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder, a glob, or python:docs.")],
    dedup: Annotated[Dedup, typer.Option(help="How like each other two documents must be to be copies.")] = "balanced",
    as_json: AsJson = False,
) -> None:
    """Read SOURCE, clean and deduplicate it, and publish the next version of NAME."""
    workspace = workspace_of(context)
    artifact = follow(workspace.publish_data(name, source=source, dedup=dedup), quiet=as_json)
    if as_json:
        print_json(artifact)
        return
    print(artifact.ref)
    _print_report(context, artifact.ref)


@verbs.command("show", epilog="Example: mainspring data show dataset:handbook")
def show(context: typer.Context, ref: DatasetRef, as_json: AsJson = False) -> None:
    """What was read, what was dropped and why."""
    if as_json:
        print_json(workspace_of(context).data_report(ref))
    else:
        _print_report(context, ref)


@verbs.command("head", epilog="Example: mainspring data head dataset:handbook@1 -n 3")
def head(
    context: typer.Context,
    ref: DatasetRef,
    count: Annotated[int, typer.Option("-n", help="How many documents.", min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """The first documents of a snapshot."""
    documents = workspace_of(context).documents(ref, count=count)
    if as_json:
        print_json(documents)
        return
    rows = [(d.source, d.title, len(d.text), " ".join(d.text.split())[:160]) for d in documents]
    columns = ("source", "title", "characters", "text")
    print_table(columns, rows, empty="no documents", drop=("characters", "title"))


@verbs.command("diff", epilog="Example: mainspring data diff dataset:handbook@1 dataset:handbook@2")
def diff(context: typer.Context, old: DatasetRef, new: DatasetRef, as_json: AsJson = False) -> None:
    """Which documents were added, removed or changed between two snapshots."""
    found = workspace_of(context).data_diff(old, new)
    if as_json:
        print_json(found)
        return
    print(f"{len(found.added)} added, {len(found.removed)} removed, {len(found.changed)} changed")
    for mark, sources in (("+", found.added), ("-", found.removed), ("~", found.changed)):
        for source in sources:
            print(mark, source)


def _print_report(context: typer.Context, ref: str) -> None:
    report = workspace_of(context).data_report(ref)
    active = [rule for rule in report.rules if rule.dropped or rule.changed]
    rows = [(rule.rule, rule.dropped, rule.changed, "; ".join(rule.examples[:2])[:160]) for rule in active]
    idle = len(report.rules) - len(active)
    title = (
        f"{report.kept} of {report.read} documents kept, {size(report.kept_bytes)} of {size(report.read_bytes)}, "
        f"{report.unreadable} unreadable; {idle} of {len(report.rules)} rules found nothing"
    )
    print_table(("rule", "dropped", "changed", "for example"), rows, title=title, empty=title)
    for skipped in report.skipped[:SHOWN]:
        print(f"skipped {skipped.source}: {skipped.reason}")
    if len(report.skipped) > SHOWN:
        print(f"and {len(report.skipped) - SHOWN} more (all with --json)")
