"""The user's handle: one object per workspace, one method per verb, no logic of its own.

CLI, API, console, notebook and script all come through here, so that whatever one can do the others can. A verb
that takes longer than a glance returns a `Run` at once; `Run.result()` waits for it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mainspring.flow import execution
from mainspring.flow.execution import Execution
from mainspring.flow.handle import Run
from mainspring.spec import (
    Answer,
    Artifact,
    Deployment,
    Feedback,
    Identity,
    Plan,
    Settings,
    SpecError,
    Thumb,
    Turn,
    load_settings,
)
from mainspring.spec.settings import quiet_third_parties
from mainspring.store import Store, parse
from mainspring.store.catalogue import check_name
from mainspring.workspace.jobs import Jobs
from mainspring.workspace.plans import VOCAB, Plans
from mainspring.workspace.records import Named, ref_of

if TYPE_CHECKING:
    from mainspring.apps.market import Published
    from mainspring.apps.rag.assistant import Rag
    from mainspring.cluster import Launcher
    from mainspring.data.dataset import Dataset
    from mainspring.flow.graph import Graph
    from mainspring.flow.run import FlowEvent, FlowResult
    from mainspring.remote import RemoteWorkspace

CALIBRATION = 32
MAKES = {"data": "dataset", "train": "model", "app": "app"}
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
Dedup = Literal["strict", "balanced", "aggressive", "none"]
Say = Callable[[str], None]
OnEvent = Callable[["FlowEvent"], None]


class Workspace(Jobs, Plans):
    """A workspace of this machine: its store, its cluster and the verbs. Close it, or use it in `with`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(Store.open(settings), settings)
        self._launcher: Launcher | None = None
        self._offers: Published | None = None
        self._apps: dict[str, Rag] = {}

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what was started here (served models, the local cluster) and close the store."""
        if self._offers:
            self._offers.close()
        for app in self._apps.values():
            app.close()
        if self._launcher:
            self._launcher.close()
        self.store.close()

    @property
    def launcher(self) -> "Launcher":
        """The cluster, joined or started on first use."""
        if self._launcher is None:
            from mainspring.cluster import Launcher

            self._launcher = Launcher(self.store, address=self.settings.address, quotas=self.quota_file())
        return self._launcher

    # -- data

    def dataset(self, name: str) -> "Dataset":
        """A dataset by name: `.read(...).clean().dedup().publish()`."""
        from mainspring.data.dataset import Dataset

        return Dataset(self.store, name)

    def calibrate(self) -> Run:
        """Measure this machine for about a minute and publish `calibration:<machine>`, which later plans use."""
        from mainspring.hardware import probe
        from mainspring.train.calibrate import publish_calibration

        node = probe.probe_node()

        def body(work: Execution) -> Artifact:
            return publish_calibration(self.store, node, run=work.id, progress=work.progress)

        return self._start(body, kind="calibrate", name=node.name, config={"devices": [d.name for d in node.devices]})

    def publish_data(self, name: str, *, source: str, dedup: Dedup = "balanced") -> Run:
        """Read `source`, clean and deduplicate it, and publish the next version of dataset `name`."""
        chain = self.dataset(name).read(source).clean()
        chain = chain.dedup(policy=dedup) if dedup != "none" else chain

        def body(work: Execution) -> Artifact:
            return chain.publish(run=work.id, progress=work.progress)

        return self._start(body, kind="data", name=name, config={"source": source, "dedup": dedup})

    # -- from documents to a model

    def train(
        self,
        recipe: str | Path,
        *,
        data: Named,
        plan: Plan | None = None,
        name: str = "",
        resume: str = "",
        vocab: int = VOCAB,
        turn: Turn = Turn(),  # noqa: B008 it is frozen
        menu: Sequence[Plan] = (),
        overrides: Sequence[str] = (),
    ) -> Run:
        """Train `recipe` on `data` as `plan` says and publish `model:<name>`; `turn` is where it waits for its ranks.

        Of a `menu` of plans the scheduler chooses one, and another whenever more is free or others come.

        A dataset is tokenised first, with a tokenizer of `vocab` ids learnt from it. `resume` goes on from the last
        checkpoint of an earlier run that has ended, which may have had another plan.
        """
        from mainspring.data import pack
        from mainspring.train import launch
        from mainspring.train import resume as attempts

        chosen = plan or next(iter(menu), None) or self.plan(recipe, data=data, vocab=vocab, overrides=overrides)
        name, source = name or Path(recipe).stem, self.artifact(data).ref
        first = attempts.first_attempt(self.store, resume) if resume else ""
        if first:
            launch.check_resumes(self.store, first, recipe, overrides)

        def body(work: Execution) -> Artifact:
            launch.check_reach(self.store, self.launcher, plan=chosen, run=work.id)
            tokens = pack.tokens_of(self.store, source, vocab=vocab, run=work.id, progress=work.progress)
            with attempts.tell_how_to_resume(self.store, first or work.id, work.id):
                return launch.train(
                    self.store,
                    self.launcher,
                    recipe,
                    plan=chosen,
                    tokens_ref=tokens.ref,
                    name=name,
                    run=work.id,
                    resume=first,
                    turn=turn,
                    menu=menu,
                    overrides=overrides,
                    progress=work.progress,
                )

        config = {"recipe": str(Path(recipe).absolute()), "data": source, "vocab": vocab, "resume": first}
        config |= {"plan": parse.to_dict(chosen), "turn": parse.to_dict(turn), "overrides": list(overrides)}
        config |= {"menu": [parse.to_dict(each) for each in menu]}
        return self._start(body, kind="train", name=name, config=config, inputs=(source, *chosen.calibrations))

    def resume(self, run_id: str) -> Run:
        """Go on with training that was stopped or failed: same recipe, data and plan, from its last checkpoint."""
        record = self.store.run(run_id)
        if record.kind != "train" or record.state == "SUCCEEDED":
            raise SpecError(f"{record.kind} run {record.id} is {record.state}", hint="only unfinished training goes on")
        asked = json.loads(record.config_json)
        return self.train(
            asked["recipe"],
            data=asked["data"],
            plan=parse.read_dict(asked["plan"], Plan),
            name=record.name,
            resume=record.id,
            vocab=asked["vocab"],
            turn=parse.read_dict(asked.get("turn", {}), Turn),
            menu=[parse.read_dict(each, Plan) for each in asked.get("menu", [])],
            overrides=asked["overrides"],
        )

    def can_resume(self, run_id: str) -> bool:
        """Whether a run is training that ended too early and left a checkpoint to go on from."""
        from mainspring.train import resume as attempts

        return attempts.can_resume(self.store, self.store.run(run_id))

    def evaluate(self, model: Named, *, data: Named = "", compare_to: Named = "") -> Run:
        """Measure a model on held-out documents, against baselines and another model; publishes a report."""
        from mainspring.evaluate import stage

        def body(work: Execution) -> Artifact:
            return stage.evaluate_model(
                self.store,
                ref_of(model),
                data=ref_of(data),
                compare_to=ref_of(compare_to),
                run=work.id,
                progress=work.progress,
            )

        return self._start(
            body, kind="eval", name=_short(model), config={"compare_to": ref_of(compare_to)}, inputs=[model]
        )

    def compress(self, model: Named, *, scheme: str = "w8a8", data: Named = "", name: str = "") -> Run:
        """Quantise a model, calibrated on documents of dataset `data` when given, and publish the result."""
        from mainspring.compress import quantize

        def body(work: Execution) -> Artifact:
            return quantize.quantize(
                self.store,
                ref_of(model),
                scheme=scheme,
                name=name or None,
                texts=[document.text for document in self.documents(data, count=CALIBRATION)] if data else (),
                run=work.id,
                progress=work.progress,
            )

        return self._start(body, kind="compress", name=name or _short(model), config={"scheme": scheme}, inputs=[model])

    # -- serving and applications

    def offers(self) -> "Published":
        """Every published model and assistant by name, loaded when first asked for and until this is closed."""
        if self._offers is None:
            from mainspring.apps.market import Published

            self._offers = Published(self.store)
        return self._offers

    def serve(self, model: Named, *, port: int = 0, name: str = "") -> Run:
        """Serve a model on a process of its own until the run is stopped; its progress tells the address."""
        from mainspring.serve import deploy
        from mainspring.serve.models import check_folder

        folder = self._model_folder(model)
        check_folder(folder, ref_of(model))

        def body(work: Execution) -> Deployment:
            offered = ((name or _short(model), folder),)
            handle, deployment = deploy.deploy(self.launcher, offered, run=work.id, port=port)
            deploy.follow(handle, work.progress, deployment)
            return deployment

        inputs = (model,) if ":" in ref_of(model) else ()
        return self._start(body, kind="serve", name=name or _short(model), config={"port": port}, inputs=inputs)

    def serve_forever(self, model: Named, *, host: str, port: int, name: str = "", on_ready: Say = print) -> None:
        """Serve one model in this process until it is interrupted."""
        from mainspring.serve import http, models

        name, folder = name or _short(model), self._model_folder(model)
        offered = models.Models({name: lambda: models.open_folder(name, folder)})
        app = http.create_app(offered, check_token=self.guard(host))
        models.check_folder(folder, ref_of(model))
        try:
            offered.get(name)  # loads now, so that a broken model is an error here and not at the first request
            http.serve_forever(app, host=host, port=port, on_ready=on_ready)
        finally:
            offered.close()

    def guard(self, host: str) -> "Callable[..., Identity] | None":
        """What checks a caller's token when listening on `host`: nothing on loopback while there are no tokens.

        Raises `SpecError` when others could reach `host` and no token exists to keep them out.
        """
        if self.store.identities():
            return self.store.check_token
        if host not in LOOPBACK:
            raise SpecError(
                f"{host} can be reached by others and this workspace has no token",
                hint="mainspring token create NAME, then start it again",
            )
        return None

    def publish_app(self, name: str, *, corpus: Named, engine: Named = "", embedder: str = "lsa") -> Run:
        """Build the retrieval index of `corpus` and publish the assistant `app:<name>`."""
        from mainspring.apps.rag import publish

        def body(work: Execution) -> Artifact:
            return publish.publish(
                self.store,
                name,
                corpus=ref_of(corpus),
                engine=ref_of(engine),
                embedder=embedder,
                run=work.id,
                progress=work.progress,
            )

        config = {"corpus": ref_of(corpus), "engine": ref_of(engine), "embedder": embedder}
        return self._start(body, kind="app", name=name, config=config, inputs=[corpus, engine])

    def app(self, kind: str, *, corpus: Named, engine: Named = "", name: str = "", embedder: str = "lsa") -> "Rag":
        """Build and publish an application of `kind` (there is "rag") and return it, ready to be asked.

        `engine` is the model that may write its answers, or the run that serves it; `name` is the corpus's by default.
        """
        if kind != "rag":
            raise SpecError(f"there is no application kind {kind!r}", hint='known: "rag"')
        name = name or self.artifact(corpus).name
        made = self.publish_app(name, corpus=corpus, engine=engine, embedder=embedder).result()
        return self.open_app(made.ref)

    def open_app(self, name: str) -> "Rag":
        """A published assistant, to ask and to be told what was wrong."""
        from mainspring.apps.rag import assistant

        ref = self.store.resolve(name if ":" in name else f"app:{name}").ref
        if ref not in self._apps:
            self._apps[ref] = assistant.Rag(self.store, ref)
        return self._apps[ref]

    def ask(self, name: str, question: str) -> Answer:
        """Ask the assistant `name` one question."""
        return self.open_app(name).ask(question)

    def feedback(
        self, name: str, *, trace: str, thumb: Thumb, correction: str = "", comment: str = "", author: str = ""
    ) -> Feedback:
        """Record what `author` thinks of an answer."""
        return self.open_app(name).rate(trace, thumb=thumb, correction=correction, comment=comment, author=author)

    # -- flows

    def flow(self, path: str | Path, *, overrides: Sequence[str] = (), on_event: OnEvent | None = None) -> "FlowResult":
        """Run the steps of a flow file that are not remembered, and wait for them."""
        from mainspring.flow.run import run_graph

        graph, params = self._graph(path, overrides)
        return run_graph(graph, self.store, params=params, on_event=on_event)

    def watch_flow(
        self, path: str | Path, *, overrides: Sequence[str] = (), on_event: OnEvent | None = None
    ) -> Iterator["FlowResult | SpecError"]:
        """Run a flow file, then again whenever something it watches has changed, until interrupted."""
        from mainspring.flow.watch import watch

        _, params = self._graph(path, overrides)
        return watch(Path(path), self.store, params=params, on_event=on_event)

    def flow_steps(self, path: str | Path, *, overrides: Sequence[str] = ()) -> tuple[tuple[str, str, str], ...]:
        """The steps of a flow file in order, checked: name, what it calls, what it needs."""
        from mainspring.flow.check import check_graph

        graph, params = self._graph(path, overrides)
        nodes = [checked.node for checked in check_graph(graph, params)]
        return tuple((node.name, node.entry, ", ".join(sorted(node.needs))) for node in nodes)

    def _graph(self, path: str | Path, overrides: Sequence[str]) -> "tuple[Graph, dict[str, Any]]":
        from mainspring.flow.graph import from_toml

        graph = from_toml(path)
        return graph, parse.apply_overrides(graph.params, overrides)

    def _start(
        self,
        body: Callable[[Execution], Any],
        *,
        kind: str,
        name: str,
        config: dict[str, Any],
        inputs: Sequence[Named] = (),
    ) -> Run:
        if kind in MAKES:
            check_name(MAKES[kind], name)  # now, and not when hours of work are about to be published
        refs = [self.artifact(given).ref for given in inputs if given]
        work = execution.start(self.store, body, kind=kind, name=name, config=config, inputs=refs)
        return Run(self.store, work.id, work)

    def _model_folder(self, model: Named) -> Path:
        from mainspring.models import weights

        ref = ref_of(model)
        if ":" not in ref or Path(ref).exists():
            return weights.locate(ref)
        found = self.store.resolve(ref)
        if found.kind != "model":
            raise SpecError(
                f"{found.ref} is of kind {found.kind}, only a model is served alone",
                hint="`mainspring up` serves every published model and assistant by its name",
            )
        return self.store.fetch(found)


def connect(address: str = "", *, token: str = "", settings: Settings | None = None) -> "Workspace | RemoteWorkspace":
    """Open the workspace at `address`: `local`, `auto` or `ray://host:port` for the cluster, or a console's URL.

    Without an address, `MAINSPRING_ADDRESS` or this machine. Close it, or use it in `with`.
    """
    quiet_third_parties()
    given = settings or load_settings()
    given = replace(given, address=address or given.address, token=token or given.token)
    if given.address.startswith(("http://", "https://")):
        from mainspring.remote import RemoteWorkspace

        return RemoteWorkspace(given.address, token=given.token)
    return Workspace(given)


def _short(named: Named) -> str:
    """A name to serve something under: `model:chat@3` and `/models/chat` are both `chat`."""
    ref = ref_of(named)
    return Path(ref).name if ref.partition(":")[0] != "model" else ref.partition(":")[2].partition("@")[0]
