"""A workspace behind a URL answers like the one it stands for: same values, same errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mainspring as ms
from mainspring.remote import RemoteRun, RemoteWorkspace
from mainspring.spec import (
    Artifact,
    Denied,
    Failed,
    Gang,
    MainspringError,
    NotFound,
    Request,
    Site,
    SpecError,
    Unavailable,
    WorkSize,
)
from mainspring.testing.books import write_quotas
from mainspring.testing.processes import eventually
from mainspring.testing.traces import write_trace
from mainspring.workspace import Workspace

CLOCKS = (
    "Return the value of a clock that cannot go backwards, in fractional seconds. The reference point is undefined, so "
    "that only the difference between the results of two calls is valid; adjustments of the system do not touch it."
)
REPORT = "report:dataset-handbook"
DESCRIBED = Gang(id="mine", queue="product", ranks=2, request=Request(devices=8))
READS: dict[str, Callable[[Any], Any]] = {
    "artifacts": lambda ws: ws.artifacts(),
    "artifacts of a kind": lambda ws: ws.artifacts(kind="dataset", name="handbook"),
    "artifact": lambda ws: ws.artifact("dataset:handbook@1"),
    "lineage": lambda ws: ws.lineage("app:handbook"),
    "lineage up": lambda ws: ws.lineage("app:handbook", direction="up"),
    "report": lambda ws: ws.report(REPORT),
    "report page": lambda ws: ws.report_page(REPORT),
    "gate": lambda ws: ws.gate(REPORT),
    "events": lambda ws: ws.events(kind="run.state", limit=3),
    "runs": lambda ws: ws.runs(kind="data", limit=2),
    "data report": lambda ws: ws.data_report("dataset:handbook"),
    "documents": lambda ws: ws.documents("dataset:handbook", count=2, offset=1),
    "diff": lambda ws: ws.data_diff("dataset:handbook@1", "dataset:handbook@2"),
    "devices": lambda ws: [node.devices for node in ws.hardware().nodes],
    "record": lambda ws: ws.run(ws.runs(kind="train")[0].id).record,
    "logs": lambda ws: ws.run(ws.runs(kind="train")[0].id).logs(),
    "log of a rank": lambda ws: ws.run(ws.runs(kind="train")[0].id).logs(0, tail=2),
    "metrics": lambda ws: ws.run(ws.runs(kind="train")[0].id).metrics(),
    "cost": lambda ws: ws.run(ws.runs(kind="train")[0].id).cost,
    "progress": lambda ws: ws.run(ws.runs(kind="data")[0].id).progress,
    "ref": lambda ws: ws.run(ws.runs(kind="data")[0].id).ref,
    "queue": lambda ws: ws.queue(),
    "nodes": lambda ws: ws.nodes(),
    "who holds how much": lambda ws: ws.usage(),
    "queues in force": lambda ws: ws.quotas(),
    "why": lambda ws: [(why.gang, why.state, why.reason, why.unblocks) for why in ws.why("serve-chat")],
    "why, of everybody": lambda ws: [(why.gang, why.state, why.ahead) for why in ws.why()],
    "why, of nobody yet": lambda ws: [(why.state, why.unblocks) for why in ws.why(DESCRIBED)],
    "gathering": lambda ws: [victim.gang for victim in ws.plan_gather("org", "huge").victims],
    "gathering for nobody yet": lambda ws: ws.plan_gather("org", DESCRIBED).nodes,
    "estimate": lambda ws: ws.estimate(WorkSize(work="train", params=7e9, tokens=1e12), device="H100-SXM5-80GB"),
    "estimate at a site": lambda ws: ws.estimate(
        WorkSize(work="serve", params=7e9, tokens=1e9), devices=2, utilisation=0.3, site=Site(pue=1.5)
    ),
    "checks": lambda ws: [check.name for check in ws.doctor()],
}
WRONG: dict[str, Callable[[Any], Any]] = {
    "no such artifact": lambda ws: ws.artifact("dataset:handbok"),
    "malformed reference": lambda ws: ws.artifact("handbook"),
    "no such version": lambda ws: ws.documents("dataset:handbook@9"),
    "not a dataset": lambda ws: ws.data_report("app:handbook"),
    "no such run": lambda ws: ws.run("train-nowhere").record,
    "no such rank": lambda ws: ws.run(ws.runs(kind="train")[0].id).logs(7),
    "nothing made": lambda ws: ws.run(ws.runs(kind="train")[0].id).ref,
    "failed run": lambda ws: ws.run(ws.runs(kind="train")[0].id).result(),
    "no such assistant": lambda ws: ws.ask("handbok", "What is a counter?"),
    "empty question": lambda ws: ws.ask("handbook", " "),
    "no such trace": lambda ws: ws.feedback("handbook", trace="nowhere", thumb="up"),
    "no such corpus": lambda ws: ws.publish_app("new", corpus="dataset:nothing"),
    "not a name": lambda ws: ws.publish_data("not a name", source="docs"),
    "no such job": lambda ws: ws.why("nobody"),
    "no such queue": lambda ws: ws.plan_gather("orgg", "huge"),
    "gathering for one that runs": lambda ws: ws.plan_gather("org", "pretrain"),
    "more guaranteed than there is": lambda ws: ws.shares(),
    "no such device": lambda ws: ws.estimate(WorkSize(work="train", params=7e9, tokens=1e12), device="H1000"),
    "no such model": lambda ws: ws.compress("model:nothing"),
}


@pytest.mark.parametrize("what", READS)
def test_reading_gives_what_the_local_workspace_gives(what: str, remote: RemoteWorkspace, filled: Workspace) -> None:
    assert READS[what](remote) == READS[what](filled)


@pytest.mark.parametrize("what", WRONG)
def test_an_error_is_the_local_one_with_its_hint(what: str, remote: RemoteWorkspace, filled: Workspace) -> None:
    with pytest.raises(MainspringError) as local:
        WRONG[what](filled)
    with pytest.raises(MainspringError) as told:
        WRONG[what](remote)
    assert type(told.value) is type(local.value)
    assert (str(told.value), told.value.hint) == (str(local.value), local.value.hint)


def test_a_dataset_is_published_from_afar(remote: RemoteWorkspace, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Clocks\n\n{CLOCKS}\n", encoding="utf-8")
    run = remote.publish_data("clocks", source=str(page))
    made = run.result(60)
    assert isinstance(made, Artifact)
    assert made.ref == run.ref == "dataset:clocks@1"
    assert run.done
    assert run.record.state == "SUCCEEDED"
    assert [found.title for found in remote.documents(made)] == ["Clocks"]


def test_a_run_that_fails_there_fails_here(remote: RemoteWorkspace, tmp_path: Path) -> None:
    run = remote.publish_data("nothing", source=str(tmp_path / "missing"))
    with pytest.raises(Failed, match="missing"):
        run.result(60)


def test_a_run_is_stopped_from_afar(remote: RemoteWorkspace, filled: Workspace) -> None:
    record = filled.store.start_run("data", "long", config={})
    filled.store.set_run_state(record.id, "RUNNING")
    run = RemoteRun(remote, {"id": record.id})
    with pytest.raises(Unavailable, match="still"):
        run.result(0.1)
    run.stop()
    assert eventually(lambda: bool(filled.events(kind="run.stop", subject=record.id)), within_s=5)
    filled.store.set_run_state(record.id, "CANCELLED", "stopped")


def test_a_question_and_what_was_thought_of_the_answer(remote: RemoteWorkspace, filled: Workspace) -> None:
    answer = remote.ask("handbook", "Which function copies an entire directory tree recursively?")
    assert "copytree" in answer.citations[0].source
    row = remote.feedback("handbook", trace=answer.trace, thumb="down", correction="shutil.copytree")
    assert (row.thumb, row.author, row.snapshot) == ("down", "local", "dataset:handbook@2")
    assert filled.events(kind="feedback", subject="handbook")


def test_files_of_this_machine_are_asked_about_from_afar(
    remote: RemoteWorkspace, filled: Workspace, tmp_path: Path
) -> None:
    quotas, cluster = write_quotas(tmp_path), tmp_path / "cluster.toml"
    cluster.write_text(
        'name = "lab"\nlink = { gigabytes_per_s = 25 }\n[[nodes]]\ndevice = "H100-SXM5-80GB"\ndevices = 8\ncount = 12\n'
    )
    nodes, pods = write_trace(tmp_path, nodes=5, tasks=40)
    asked: tuple[Callable[[Any], Any], ...] = (
        lambda ws: ws.shares(quotas, cluster=cluster),
        lambda ws: ws.hardware(cluster).nodes,
        lambda ws: ws.manifest("kueue", quotas=quotas, cluster=cluster),
        lambda ws: ws.manifest("kuberay", cluster=cluster, image="lab/mainspring:1"),
        lambda ws: ws.simulate(nodes, pods, seeds=1),
    )
    for ask in asked:
        assert ask(remote) == ask(filled)
    with pytest.raises(SpecError, match="needs an image"):
        remote.manifest("kuberay", cluster=cluster)


def test_what_belongs_to_the_machine_itself_is_refused_with_a_hint(remote: RemoteWorkspace) -> None:
    for asked in (lambda: remote.hardware("cluster.toml"), lambda: remote.doctor(repair=True)):
        with pytest.raises(SpecError) as told:
            asked()
        assert told.value.hint
    with pytest.raises(SpecError, match="recipe"):
        remote.plan("no-such-recipe.py")
    with pytest.raises(AttributeError, match="publish_data"):
        remote.dataset("handbook")
    with pytest.raises(AttributeError, match="no attribute 'datset'"):
        remote.datset("handbook")


def test_a_server_that_is_not_there_is_said_to_be_away() -> None:
    with ms.connect("http://127.0.0.1:9") as nowhere, pytest.raises(Unavailable) as told:
        nowhere.runs()
    assert "mainspring up" in told.value.hint


def test_errors_without_a_body_of_ours_keep_their_status(remote: RemoteWorkspace) -> None:
    with pytest.raises(NotFound, match="nothing to GET"):
        remote.get("no-such-resource")
    assert issubclass(NotFound, SpecError)
    assert not issubclass(Denied, NotFound)
