"""Assistants: ask one, and say what was wrong."""

from typing import Any

from fastapi import APIRouter, Depends

from mainspring.api.access import Access
from mainspring.api.runs import Body
from mainspring.spec import Identity, Thumb
from mainspring.store import parse
from mainspring.workspace import Workspace


class AskBody(Body):
    """One question."""

    question: str


class FeedbackBody(Body):
    """What somebody thinks of an answer."""

    trace: str
    thumb: Thumb
    correction: str = ""
    comment: str = ""


def router(workspace: Workspace, access: Access) -> APIRouter:
    """The routes of `/apps`."""
    routes = APIRouter(tags=["apps"])

    @routes.post("/apps/{name}/ask", dependencies=[Depends(access.needs("viewer"))])
    def ask(name: str, body: AskBody) -> Any:
        return parse.to_dict(workspace.ask(name, body.question))

    @routes.post("/apps/{name}/feedback")
    def feedback(name: str, body: FeedbackBody, who: Identity = Depends(access.needs("viewer"))) -> Any:  # noqa: B008
        row = workspace.feedback(
            name,
            trace=body.trace,
            thumb=body.thumb,
            correction=body.correction,
            comment=body.comment,
            author=who.name,
        )
        return parse.to_dict(row)

    return routes
