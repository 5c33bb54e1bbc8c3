"""Runs: start one by its verb, follow it, read what it says, stop it."""

import hashlib
import re
import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict

from mainspring.api.access import MOST, Access, Count
from mainspring.spec import TERMINAL, Objective, Plan, SpecError, Turn, Unavailable
from mainspring.store import parse
from mainspring.workspace import VOCAB, Dedup, Run, Workspace

RECIPE_NAME = re.compile(r"\w[\w. -]{0,99}\.py")


class Body(BaseModel):
    """A request body: an unknown field is an error that names it."""

    model_config = ConfigDict(extra="forbid")


class DataBody(Body):
    """Publish a dataset from a source this machine can read."""

    name: str
    source: str
    dedup: Dedup = "balanced"


class PlanBody(Body):
    """Plan a recipe, sent as text."""

    recipe: str
    recipe_name: str = "recipe.py"
    data: str = ""
    optimize: Objective = "time"
    ranks: int | None = None
    vocab: int = VOCAB
    overrides: list[str] = []


class TrainBody(Body):
    """Train a recipe, sent as text; `plan` is one that `/plan` gave."""

    recipe: str
    recipe_name: str = "recipe.py"
    data: str
    plan: dict[str, Any] | None = None
    name: str = ""
    resume: str = ""
    vocab: int = VOCAB
    turn: dict[str, Any] = {}
    menu: list[dict[str, Any]] = []
    overrides: list[str] = []


class EvaluateBody(Body):
    """Evaluate a model."""

    model: str
    data: str = ""
    compare_to: str = ""


class CompressBody(Body):
    """Quantise a model."""

    model: str
    scheme: str = "w8a8"
    data: str = ""
    name: str = ""


class ServeBody(Body):
    """Serve a model on a process of its own."""

    model: str
    port: int = 0
    name: str = ""


class AppBody(Body):
    """Publish an assistant."""

    name: str
    corpus: str
    engine: str = ""
    embedder: str = "lsa"


def router(workspace: Workspace, access: Access) -> APIRouter:
    """The routes of `/runs`, `/plan` and the verbs."""
    routes = APIRouter(tags=["runs"])
    read, write = [Depends(access.needs("viewer"))], [Depends(access.needs("editor"))]

    @routes.get("/runs", dependencies=read)
    def list_runs(kind: str = "", active: bool = False, limit: Count = 100) -> Any:  # noqa: FBT001, FBT002 a query
        return parse.to_dict(workspace.runs(kind=kind, active=active, limit=limit))

    @routes.get("/runs/{run_id}", dependencies=read)
    def show_run(run_id: str) -> Any:
        return _told(workspace.run(run_id))

    @routes.get("/runs/{run_id}/logs", dependencies=read, response_class=PlainTextResponse)
    def logs(run_id: str, rank: int | None = None, tail: Count | None = None) -> str:
        return workspace.run(run_id).logs(rank, tail=tail)

    @routes.get("/runs/{run_id}/metrics", dependencies=read)
    def metrics(run_id: str, most: Count = MOST) -> Any:
        return workspace.run(run_id).metrics(most)

    @routes.get("/runs/{run_id}/result", dependencies=read)
    def result(run_id: str) -> Any:
        run = workspace.run(run_id)
        if run.record.state not in TERMINAL:
            raise Unavailable(f"run {run_id} is {run.record.state}", hint="ask again later")
        return parse.to_dict(run.result())

    @routes.get("/runs/{run_id}/ref", dependencies=read)
    def ref(run_id: str) -> str:
        return workspace.run(run_id).ref

    @routes.post("/runs/{run_id}/stop", dependencies=write)
    def stop(run_id: str) -> Any:
        run = workspace.run(run_id)
        run.stop()
        return _told(run)

    @routes.get("/runs/{run_id}/resume", dependencies=read)
    def can_resume(run_id: str) -> bool:
        return workspace.can_resume(run_id)

    _add_plans(routes, workspace, write)
    _add_verbs(routes, workspace, write)
    return routes


