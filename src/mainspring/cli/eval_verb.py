"""`mainspring eval`: measure a model on held-out documents, against baselines and another model."""

from typing import Annotated

import typer

from mainspring.cli.completion import ModelRef, refs
from mainspring.cli.follow import follow
from mainspring.cli.output import print_json, print_table
from mainspring.cli.session import AsJson, workspace_of


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("eval", epilog="Example: mainspring eval model:handbook-lm-w8a8 --compare-to model:handbook-lm")(
        evaluate
    )


def evaluate(
    context: typer.Context,
    model: ModelRef,
    data: Annotated[
        str,
        typer.Option(help="Tokens with a held-out split; the model's own by default.", autocompletion=refs("tokens")),
    ] = "",
    compare_to: Annotated[
        str, typer.Option(help="Another model, evaluated side by side.", autocompletion=refs("model"))
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Measure MODEL and publish the report."""
    workspace = workspace_of(context)
    artifact = follow(workspace.evaluate(model, data=data, compare_to=compare_to), quiet=as_json)
    report = workspace.report(artifact.ref)
    if as_json:
        print_json(report)
        return
    rows = []
    for score in report.scores:
        spread = f"[{score.low:.4g}, {score.high:.4g}]" if score.low is not None and score.high is not None else ""
        against = f"{score.baseline:.4g} ({score.baseline_name})" if score.baseline is not None else ""
        rows.append((score.name, f"{score.value:.4g}", spread, score.unit, against))
    print_table(("score", "value", "95 %", "unit", "against"), rows, title=f"{artifact.ref}: {report.subject}")
    for note in report.notes:
        print(note)
