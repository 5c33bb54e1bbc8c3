"""`mainspring plan`: how a recipe would run, before spending anything."""

from typing import Annotated

import typer

from mainspring.cli.completion import refs
from mainspring.cli.output import print_json
from mainspring.cli.session import AsJson, Overrides, workspace_of
from mainspring.spec import Objective

Ranks = Annotated[int | None, typer.Option(help="How many ranks; as many as pay off by default.", min=1)]
ClusterPath = Annotated[str, typer.Option(help="Plan for the machines of this file.")]
Optimize = Annotated[Objective, typer.Option(help="What the plan shall spend least of.")]


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("plan", epilog="Example: mainspring plan recipe.py --optimize energy --cluster cluster.toml")(plan)


def plan(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A Python file that defines `recipe`.")],
    data: Annotated[str, typer.Option(help="Dataset or tokens, e.g. dataset:handbook.", autocompletion=refs())] = "",
    optimize: Optimize = "time",
    ranks: Ranks = None,
    cluster: ClusterPath = "",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show mesh, memory, time, energy and price of training RECIPE, and which alternatives lost."""
    found = workspace_of(context).plan(
        recipe, data=data, optimize=optimize, ranks=ranks, cluster=cluster, overrides=overrides or ()
    )
    if as_json:
        print_json(found)
    else:
        print(found)
