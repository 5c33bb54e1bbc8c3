"""`mainspring train`: from a recipe and data to a published model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mainspring.cli.completion import complete_run, refs
from mainspring.cli.follow import follow
from mainspring.cli.gang import Priority
from mainspring.cli.output import print_json
from mainspring.cli.plan import Ranks, print_menu
from mainspring.cli.session import AsJson, DryRun, Overrides, workspace_of
from mainspring.cli.wishes import wishes
from mainspring.spec import NotFound, Objective, Plan, SpecError, Turn


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("train", epilog="Example: mainspring train recipe.py --data dataset:handbook --ranks 2 -s lr=3e-4")(
        train
    )


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A Python file that defines `recipe`.")] = "",
    data: Annotated[str, typer.Option(help="Dataset or tokens, e.g. dataset:handbook.", autocompletion=refs())] = "",
    name: Annotated[str, typer.Option(help="Name of the model; the recipe's file name by default.")] = "",
    optimize: Annotated[
        Objective | None, typer.Option(help="What the plan shall spend least of; time by default.")
    ] = None,
    ranks: Ranks = None,
    plan_file: Annotated[
        str, typer.Option("--plan", help="Run as this file says, as written by plan --json; do not plan again.")
    ] = "",
    resume: Annotated[
        str,
        typer.Option(
            help="Go on from the last checkpoint of this run; without RECIPE exactly as it was started.",
            autocompletion=complete_run,
        ),
    ] = "",
    menu: Annotated[
        bool, typer.Option("--menu", help="Let the scheduler choose how many ranks, and change it at checkpoints.")
    ] = False,
    queue: Annotated[str, typer.Option(help="Whose quota it counts against.")] = "default",
    priority: Priority = 0,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Plan RECIPE, run it on its ranks, and publish the model with its lineage."""
    workspace, chosen = workspace_of(context), wishes(overrides)
    if resume and not recipe:
        given = (data, name, overrides, ranks, dry_run, priority, menu, optimize, plan_file, queue != "default")
        if any(given):
            raise SpecError("a run resumed by its id alone takes no other options", hint="give RECIPE and --data too")
        run = workspace.resume(resume)
    else:
        _check_complete(recipe, data)
        _check_together(plan_file, ranks=bool(ranks), optimize=bool(optimize), menu=menu)
        plans: Sequence[Plan] = ()
        if menu:
            plans = workspace.menu(recipe, data=data, optimize=optimize or "time", overrides=chosen)
            plan = plans[0]
        elif plan_file:
            plan = _read_plan(Path(plan_file))
        else:
            plan = workspace.plan(recipe, data=data, optimize=optimize or "time", ranks=ranks, overrides=chosen)
        if dry_run or not as_json:
            _show(plans, plan, as_json=as_json)
        if dry_run:
            return
        turn = Turn(queue=queue, priority=priority)
        run = workspace.train(
            recipe, data=data, plan=plan, name=name, resume=resume, turn=turn, menu=plans, overrides=chosen
        )
    artifact = follow(run, quiet=as_json)
    print_json(artifact) if as_json else print(artifact.ref)


def _check_complete(recipe: str, data: str) -> None:
    if not recipe or not data:
        missing = "RECIPE" if not recipe else "--data"
        raise SpecError(f"{missing} is missing", hint="mainspring train RECIPE --data dataset:NAME, or --resume RUN")


def _check_together(plan_file: str, *, ranks: bool, optimize: bool, menu: bool) -> None:
    if menu and (plan_file or ranks):
        raise SpecError("--menu has a plan for each number of ranks", hint="leave --plan and --ranks out, or --menu")
    if plan_file and (ranks or optimize):
        raise SpecError(
            f"{plan_file} says already on how many ranks it runs and what it spends least of",
            hint=f"leave {'--ranks' if ranks else '--optimize'} out, or --plan to plan again",
        )


def _show(menu: Sequence[Plan], plan: Plan, *, as_json: bool) -> None:
    if as_json:
        print_json(menu or plan)
    elif menu:
        print_menu(menu)
    else:
        print(plan)


def _read_plan(path: Path) -> Plan:
    from mainspring.store import parse

    try:
        return parse.read_json(path.read_bytes(), Plan, where=str(path))
    except OSError as error:
        raise NotFound(
            f"cannot read the plan {path}: {error.strerror}", hint="mainspring plan RECIPE --json > plan.json"
        ) from error
