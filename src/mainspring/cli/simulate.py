"""`mainspring simulate`: how a placement policy fills a cluster, on any trace in openb's columns."""

from pathlib import Path
from typing import Annotated

import typer

from mainspring.cli.output import print_json, print_table
from mainspring.cli.session import AsJson, workspace_of
from mainspring.spec import PolicyName, SpecError


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("simulate", epilog="Example: mainspring simulate --nodes nodes.csv --pods pods.csv --policy tuned")(
        simulate
    )


def simulate(
    context: typer.Context,
    nodes: Annotated[str, typer.Option(help="Node list: CSV with sn, cpu_milli, memory_mib, gpu, model.")],
    pods: Annotated[str, typer.Option(help="Task list: CSV with cpu_milli, memory_mib, num_gpu, gpu_milli.")],
    policy: Annotated[PolicyName, typer.Option(help="tuned plays the workload's mix ahead of time.")] = "plain",
    load: Annotated[str, typer.Option(help="Requested over existing devices, where to look.")] = "1.0,1.3",
    seeds: Annotated[int, typer.Option(help="How many random orders of arrival.", min=1)] = 10,
    html: Annotated[str, typer.Option(help="Write a page with what is in use and lost by load to this file.")] = "",
    as_json: AsJson = False,
) -> None:
    """Fill the cluster of a node list with the tasks of a task list, and show how much of it ends up in use."""
    found = workspace_of(context).simulate(nodes, pods, policy=policy, loads=_loads(load), seeds=seeds)
    if html:
        from mainspring.cluster.simulate.page import page

        Path(html).write_text(page(found), encoding="utf-8")
    if as_json:
        print_json(found)
        return
    rows = [
        (
            f"{at.load:g}",
            f"{at.allocation_percent:.2f} ± {at.deviation:.2f} %",
            f"{min(at.by_seed):.2f} to {max(at.by_seed):.2f} %",
            f"{at.cpu_percent:.1f} %",
            f"{at.memory_percent:.1f} %",
            f"{at.waste_percent:.2f} %",
            f"{at.placed:.0f}",
            f"{at.turned_away:.0f}",
        )
        for at in found.loads
    ]
    print_table(
        ("load", "devices in use", "by seed", "cpu", "memory", "waste", "placed", "turned away"),
        rows,
        title=f"{found.nodes} nodes, {found.devices} devices, {found.tasks} tasks in {found.classes} classes, "
        f"policy {found.policy} ({', '.join(f'{knob.name} {knob.value:g}' for knob in found.knobs)})",
        drop=("memory", "cpu", "by seed"),
    )
    if found.impossible:
        unknown = f"; no node has {', '.join(found.unknown)}" if found.unknown else ""
        print(f"{found.impossible} tasks fit on no node, however empty{unknown}")
    if html:
        print(f"wrote {html}")


def _loads(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SpecError(f"--load {text!r} is not numbers with commas between", hint="for example 1.0,1.3") from error
