"""The machine: hardware, health and doctor's checks."""

from typing import Any

from fastapi import APIRouter, Depends

from mainspring.api.access import Access
from mainspring.store import parse
from mainspring.workspace import Workspace


def router(workspace: Workspace, access: Access) -> APIRouter:
    """The routes of `/hardware` and `/doctor`."""
    routes = APIRouter(tags=["machine"], dependencies=[Depends(access.needs("viewer"))])

    @routes.get("/hardware")
    def hardware() -> Any:
        return parse.to_dict(workspace.hardware())

    @routes.get("/doctor")
    def doctor() -> Any:
        return parse.to_dict(workspace.doctor(contents=False))

    return routes