def _add_plans(routes: APIRouter, workspace: Workspace, write: list[Any]) -> None:
    """How a recipe would run."""

    @routes.post("/plan", dependencies=write)
    def plan(body: PlanBody) -> Any:
        recipe = _keep(workspace, body.recipe, body.recipe_name)
        return parse.to_dict(
            workspace.plan(
                recipe,
                data=body.data,
                optimize=body.optimize,
                ranks=body.ranks,
                vocab=body.vocab,
                overrides=body.overrides,
            )
        )

    @routes.post("/plan/menu", dependencies=write)
    def menu(body: PlanBody) -> Any:
        recipe = _keep(workspace, body.recipe, body.recipe_name)
        return parse.to_dict(
            workspace.menu(recipe, data=body.data, optimize=body.optimize, vocab=body.vocab, overrides=body.overrides)
        )


def _add_verbs(routes: APIRouter, workspace: Workspace, write: list[Any]) -> None:
    """One POST per verb; each answers with the run it started."""

    @routes.post("/runs/{run_id}/resume", dependencies=write, status_code=202)
    def resume(run_id: str) -> Any:
        return _told(workspace.resume(run_id))

    @routes.post("/data", dependencies=write, status_code=202)
    def publish_data(body: DataBody) -> Any:
        return _told(workspace.publish_data(body.name, source=body.source, dedup=body.dedup))

    @routes.post("/train", dependencies=write, status_code=202)
    def train(body: TrainBody) -> Any:
        recipe = _keep(workspace, body.recipe, body.recipe_name)
        plan = parse.read_dict(body.plan, Plan, where="plan") if body.plan else None
        run = workspace.train(
            recipe,
            data=body.data,
            plan=plan,
            name=body.name or Path(body.recipe_name).stem,
            resume=body.resume,
            vocab=body.vocab,
            turn=parse.read_dict(body.turn, Turn, where="turn"),
            menu=[parse.read_dict(each, Plan, where="menu") for each in body.menu],
            overrides=body.overrides,
        )
        return _told(run)

    @routes.post("/evaluate", dependencies=write, status_code=202)
    def evaluate(body: EvaluateBody) -> Any:
        return _told(workspace.evaluate(body.model, data=body.data, compare_to=body.compare_to))

    @routes.post("/compress", dependencies=write, status_code=202)
    def compress(body: CompressBody) -> Any:
        return _told(workspace.compress(body.model, scheme=body.scheme, data=body.data, name=body.name))

    @routes.post("/serve", dependencies=write, status_code=202)
    def serve(body: ServeBody) -> Any:
        return _told(workspace.serve(body.model, port=body.port, name=body.name))

    @routes.post("/apps", dependencies=write, status_code=202)
    def publish_app(body: AppBody) -> Any:
        run = workspace.publish_app(body.name, corpus=body.corpus, engine=body.engine, embedder=body.embedder)
        return _told(run)


def _told(run: Run) -> dict[str, Any]:
    """A run as its record, how far it is, and what it has cost."""
    fraction, message = run.progress
    return {
        **parse.to_dict(run.record),
        "progress": {"fraction": fraction, "message": message},
        "cost": parse.to_dict(run.cost),
    }


def _keep(workspace: Workspace, text: str, name: str) -> Path:
    """The recipe as a file of its own, found again by its digest; written once, as ranks may be reading it."""
    if not RECIPE_NAME.fullmatch(name):
        raise SpecError(f"{name!r} is not the name of a recipe", hint="a file name such as recipe.py")
    path = workspace.store.home / "recipes" / hashlib.sha256(text.encode()).hexdigest()[:16] / name
    if path.exists():
        return path
    partial = path.with_name(f"{name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise Unavailable(f"cannot keep the recipe {name}: {error.strerror}", hint="free some disk space") from error
    return path
