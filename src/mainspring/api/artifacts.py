"""Artifacts: what was made, where it came from, what a report says."""

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse

from mainspring.api.access import Access, Count, Position
from mainspring.store import parse
from mainspring.store.lineage import Direction
from mainspring.workspace import Workspace


def router(workspace: Workspace, access: Access) -> APIRouter:
    """The routes of `/artifacts`, `/lineage`, `/reports` and `/events`."""
    routes = APIRouter(tags=["artifacts"], dependencies=[Depends(access.needs("viewer"))])

    @routes.get("/artifacts")
    def list_artifacts(kind: str = "", name: str = "") -> Any:
        return parse.to_dict(workspace.artifacts(kind=kind, name=name))

    @routes.get("/artifacts/{ref}")
    def show(ref: str) -> Any:
        return parse.to_dict(workspace.artifact(ref))

    @routes.get("/lineage/{ref}")
    def lineage(ref: str, direction: Direction = "both") -> Any:
        return parse.to_dict(workspace.lineage(ref, direction=direction))

    @routes.get("/reports/{ref}")
    def report(ref: str) -> Any:
        return parse.to_dict(workspace.report(ref))

    @routes.get("/reports/{ref}/gate")
    def gate(ref: str) -> Any:
        return parse.to_dict(workspace.gate(ref))

    @routes.get("/reports/{ref}/page", response_class=PlainTextResponse)
    def report_page(ref: str) -> str:
        return workspace.report_page(ref)

    @routes.get("/events")
    def events(kind: str = "", subject: str = "", after: Position = 0, limit: Count = 1000) -> Any:
        return parse.to_dict(workspace.events(kind=kind, subject=subject, after=after, limit=limit))

    return routes
