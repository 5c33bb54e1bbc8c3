"""`mainspring app`: publish an assistant, ask it, tell it what was wrong."""

from typing import Annotated

import typer

from mainspring.cli.completion import AppName, refs
from mainspring.cli.follow import follow
from mainspring.cli.output import print_json
from mainspring.cli.session import AsJson, workspace_of

verbs = typer.Typer(help="Publish an assistant, ask it, tell it what was wrong.", no_args_is_help=True)


def add_to(cli: typer.Typer) -> None:
    """Register the group."""
    cli.add_typer(verbs, name="app")


@verbs.command(
    "publish", epilog="Example: mainspring app publish handbook --corpus dataset:handbook --engine model:handbook-lm"
)
def publish(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the assistant.")],
    corpus: Annotated[
        str, typer.Option(help="The dataset it answers from, e.g. dataset:handbook.", autocompletion=refs("dataset"))
    ],
    engine: Annotated[
        str, typer.Option(help="The model that may write answers, if its gate is passed.", autocompletion=refs("model"))
    ] = "",
    embedder: Annotated[str, typer.Option(help="lsa, or any sentence-transformers model by folder or name.")] = "lsa",
    as_json: AsJson = False,
) -> None:
    """Build the retrieval index and publish the assistant NAME."""
    run = workspace_of(context).publish_app(name, corpus=corpus, engine=engine, embedder=embedder)
    artifact = follow(run, quiet=as_json)
    print_json(artifact) if as_json else print(artifact.ref)


@verbs.command("ask", epilog="Example: mainspring app ask handbook 'How do I read JSON from a file?'")
def ask(
    context: typer.Context,
    name: AppName,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know.")],
    as_json: AsJson = False,
) -> None:
    """Ask the assistant NAME; the answer cites its sources."""
    answer = workspace_of(context).ask(name, question)
    if as_json:
        print_json(answer)
        return
    print(answer)
    print(f"trace {answer.trace}")


@verbs.command(
    "feedback", epilog="Example: mainspring app feedback handbook TRACE --down --correction 'json.load reads a file.'"
)
def feedback(
    context: typer.Context,
    name: AppName,
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="The trace printed under the answer.")],
    good: Annotated[bool, typer.Option("--up/--down", help="Whether the answer helped.")],
    correction: Annotated[str, typer.Option(help="What the answer should have said.")] = "",
    comment: Annotated[str, typer.Option(help="Anything else.")] = "",
    as_json: AsJson = False,
) -> None:
    """Record what you think of an answer, tied to what it was made from."""
    row = workspace_of(context).feedback(
        name, trace=trace, thumb="up" if good else "down", correction=correction, comment=comment
    )
    print_json(row) if as_json else print(f"thank you: recorded for {row.snapshot}")
