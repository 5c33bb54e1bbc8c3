"""`mainspring job` and `mainspring schedule`: work that is left to a scheduler and outlives whoever submitted it."""

import threading
from typing import Annotated

import typer

from mainspring.cli.gang import Priority
from mainspring.cli.output import print_json, print_table
from mainspring.cli.session import AsJson, local_workspace_of
from mainspring.spec import Job, Resources, SpecError

STARTS = 10
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job.")]
verbs = typer.Typer(help="Jobs that outlive who submitted them.", no_args_is_help=True)


def add_to(cli: typer.Typer) -> None:
    """Register the group, and the verb that runs what it submits."""
    cli.add_typer(verbs, name="job")
    cli.command("schedule", epilog="Example: mainspring --address auto schedule")(schedule)


@verbs.command("submit", epilog="Example: mainspring job submit sweep:trial --payload '{\"lr\": 0.1}' --ranks 4")
def submit(
    context: typer.Context,
    entry: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="Called with (task, payload) on each rank.")],
    payload: Annotated[str, typer.Option(help="A JSON object.")] = "{}",
    name: Annotated[str, typer.Option(help="The job's id; made up when empty.")] = "",
    ranks: Annotated[int, typer.Option(help="How many, all at once or none.", min=1)] = 1,
    cpus: Annotated[float, typer.Option(help="For each rank.", min=0)] = 1.0,
    devices: Annotated[float, typer.Option(help="For each rank: whole ones, or a share of one.", min=0)] = 0.0,
    memory_gib: Annotated[float, typer.Option(help="For each rank; a limit that is enforced.", min=0)] = 0.0,
    own_cores: Annotated[bool, typer.Option("--own-cores", help="Whole cpus are cores of its own.")] = False,
    queue: Annotated[str, typer.Option(help="Whose quota it counts against.")] = "default",
    starts: Annotated[
        int, typer.Option(help="How often it may be started; 1: not stopped for others either.", min=1)
    ] = STARTS,
    priority: Priority = 0,
    grace_s: Annotated[
        float, typer.Option(help="To save what it has when it must make room; then killed.", min=0)
    ] = 30.0,
    menu: Annotated[str, typer.Option(help="A TOML file of [[menu]] shapes that the scheduler chooses from.")] = "",
    secret: Annotated[
        list[str] | None, typer.Option(help="A variable of the scheduler's environment that ranks are given.")
    ] = None,
    alone_s: Annotated[float, typer.Option(help="How long it goes on without a scheduler.", min=0)] = 300.0,
    time_limit_s: Annotated[float, typer.Option(help="Ended after this many seconds; 0 for never.", min=0)] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Leave a gang of ranks to the scheduler and print its id."""
    try:
        job = Job(
            id=name,
            name=name or entry,
            entry=entry,
            payload_json=payload,
            ranks=ranks,
            resources=Resources(
                cpus=cpus, devices=devices, memory_bytes=round(memory_gib * 2**30), own_cores=own_cores
            ),
            queue=queue,
            starts=starts,
            priority=priority,
            grace_s=grace_s,
            secrets=tuple(secret or ()),
            alone_s=alone_s,
            time_limit_s=time_limit_s,
        )
    except ValueError as error:
        raise SpecError(str(error)) from error
    if menu and (ranks > 1 or devices):
        raise SpecError("--menu says how many ranks of what", hint="leave --ranks and --devices out")
    record = local_workspace_of(context).submit(job, menu=menu)
    print_json(record) if as_json else print(record.job.id)


@verbs.command("map", epilog="Example: mainspring job map sweep:score prompts.jsonl --ranks 8")
def map_(
    context: typer.Context,
    entry: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="Called with each item; returns its answer.")],
    items: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines, one item a line.")],
    ranks: Annotated[int, typer.Option(help="How many work at once.", min=1)] = 1,
    cpus: Annotated[float, typer.Option(help="For each rank.", min=0)] = 1.0,
    devices: Annotated[float, typer.Option(help="For each rank: whole ones, or a share of one.", min=0)] = 0.0,
    queue: Annotated[str, typer.Option(help="Whose quota it counts against.")] = "default",
    block_s: Annotated[float, typer.Option(help="Seconds of work that a rank takes at a time.", min=0.001)] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Leave many small tasks to one gang, whose ranks take them in blocks, and print the job's id."""
    try:
        resources = Resources(cpus=cpus, devices=devices)
    except ValueError as error:
        raise SpecError(str(error)) from error
    workspace = local_workspace_of(context)
    record = workspace.map(entry, items, ranks=ranks, queue=queue, resources=resources, block_s=block_s)
    print_json(record) if as_json else print(record.job.id)


@verbs.command("ls", epilog="Example: mainspring job ls -n 50")
def ls(
    context: typer.Context,
    limit: Annotated[int, typer.Option("-n", help="How many at most.", min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first: where they are, in which attempt, and why."""
    records = local_workspace_of(context).jobs(limit=limit)
    if as_json:
        print_json(records)
        return
    rows = [
        (
            record.job.id,
            record.job.queue,
            str(record.job.ranks),
            record.state,
            str(record.attempt),
            ", ".join(dict.fromkeys(record.placement.nodes)) if record.placement else "-",
            record.reason[:160],
        )
        for record in records
    ]
    columns = ("job", "queue", "ranks", "state", "attempt", "nodes", "reason")
    print_table(columns, rows, empty="no jobs yet", drop=("queue", "attempt", "ranks"))


@verbs.command("stop", epilog="Example: mainspring job stop JOB")
def stop(context: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """Ask whoever sees to a job to stop it."""
    record = local_workspace_of(context).stop_job(job)
    print_json(record) if as_json else print(f"{job} is {record.state}, and was asked to stop")


def schedule(context: typer.Context, as_json: AsJson = False) -> None:
    """See to submitted jobs until interrupted; several schedulers of one cluster agree through the store."""
    workspace = local_workspace_of(context)
    address = workspace.settings.address
    if as_json:
        print_json({"address": address})
    else:
        print(f"scheduling for {address}; Ctrl-C lets go, and the next scheduler goes on", flush=True)
    workspace.schedule(threading.Event())
