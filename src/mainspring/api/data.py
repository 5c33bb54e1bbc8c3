"""Datasets: what was dropped and why, documents, differences."""

from typing import Any

from fastapi import APIRouter, Depends

from mainspring.api.access import Access, Count, Position
from mainspring.store import parse
from mainspring.workspace import Workspace


def router(workspace: Workspace, access: Access) -> APIRouter:
    """The routes of `/datasets`."""
    routes = APIRouter(tags=["data"], dependencies=[Depends(access.needs("viewer"))])

    @routes.get("/datasets/{ref}/report")
    def report(ref: str) -> Any:
        return parse.to_dict(workspace.data_report(ref))

    @routes.get("/datasets/{ref}/documents")
    def documents(ref: str, count: Count = 20, offset: Position = 0) -> Any:
        return parse.to_dict(workspace.documents(ref, count=count, offset=offset))

    @routes.get("/datasets/{old}/diff/{new}")
    def diff(old: str, new: str) -> Any:
        return parse.to_dict(workspace.data_diff(old, new))

    return routes
