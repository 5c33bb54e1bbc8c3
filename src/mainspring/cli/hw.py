"""`mainspring hw`: what machines are here, and whether they are well."""

from typing import Annotated

import typer

from mainspring.cli.output import print_json, print_table, size
from mainspring.cli.session import AsJson, workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("hw", epilog="Example: mainspring hw --cluster cluster.toml")(hw)


def hw(
    context: typer.Context,
    cluster: Annotated[str, typer.Option(help="A cluster file, instead of the machines at hand.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show devices, memory, links and health of this machine, of the cluster, or of a cluster file."""
    found = workspace_of(context).hardware(cluster)
    if as_json:
        print_json(found)
        return
    rows = []
    for node in found.nodes:
        ills = {health.device: health for health in node.health}
        for device in node.devices:
            health = ills.get(device.name)
            state = health.state + (f" ({'; '.join(health.reasons)})" if health.reasons else "") if health else "-"
            rows.append(
                (
                    node.name,
                    device.name,
                    size(device.memory_bytes),
                    f"{device.memory_bytes_per_s / 1e9:.0f} GB/s",
                    f"{device.fp32_flops_per_s / 1e12:.3g}",
                    f"{device.bf16_flops_per_s / 1e12:.3g}",
                    f"{node.link.name} {node.link.bytes_per_s / 1e9:.3g} GB/s",
                    state,
                )
            )
    print_table(
        ("node", "device", "memory", "bandwidth", "fp32 TFLOP/s", "bf16 TFLOP/s", "link", "health"),
        rows,
        title=f"{found.name}: {len(found.nodes)} node(s), {found.device_count} device(s)",
        drop=("link", "fp32 TFLOP/s", "bandwidth", "node"),
    )
    for said in dict.fromkeys(line for node in found.nodes for line in node.isolation):
        print(said)
