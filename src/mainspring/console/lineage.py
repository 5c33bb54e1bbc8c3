"""Lineage as a graph of artifacts: each box leads to the artifact, the line in it to the run that made it."""

from mainspring.console.graph import Node
from mainspring.console.graph import draw as draw_graph
from mainspring.console.markup import Markup
from mainspring.console.parts import TONES
from mainspring.console.words import address_of, ago
from mainspring.spec import Lineage


def draw(found: Lineage, *, current: str) -> Markup | None:
    """The graph around `current`, an artifact's reference or a run's id; None when it stands alone.

    A run that has made nothing (yet) is a box of its own, so that what it read can be followed too.
    """
    if not found.edges:
        return None
    runs = {run.id: run for run in found.runs}
    made_by = {edge.ref: edge.run for edge in found.edges if edge.role == "output"}
    taken = {run: [edge.ref for edge in found.edges if edge.run == run and edge.role == "input"] for run in runs}
    nodes = []
    for artifact in found.artifacts:
        run = runs.get(made_by.get(artifact.ref, artifact.run))
        nodes.append(
            Node(
                id=artifact.ref,
                title=artifact.ref,
                note=f"{run.kind} {run.name}, {ago(artifact.created_s)}" if run else ago(artifact.created_s),
                href=address_of(artifact.ref),
                note_href=f"/runs/{run.id}" if run else "",
                tone="good",
                current=current in (artifact.ref, run.id if run else ""),
            )
        )
    edges = [(ref, made) for made, run in made_by.items() for ref in taken.get(run, [])]
    for run in runs.values():
        if run.id not in made_by.values():
            tone = TONES.get(run.state, "run")
            nodes.append(
                Node(
                    id=run.id,
                    title=run.name,
                    note=f"{run.kind}, {run.state.lower()}",
                    href=f"/runs/{run.id}",
                    tone=tone,
                    current=run.id == current,
                )
            )
            edges += [(ref, run.id) for ref in taken[run.id]]
    return draw_graph(nodes, edges, label=f"Lineage of {current}")
