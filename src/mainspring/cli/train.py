"""`mainspring train`: from a recipe and data to a published model."""

from typing import Annotated

import typer

from mainspring.cli.follow import follow
from mainspring.cli.output import print_json
from mainspring.cli.plan import Optimize, Ranks
from mainspring.cli.session import AsJson, DryRun, Overrides, workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("train")(train)


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A Python file that defines `recipe`.")],
    data: Annotated[str, typer.Option(help="Dataset or tokens, e.g. dataset:handbook.")],
    name: Annotated[str, typer.Option(help="Name of the model; the recipe's file name by default.")] = "",
    optimize: Optimize = "time",
    ranks: Ranks = None,
    resume: Annotated[str, typer.Option(help="Continue this run from its last checkpoint.")] = "",
    overrides: Overrides = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Plan RECIPE, run it on its ranks, and publish the model with its lineage."""
    workspace = workspace_of(context)
    plan = workspace.plan(recipe, data=data, optimize=optimize, ranks=ranks, overrides=overrides or ())
    if dry_run:
        print_json(plan) if as_json else print(plan)
        return
    if not as_json:
        print(plan)
    run = workspace.train(recipe, data=data, plan=plan, name=name, resume=resume, overrides=overrides or ())
    artifact = follow(run, quiet=as_json)
    print_json(artifact) if as_json else print(artifact.ref)
