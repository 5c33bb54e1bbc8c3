"""`mainspring why` and `mainspring gather`: questions to the scheduler about a cluster described in a file.

A scene is TOML: `levels`, `[[machines]]`, `[[queues]]` and `[[gangs]]`, in the words of `mainspring.spec`.
"""

from typing import Annotated

import typer

from mainspring.cli.output import print_json, print_table
from mainspring.cli.session import AsJson, local_workspace_of

SceneFile = Annotated[str, typer.Argument(help="A scene in TOML: machines, queues and gangs.")]


def add_to(cli: typer.Typer) -> None:
    """Register the verbs."""
    cli.command("why")(why)
    cli.command("gather")(gather)


def why(
    context: typer.Context,
    scene: SceneFile,
    gang: Annotated[str, typer.Argument(help="The gang's id; every gang by default.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say where each gang of a scene runs or why it waits, and what would let it start."""
    found = local_workspace_of(context).why(scene, gang)
    if as_json:
        print_json(found)
        return
    rows = [(each.gang, each.state, ", ".join(each.nodes) or each.reason) for each in found]
    print_table(("gang", "state", "where or why"), rows)
    for each in found:
        if each.ahead:
            print(f"{each.gang} has {each.ahead} of its queue before it")
        for unblock in each.unblocks:
            print(f"{each.gang} would start with {unblock}")


def gather(
    context: typer.Context,
    scene: SceneFile,
    queue: Annotated[str, typer.Argument(help="The queue whose quotas are pooled, with all its parts.")],
    gang: Annotated[str, typer.Argument(help="The gang of the scene that they are pooled for.")],
    hours: Annotated[float, typer.Option(help="For how long at most.", min=0.0)] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Plan, and only plan, to pool the quotas under a queue for one gang: whom it stops, and what they lose."""
    plan = local_workspace_of(context).plan_gather(scene, queue, gang, hours=hours)
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
        ("gang", "queue", "ranks", "lost", "device-hours lost", "what happens"), rows, empty="nobody has to stop"
    )
    nodes = tuple(dict.fromkeys(plan.nodes))
    print(f"{plan.gang}: {len(plan.nodes)} ranks on {len(nodes)} nodes, {', '.join(nodes[:8])}")
    print(f"{plan.lost_device_hours:.2f} device-hours are lost; it starts {plan.starts_in_ms / 1000:.0f} s later")
