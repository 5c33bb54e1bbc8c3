"""The cluster and its queues: who waits and why, what runs where, who holds how much, and what would happen if."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Query

from mainspring.api.access import Access
from mainspring.spec import Gang, Site, WorkSize
from mainspring.store import parse
from mainspring.workspace import Workspace


def router(workspace: Workspace, access: Access) -> APIRouter:
    """The routes of `/cluster` and `/estimate`; all of them only tell."""
    routes = APIRouter(tags=["cluster"], dependencies=[Depends(access.needs("viewer"))])

    @routes.get("/cluster/queue")
    def queue() -> Any:
        return parse.to_dict(workspace.queue())

    @routes.get("/cluster/nodes")
    def nodes() -> Any:
        return parse.to_dict(workspace.nodes())

    @routes.get("/cluster/quota")
    def quota() -> Any:
        return parse.to_dict(workspace.usage())

    @routes.get("/cluster/queues")
    def queues() -> Any:
        return parse.to_dict(workspace.quotas())

    @routes.get("/cluster/why")
    def why(job: Annotated[str, Query(description="Every job when empty.")] = "") -> Any:
        return parse.to_dict(workspace.why(job))

    @routes.post("/cluster/why")
    def why_described(gang: Annotated[dict[str, Any], Body()]) -> Any:
        return parse.to_dict(workspace.why(parse.read_dict(gang, Gang)))

    @routes.post("/cluster/gather")
    def gather(
        queue: Annotated[str, Body()],
        job: Annotated[str | dict[str, Any], Body(description="One that waits, or a gang.")],
        hours: Annotated[float, Body(ge=0)] = 24.0,
    ) -> Any:
        target = job if isinstance(job, str) else parse.read_dict(job, Gang)
        return parse.to_dict(workspace.plan_gather(queue, target, hours=hours))

    @routes.post("/estimate")
    def estimate(
        work: Annotated[dict[str, Any], Body()],
        device: Annotated[str, Body()] = "",
        devices: Annotated[int, Body(ge=0)] = 0,
        utilisation: Annotated[float, Body(ge=0, le=1)] = 0.0,
        site: Annotated[dict[str, Any] | None, Body()] = None,
        instances: Annotated[Literal["", "all"], Body(description="In whole machines of the catalogue.")] = "",
    ) -> Any:
        return parse.to_dict(
            workspace.estimate(
                parse.read_dict(work, WorkSize),
                device=device,
                devices=devices,
                utilisation=utilisation,
                site=parse.read_dict(site or {}, Site),
                instances=instances,
            )
        )

    return routes
