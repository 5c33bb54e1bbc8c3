"""`mainspring nodes`: what every node of the cluster has, how much of it is in use, and by whom."""

import typer

from mainspring.cli.gang import SceneFile
from mainspring.cli.output import print_json, print_table, size
from mainspring.cli.session import AsJson, workspace_of
from mainspring.spec import NodeUse

MIB = 1 << 20


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("nodes", epilog="Example: mainspring nodes")(nodes)


def nodes(context: typer.Context, scene: SceneFile = "", as_json: AsJson = False) -> None:
    """List the nodes in the order of the network: devices, cores and memory in use, health, and the jobs there."""
    found = workspace_of(context).nodes(scene)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each.name,
            "/".join(each.domain) or "-",
            state_of(each),
            f"{sum(each.held) / 1000:g} of {len(each.held)} {each.model}" if each.held else "-",
            f"{each.cpu_held_milli / 1000:g} of {each.cpu_milli / 1000:g}",
            f"{size(each.memory_held_mib * MIB)} of {size(each.memory_mib * MIB)}",
            ", ".join(each.gangs) or "-",
        )
        for each in found
    ]
    print_table(
        ("node", "where", "state", "devices", "cores", "memory", "jobs"), rows, drop=("memory", "where", "cores")
    )


def state_of(node: NodeUse) -> str:
    """Whether a node is given work, and which of its devices are not."""
    if not node.open:
        return "closed"
    return f"devices {', '.join(map(str, node.sick))} sick" if node.sick else "open"
