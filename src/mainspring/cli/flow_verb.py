"""`mainspring run`: a flow file, step by step, repeating nothing that is still fresh."""

from typing import Annotated

import typer

from mainspring.cli.follow import follow
from mainspring.cli.output import print_json, print_table
from mainspring.cli.session import AsJson, DryRun, Overrides, workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("run")(run)


def run(
    context: typer.Context,
    flow: Annotated[str, typer.Argument(help="A flow in TOML, or a Python file that defines `graph`.")],
    overrides: Overrides = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep running; rerun what a changed document makes stale.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the steps of FLOW that are not fresh, in parallel where the graph allows."""
    workspace = workspace_of(context)
    if dry_run:
        steps = workspace.flow_plan(flow, overrides=overrides or ())
        if as_json:
            print_json(steps)
        else:
            print_table(("step", "state"), steps)
        return
    result = follow(workspace.flow(flow, overrides=overrides or (), watch=watch), quiet=as_json)
    if as_json:
        print_json(result)
        return
    rows = [(step.name, step.state, f"{step.seconds:.1f} s", str(step.value)[:100]) for step in result.steps]
    print_table(("step", "state", "time", "value"), rows, title=f"run {result.run}: {result.state}")
