"""A workspace on another machine: the same verbs, spoken over its control API.

What a local workspace does with open files and processes is not here: `dataset` chains, `flow`, `serve_forever`,
tokens and repairs belong to the machine that owns the workspace.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from mainspring.flow.execution import Cost
from mainspring.hardware import topology
from mainspring.spec import (
    TERMINAL,
    Answer,
    Artifact,
    Cancelled,
    Check,
    Cluster,
    ClusterFile,
    CurationReport,
    Denied,
    Document,
    DoesNotFit,
    Event,
    Failed,
    Feedback,
    Gang,
    GateDecision,
    GatherPlan,
    Lineage,
    MainspringError,
    NodeUse,
    NotFound,
    Objective,
    Plan,
    PolicyName,
    Queue,
    QueueFile,
    QueueShare,
    Report,
    RunRecord,
    Simulation,
    Site,
    Sized,
    SnapshotDiff,
    SpecError,
    Target,
    Thumb,
    Turn,
    Unavailable,
    Waiting,
    Why,
    WorkerLost,
    WorkSize,
)
from mainspring.store import parse
from mainspring.store.lineage import Direction

T = TypeVar("T")
TIMEOUT_S = 120.0
POLL_S = 0.5
MOST_ROWS = 10_000
ERRORS = {
    kind.__name__: kind
    for kind in (Cancelled, Denied, DoesNotFit, Failed, NotFound, SpecError, Unavailable, WorkerLost)
}

THERE = "run it there"
INSTEAD = {
    "dataset": "through a URL it is publish_data(name, source=...)",
    "app": "through a URL it is publish_app(name, corpus=...), then ask(name, question)",
    "open_app": "through a URL it is ask(name, question)",
    "flow": THERE,
    "watch_flow": THERE,
    "serve_forever": "through a URL it is serve(model)",
    "create_token": THERE,
    "revoke_token": THERE,
}
"""Verbs of a local workspace that are not spoken over HTTP, and what to do instead."""


class RemoteRun:
    """A run of another machine; answers like `workspace.Run`."""

    def __init__(self, workspace: "RemoteWorkspace", told: Mapping[str, Any]) -> None:
        self.workspace = workspace
        self.id: str = told["id"]

    def __repr__(self) -> str:
        return f"RemoteRun({self.id!r})"

    @property
    def record(self) -> RunRecord:
        """What the other side knows of it now."""
        told = dict(self._told())
        del told["progress"], told["cost"]
        return parse.read_dict(told, RunRecord)

    @property
    def done(self) -> bool:
        """Whether it has ended, well or badly."""
        return self._told()["state"] in TERMINAL

    @property
    def progress(self) -> tuple[float, str]:
        """The latest fraction in [0, 1] and what it was doing."""
        noted = self._told()["progress"]
        return noted["fraction"], noted["message"]

    @property
    def cost(self) -> Cost:
        """Seconds and joules so far."""
        return Cost(**self._told()["cost"])

    def result(self, timeout_s: float | None = None) -> Artifact | None:
        """Wait for the end and return what the verb made; raises the error that ended it."""
        deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        waiting = threading.Event()
        while not self.done:
            if deadline is not None and time.monotonic() > deadline:
                raise Unavailable(f"run {self.id} is still running after {timeout_s} s")
            waiting.wait(POLL_S)
        found = self.workspace.get(f"runs/{self.id}/result")
        return parse.read_dict(found, Artifact) if found else None

    @property
    def ref(self) -> str:
        """The artifact it made, or the model it serves; `SpecError` while there is none."""
        return self.workspace.get(f"runs/{self.id}/ref")

    def logs(self, rank: int | None = None, *, tail: int | None = None) -> str:
        """What it said."""
        given = {"rank": rank, "tail": tail}
        return self.workspace.text(f"runs/{self.id}/logs", {key: n for key, n in given.items() if n is not None})

    def metrics(self, most: int = MOST_ROWS) -> tuple[dict[str, float], ...]:
        """The time series it has written so far; of a longer one `most` rows, spread."""
        return tuple(self.workspace.get(f"runs/{self.id}/metrics", {"most": most}))

    def stop(self) -> None:
        """Ask it to stop."""
        self.workspace.post(f"runs/{self.id}/stop", {})

    def abandon(self) -> None:
        """Leave it to the other side, which has been asked to stop it."""

    def _told(self) -> dict[str, Any]:
        return self.workspace.get(f"runs/{self.id}")


class RemoteWorkspace:
    """The verbs of a workspace behind `url`. Close it, or use it in `with`."""

    def __init__(self, url: str, *, token: str = "") -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=f"{self.url}/api/v1/", headers=headers, timeout=TIMEOUT_S)

    def __repr__(self) -> str:
        return f"RemoteWorkspace({self.url!r})"

    def __getattr__(self, name: str) -> Any:
        """Say what to write instead of a verb that only the workspace's own machine has."""
        told = INSTEAD.get(name)
        if told is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(f"`{name}` needs the files of the machine that owns the workspace; {told}")

    def __enter__(self) -> "RemoteWorkspace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    # -- the wire

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """The JSON of one resource; raises the error the other side raised."""
        return self._send("GET", path, params=query).json()

    def text(self, path: str, query: Mapping[str, Any]) -> str:
        """The text of one resource."""
        return self._send("GET", path, params=query).text

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send `body` and return the JSON of the answer."""
        return self._send("POST", path, json=body).json()

    def _send(self, method: str, path: str, **given: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **given)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"{self.url} does not answer: {error}", hint="is `mainspring up` running there?"
            ) from error
        if response.is_success:
            return response
        error = _error(response)
        if isinstance(error, Denied) and "Authorization" not in self._http.headers:
            error = Denied(str(error), hint="give one: ms.connect(url, token=...), --token or MAINSPRING_TOKEN")
        raise error

    # -- the verbs

    def publish_data(self, name: str, *, source: str, dedup: str = "balanced") -> RemoteRun:
        """Publish a dataset from a source the other machine can read."""
        return RemoteRun(self, self.post("data", {"name": name, "source": source, "dedup": dedup}))

    def plan(
        self,
        recipe: str | Path,
        *,
        data: Any = "",
        optimize: Objective = "time",
        ranks: int | None = None,
        cluster: str | Path = "",
        vocab: int = 4096,
        overrides: Sequence[str] = (),
    ) -> Plan:
        """How `recipe` would run there."""
        if cluster:
            raise SpecError("a remote workspace plans for its own machines", hint="plan a cluster file locally")
        body = _recipe(recipe) | {"data": _ref(data), "optimize": optimize, "ranks": ranks, "vocab": vocab}
        return parse.read_dict(self.post("plan", body | {"overrides": list(overrides)}), Plan)

    def menu(
        self,
        recipe: str | Path,
        *,
        data: Any = "",
        optimize: Objective = "time",
        cluster: str | Path = "",
        vocab: int = 4096,
        overrides: Sequence[str] = (),
    ) -> tuple[Plan, ...]:
        """The best plan there for each number of ranks that could be offered."""
        if cluster:
            raise SpecError("a remote workspace plans for its own machines", hint="plan a cluster file locally")
        body = _recipe(recipe) | {"data": _ref(data), "optimize": optimize, "vocab": vocab}
        found = self.post("plan/menu", body | {"overrides": list(overrides)})
        return tuple(parse.read_dict(each, Plan) for each in found)

    def train(
        self,
        recipe: str | Path,
        *,
        data: Any,
        plan: Plan | None = None,
        name: str = "",
        resume: str = "",
        vocab: int = 4096,
        turn: Turn = Turn(),  # noqa: B008 it is frozen
        menu: Sequence[Plan] = (),
        overrides: Sequence[str] = (),
    ) -> RemoteRun:
        """Train `recipe`, sent as text, on `data`."""
        body = _recipe(recipe) | {"data": _ref(data), "name": name, "resume": resume, "vocab": vocab}
        body |= {"turn": parse.to_dict(turn), "menu": [parse.to_dict(each) for each in menu]}
        planned = parse.to_dict(plan) if plan else None
        return RemoteRun(self, self.post("train", body | {"plan": planned, "overrides": list(overrides)}))

    def resume(self, run_id: str) -> RemoteRun:
        """Go on with a training run that was stopped or failed, there."""
        return RemoteRun(self, self.post(f"runs/{_part(run_id)}/resume", {}))

    def can_resume(self, run_id: str) -> bool:
        """Whether a run is training that ended too early and left a checkpoint to go on from."""
        return self.get(f"runs/{_part(run_id)}/resume")

    def evaluate(self, model: Any, *, data: Any = "", compare_to: Any = "") -> RemoteRun:
        """Measure a model."""
        body = {"model": _ref(model), "data": _ref(data), "compare_to": _ref(compare_to)}
        return RemoteRun(self, self.post("evaluate", body))

    def compress(self, model: Any, *, scheme: str = "w8a8", data: Any = "", name: str = "") -> RemoteRun:
        """Quantise a model."""
        body = {"model": _ref(model), "scheme": scheme, "data": _ref(data), "name": name}
        return RemoteRun(self, self.post("compress", body))

    def serve(self, model: Any, *, port: int = 0, name: str = "") -> RemoteRun:
        """Serve a model on a process of its own, there."""
        return RemoteRun(self, self.post("serve", {"model": _ref(model), "port": port, "name": name}))

    def publish_app(self, name: str, *, corpus: Any, engine: Any = "", embedder: str = "lsa") -> RemoteRun:
        """Publish an assistant."""
        body = {"name": name, "corpus": _ref(corpus), "engine": _ref(engine), "embedder": embedder}
        return RemoteRun(self, self.post("apps", body))

    def ask(self, name: str, question: str) -> Answer:
        """Ask the assistant `name` one question."""
        return parse.read_dict(self.post(f"apps/{_part(name)}/ask", {"question": question}), Answer)

    def feedback(self, name: str, *, trace: str, thumb: Thumb, correction: str = "", comment: str = "") -> Feedback:
        """Record what somebody thinks of an answer."""
        body = {"trace": trace, "thumb": thumb, "correction": correction, "comment": comment}
        return parse.read_dict(self.post(f"apps/{_part(name)}/feedback", body), Feedback)

    # -- what is remembered

    def run(self, run_id: str) -> RemoteRun:
        """A run by id."""
        return RemoteRun(self, self.get(f"runs/{_part(run_id)}"))

    def runs(self, *, kind: str = "", active: bool = False, limit: int = 100) -> tuple[RunRecord, ...]:
        """Runs, newest first."""
        return self._all("runs", RunRecord, {"kind": kind, "active": active, "limit": limit})

    def artifacts(self, *, kind: str = "", name: str = "") -> tuple[Artifact, ...]:
        """Artifacts, newest first."""
        return self._all("artifacts", Artifact, {"kind": kind, "name": name})

    def artifact(self, ref: Any) -> Artifact:
        """One artifact by reference."""
        return self._one(f"artifacts/{_part(_ref(ref))}", Artifact)

    def lineage(self, ref: Any, *, direction: Direction = "both") -> Lineage:
        """What an artifact was made from, and what was made from it."""
        return parse.read_dict(self.get(f"lineage/{_part(_ref(ref))}", {"direction": direction}), Lineage)

    def report(self, ref: Any) -> Report:
        """The scores of a published report."""
        return self._one(f"reports/{_part(_ref(ref))}", Report)

    def gate(self, ref: Any) -> GateDecision:
        """Whether what a published report is about may be published, rule by rule."""
        return self._one(f"reports/{_part(_ref(ref))}/gate", GateDecision)

    def report_page(self, ref: Any) -> str:
        """A published report as one HTML page with its plots."""
        return self.text(f"reports/{_part(_ref(ref))}/page", {})

    def events(self, *, kind: str = "", subject: str = "", after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        """Events with a sequence number above `after`, oldest first."""
        return self._all("events", Event, {"kind": kind, "subject": subject, "after": after, "limit": limit})

    def data_report(self, ref: Any) -> CurationReport:
        """What was dropped and why."""
        return self._one(f"datasets/{_part(_ref(ref))}/report", CurationReport)

    def documents(self, ref: Any, *, count: int = 5, offset: int = 0) -> tuple[Document, ...]:
        """Documents of a snapshot."""
        return self._all(f"datasets/{_part(_ref(ref))}/documents", Document, {"count": count, "offset": offset})

    def data_diff(self, old: Any, new: Any) -> SnapshotDiff:
        """Which documents differ between two snapshots."""
        return self._one(f"datasets/{_part(_ref(old))}/diff/{_part(_ref(new))}", SnapshotDiff)

    def hardware(self, cluster: str | Path = "") -> Cluster:
        """The machines there, or those of a cluster file here."""
        if cluster:
            return topology.build_cluster(parse.load_toml(Path(cluster), ClusterFile))
        return self._one("hardware", Cluster)

    def nodes(self, scene: str | Path = "") -> tuple[NodeUse, ...]:
        """Every node there, and who is on it."""
        _no_scene(scene)
        return self._all("cluster/nodes", NodeUse, {})

    def usage(self, scene: str | Path = "") -> tuple[QueueShare, ...]:
        """What each queue there holds, waits for and is entitled to."""
        _no_scene(scene)
        return self._all("cluster/quota", QueueShare, {})

    def quotas(self, path: str | Path = "") -> tuple[Queue, ...]:
        """The queues of a quota file here, or those in force there."""
        if path:
            return parse.load_toml(Path(path), QueueFile).queues
        return self._all("cluster/queues", Queue, {})

    def shares(self, path: str | Path = "", *, cluster: str | Path = "") -> tuple[QueueShare, ...]:
        """What each queue of a quota file may hold on the machines there, or on those of a cluster file."""
        from mainspring.cluster.quotas import fair_shares

        return fair_shares(self.quotas(path), self.hardware(cluster))

    def manifest(
        self,
        target: Target,
        *,
        cluster: str | Path = "",
        quotas: str | Path = "",
        image: str = "",
        namespace: str = "default",
    ) -> str:
        """Kubernetes objects in YAML of the quotas and machines there, or of files here."""
        from mainspring.cluster.manifests import manifest

        queues = self.quotas(quotas) if target == "kueue" else ()
        return manifest(target, self.hardware(cluster), queues, image=image, namespace=namespace)

    def simulate(
        self,
        nodes: str | Path,
        pods: str | Path,
        *,
        policy: PolicyName = "plain",
        loads: Sequence[float] = (1.0, 1.3),
        seeds: int = 10,
    ) -> Simulation:
        """A trace is played where its files are: here."""
        from mainspring.cluster.simulate.fill import simulate

        return simulate(nodes, pods, policy=policy, loads=loads, seeds=seeds)

    def queue(self, scene: str | Path = "") -> tuple[Waiting, ...]:
        """Who waits there, and why."""
        _no_scene(scene)
        return self._all("cluster/queue", Waiting, {})

    def why(self, job: str | Gang = "", *, scene: str | Path = "") -> tuple[Why, ...]:
        """Where a job there is in life, and what would let it start."""
        _no_scene(scene)
        if isinstance(job, str):
            return self._all("cluster/why", Why, {"job": job})
        return tuple(parse.read_dict(item, Why) for item in self.post("cluster/why", parse.to_dict(job)))

    def plan_gather(self, queue: str, job: str | Gang, *, hours: float = 24.0, scene: str | Path = "") -> GatherPlan:
        """What pooling all quotas under `queue` there would do."""
        _no_scene(scene)
        target = job if isinstance(job, str) else parse.to_dict(job)
        return parse.read_dict(self.post("cluster/gather", {"queue": queue, "job": target, "hours": hours}), GatherPlan)

    def estimate(
        self,
        work: WorkSize,
        *,
        device: str = "",
        devices: int = 0,
        utilisation: float = 0.0,
        site: Site | None = None,
        instances: str | Path = "",
    ) -> tuple[Sized, ...]:
        """What a piece of work takes, by the catalogue there."""
        if instances not in ("", "all"):
            raise SpecError(f"{instances} is a file of this machine", hint="estimate locally, without --address")
        body = {"work": parse.to_dict(work), "device": device, "devices": devices, "utilisation": utilisation}
        body |= {"instances": str(instances)} | ({"site": parse.to_dict(site)} if site else {})
        return tuple(parse.read_dict(item, Sized) for item in self.post("estimate", body))

    def doctor(self, *, repair: bool = False) -> tuple[Check, ...]:
        """Whether everything is in order there; contents are verified on the machine itself."""
        if repair:
            raise SpecError("repairs are made on the machine itself", hint="run mainspring doctor --repair there")
        return self._all("doctor", Check, {})

    def _one(self, path: str, kind: type[T]) -> T:
        return parse.read_dict(self.get(path), kind)

    def _all(self, path: str, kind: type[T], query: Mapping[str, Any]) -> tuple[T, ...]:
        return tuple(parse.read_dict(item, kind) for item in self.get(path, query))


def _no_scene(scene: str | Path) -> None:
    if scene:
        raise SpecError(f"{scene} describes a cluster of its own", hint="ask about it locally, without --address")


def _error(response: httpx.Response) -> MainspringError:
    try:
        told = response.json()["error"]
        kind, message, hint = told["type"], told["message"], told.get("hint", "")
    except (ValueError, KeyError, TypeError):
        kind, message, hint = "", f"HTTP {response.status_code}: {response.text[:200]}", ""
    return ERRORS.get(kind, Failed)(message, hint=hint)


def _recipe(path: str | Path) -> dict[str, Any]:
    """A recipe as its text and its file's name."""
    file = Path(path)
    try:
        return {"recipe": file.read_text(encoding="utf-8"), "recipe_name": file.name}
    except OSError as error:
        raise SpecError(
            f"cannot read the recipe {file}: {error.strerror}", hint="give the path of a recipe.py"
        ) from error


def _ref(named: Any) -> str:
    return named if isinstance(named, str) else named.ref


def _part(text: str) -> str:
    return quote(text, safe="")
