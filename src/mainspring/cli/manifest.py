"""`mainspring manifest`: the quota tree and the cluster as Kubernetes objects, for those who schedule there."""

from typing import Annotated

import typer

from mainspring.cli.output import print_json
from mainspring.cli.session import AsJson, workspace_of
from mainspring.spec import Target


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("manifest", epilog="Example: mainspring manifest kueue --quotas quotas.toml")(manifest)


def manifest(
    context: typer.Context,
    target: Annotated[Target, typer.Argument(help="kueue: the quota tree. kuberay: the cluster and its scheduler.")],
    cluster: Annotated[str, typer.Option(help="A cluster file, instead of the machines at hand.")] = "",
    quotas: Annotated[str, typer.Option(help="A quota file; MAINSPRING_QUOTAS by default.")] = "",
    image: Annotated[str, typer.Option(help="The image that Ray's pods run, with mainspring in it.")] = "",
    namespace: Annotated[str, typer.Option(help="Where queues and pods live.")] = "default",
    as_json: AsJson = False,
) -> None:
    """Print Kubernetes objects in YAML: Kueue queues of the quota tree, or a KubeRay cluster with our scheduler."""
    text = workspace_of(context).manifest(target, cluster=cluster, quotas=quotas, image=image, namespace=namespace)
    print_json({"yaml": text}) if as_json else print(text, end="")
