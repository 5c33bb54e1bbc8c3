"""`mainspring compress`: fewer bits for a model, checked against the original."""

from typing import Annotated

import typer

from mainspring.cli.completion import ModelRef, refs
from mainspring.cli.follow import follow
from mainspring.cli.output import print_json
from mainspring.cli.session import AsJson, workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("compress", epilog="Example: mainspring compress model:handbook-lm --data dataset:handbook")(compress)


def compress(
    context: typer.Context,
    model: ModelRef,
    scheme: Annotated[str, typer.Option(help="How to store weights and activations.")] = "w8a8",
    data: Annotated[
        str, typer.Option(help="Dataset to calibrate and measure the error on.", autocompletion=refs("dataset"))
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the result.")] = "",
    as_json: AsJson = False,
) -> None:
    """Quantise MODEL and publish the result with its lineage."""
    artifact = follow(workspace_of(context).compress(model, scheme=scheme, data=data, name=name), quiet=as_json)
    print_json(artifact) if as_json else print(artifact.ref)
