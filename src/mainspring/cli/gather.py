"""`mainspring gather`: pool all quotas under a queue for one job, or see first whom that would stop."""

from typing import Annotated

import typer

from mainspring.cli.gang import Cpus, Devices, Level, Model, Ranks, SceneFile, describe
from mainspring.cli.output import print_json, print_table
from mainspring.cli.session import AsJson, DryRun, local_workspace_of, workspace_of
from mainspring.spec import Gang, SpecError


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("gather", epilog="Example: mainspring gather org JOB --dry-run")(gather)


def gather(
    context: typer.Context,
    queue: Annotated[str, typer.Argument(help="The queue whose quotas are pooled, with all its parts.")],
    job: Annotated[str, typer.Argument(help="The waiting job that they are pooled for.")] = "",
    scene: SceneFile = "",
    hours: Annotated[float, typer.Option(help="For how long at most.", min=0.0)] = 24.0,
    ranks: Ranks = 0,
    devices: Devices = 0.0,
    model: Model = None,
    cpus: Cpus = 0.0,
    level: Level = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Pool the quotas under a queue for one job that waits: others save, stop, and go on when it has ended."""
    if bool(job) == bool(ranks):
        raise SpecError("pooling quotas needs one job", hint="name one that waits, or describe it with --ranks")
    if not dry_run and (ranks or scene):
        raise SpecError("quotas are pooled for a job that waits here", hint="submit it first, or add --dry-run")
    target: str | Gang = job
    if ranks:
        target = describe(queue=queue, ranks=ranks, devices=devices, models=model, cpus=cpus, level=level)
    if dry_run:
        plan = workspace_of(context).plan_gather(queue, target, hours=hours, scene=scene)
    else:
        plan = local_workspace_of(context).gather(queue, job, hours=hours)
    if as_json:
        print_json(plan)
        return
    rows = [
        (
            victim.gang,
            victim.queue,
            str(victim.ranks),
            f"{victim.lost_ms / 60_000:.0f} min",
            f"{victim.lost_device_hours:.2f}",
            f"moves to {', '.join(victim.moved_to)}" if victim.moved_to else "stops",
        )
        for victim in plan.victims
    ]
    print_table(
        ("job", "queue", "ranks", "lost", "device-hours lost", "what happens"), rows, empty="nobody has to stop"
    )
    nodes = tuple(dict.fromkeys(plan.nodes))
    places = f"{len(plan.nodes)} rank{'s' * (len(plan.nodes) != 1)} on {len(nodes)} node{'s' * (len(nodes) != 1)}"
    print(f"{plan.gang}: {places}, {', '.join(nodes[:8])}")
    lost = f"at most {plan.lost_device_hours:.2f} device-hours are lost, less where jobs save when asked"
    print(f"{lost}; it starts {plan.starts_in_ms / 1000:.0f} s later")
    if not dry_run:
        print(f"quotas under {queue} are pooled for {job} until it ends, {hours:g} h at most; then all is given back")
