"""A job described by options, for the verbs that ask what would happen to it; and the file of a described cluster."""

from typing import Annotated

import typer

from mainspring.spec import Gang, Request, SpecError

SceneFile = Annotated[
    str, typer.Option("--scene", metavar="FILE", help="Ask about the cluster this TOML file describes, not this one.")
]
Ranks = Annotated[int, typer.Option(help="Instead of a job: one of this many ranks, described by what follows.", min=0)]
Devices = Annotated[float, typer.Option(help="Devices of each rank; a part of one is a share.", min=0.0)]
Model = Annotated[list[str] | None, typer.Option(help="A model of device that it may use; any by default.")]
Cpus = Annotated[float, typer.Option(help="Cores of each rank.", min=0.0)]
Priority = Annotated[int, typer.Option(help="Its priority within its queue.")]
Level = Annotated[str, typer.Option(help="Keep it within one of this level of the network, for example rack.")]
NAMELESS = "this job"


def describe(
    *, queue: str, ranks: int, devices: float, models: list[str] | None, cpus: float, priority: int = 0, level: str = ""
) -> Gang:
    """The gang that the options describe. Raises `SpecError` for one that cannot be."""
    if not queue:
        raise SpecError("a job waits in a queue", hint="say in which: --queue NAME")
    try:
        request = Request.of(cpus=cpus, devices=devices, models=tuple(models or ()))
    except ValueError as error:
        raise SpecError(str(error), hint="for example --devices 0.5, or --devices 2") from error
    return Gang(
        id=NAMELESS,
        queue=queue,
        ranks=ranks,
        request=request,
        priority=priority,
        level=level,
        binding="required" if level else "preferred",
    )
