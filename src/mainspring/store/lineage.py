"""What an artifact was made from and what was made of it, across any number of runs."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, select

from mainspring.spec import Artifact, Edge, Lineage, NotFound, SpecError
from mainspring.store.artifacts import Shelf
from mainspring.store.database import edges, runs

Direction = Literal["both", "up", "down"]
FOLLOW = {"up": ("output", "input"), "down": ("input", "output")}
"""Per direction: the role by which an artifact leads to runs, and by which those runs lead to artifacts."""


class Ancestry(Shelf):
    """Follow lineage edges in this workspace."""

    def lineage(self, ref_or_run: str, direction: Direction = "both") -> Lineage:
        """Everything connected to an artifact or run: `up` to its sources, `down` to what came of it."""
        if direction not in get_args(Direction):
            raise SpecError(f"lineage has no direction {direction!r}", hint="one of both, up, down")
        artifact = self.resolve(ref_or_run) if ":" in ref_or_run else None
        try:
            run = None if artifact else self.run(ref_or_run).id
        except NotFound as error:
            raise NotFound(f"{ref_or_run!r} is neither an artifact nor a run", hint=self._near(ref_or_run)) from error
        found: set[Edge] = set()
        with self.read():
            for way in ("up", "down") if direction == "both" else (direction,):
                found |= self._follow(artifact, run, way)
            refs = {edge.ref for edge in found} | ({artifact.ref} if artifact else set())
            ids = {edge.run for edge in found} | ({run} if run else set())
            return Lineage(
                artifacts=tuple(self.resolve(ref) for ref in sorted(refs)),
                runs=tuple(self.run(run_id) for run_id in sorted(ids)),
                edges=tuple(sorted(found, key=lambda edge: (edge.run, edge.role, edge.ref))),
            )

    def _follow(self, artifact: Artifact | None, run: str | None, way: str) -> set[Edge]:
        into, out_of = FOLLOW[way]
        found: set[Edge] = set()
        new_refs = {artifact.ref} if artifact else set()
        new_runs = {run} if run else set()
        seen_runs: set[str] = set()
        seen_refs: set[str] = set()
        while new_refs or new_runs:
            seen_refs |= new_refs
            reached = self._edges(edges.c.ref, sorted(new_refs), into)
            new_runs = (new_runs | {edge.run for edge in reached}) - seen_runs
            seen_runs |= new_runs
            left = self._edges(edges.c.run, sorted(new_runs), out_of)
            found |= reached | left
            new_refs, new_runs = {edge.ref for edge in left} - seen_refs, set()
        return found

    def _edges(self, column: ColumnElement[Any], values: Sequence[str], role: str) -> set[Edge]:
        found: set[Edge] = set()
        with self.read() as connection:
            for start in range(0, len(values), 500):
                query = (
                    select(edges)
                    .join(runs, runs.c.id == edges.c.run)
                    .where(runs.c.workspace == self.workspace, edges.c.role == role)
                    .where(column.in_(values[start : start + 500]))
                )
                found |= {Edge(run=r.run, ref=r.ref, role=r.role) for r in connection.execute(query)}
        return found
