"""The control API over a real socket: who may do what, where requests may come from, what a wrong one is told."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import mainspring as ms
from mainspring.api.app import create_app
from mainspring.serve.http import listen
from mainspring.spec import Denied, Settings, SpecError
from mainspring.workspace import Workspace


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str], Workspace]]:
    """A server that wants tokens: its URL, one token for each role, and its workspace."""
    with Workspace(Settings(home=str(tmp_path_factory.mktemp("guarded")))) as workspace:
        tokens = {role: workspace.create_token(role, role=role) for role in ("viewer", "editor", "admin")}
        with listen(create_app(workspace)) as url:
            yield url, tokens, workspace


def test_a_caller_without_a_token_learns_where_one_is_given(guarded: tuple[str, dict[str, str], Workspace]) -> None:
    url, tokens, _ = guarded
    with ms.connect(url) as nobody, pytest.raises(Denied) as told:
        nobody.runs()
    assert "MAINSPRING_TOKEN" in told.value.hint
    with ms.connect(url, token=tokens["viewer"]) as viewer:
        assert viewer.runs() == ()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "path", ["/api/v1/runs", "/api/v1/artifacts", "/api/v1/hardware", "/api/v1/events", "/v1/models"]
)
@pytest.mark.parametrize("sent", [{}, bearer("ms_wrong"), {"Authorization": "Basic x"}, {"Authorization": "Bearer"}])
def test_without_a_good_token_nothing_is_told(
    guarded: tuple[str, dict[str, str], Workspace], path: str, sent: dict[str, str]
) -> None:
    answer = httpx.get(guarded[0] + path, headers=sent)
    assert answer.status_code == 401
    assert set(answer.json()) == {"error"}


def test_a_viewer_reads_and_an_editor_writes(guarded: tuple[str, dict[str, str], Workspace]) -> None:
    url, tokens, _ = guarded
    stop = f"{url}/api/v1/data"
    for role, token in tokens.items():
        assert httpx.get(f"{url}/api/v1/runs", headers=bearer(token)).status_code == 200, role
        answer = httpx.post(stop, headers=bearer(token), json={"name": "not a name", "source": "x"})
        assert answer.status_code == (401 if role == "viewer" else 400), role
    assert "editor" in httpx.post(stop, headers=bearer(tokens["viewer"]), json={"name": "x", "source": "x"}).text


def test_the_error_of_a_wrong_token_is_the_local_one(guarded: tuple[str, dict[str, str], Workspace]) -> None:
    url, tokens, workspace = guarded
    with ms.connect(url, token="ms_wrong") as stranger, pytest.raises(Denied) as told:
        stranger.runs()
    with pytest.raises(Denied) as local:
        workspace.store.check_token("ms_wrong")
    assert (str(told.value), told.value.hint) == (str(local.value), local.value.hint)
    with ms.connect(url, token=tokens["viewer"]) as friend:
        assert friend.runs() == ()


def test_a_revoked_token_ends_at_once(guarded: tuple[str, dict[str, str], Workspace]) -> None:
    url, _, workspace = guarded
    token = workspace.create_token("guest", role="viewer")
    assert httpx.get(f"{url}/api/v1/runs", headers=bearer(token)).status_code == 200
    workspace.revoke_token("guest")
    assert httpx.get(f"{url}/api/v1/runs", headers=bearer(token)).status_code == 401


def test_what_needs_no_token_says_nothing_of_the_workspace(guarded: tuple[str, dict[str, str], Workspace]) -> None:
    assert httpx.get(f"{guarded[0]}/health").json() == {"status": "ok"}
    assert set(httpx.get(f"{guarded[0]}/version").json()) == {"version"}


def test_metrics_name_models_and_so_ask_for_a_token(guarded: tuple[str, dict[str, str], Workspace], url: str) -> None:
    metrics, tokens = f"{guarded[0]}/metrics", guarded[1]
    refused = httpx.get(metrics)
    assert (refused.status_code, set(refused.json())) == (401, {"error"})
    assert httpx.get(metrics, headers=bearer("ms_wrong")).status_code == 401
    assert httpx.get(metrics, headers=bearer(tokens["viewer"])).headers["content-type"].startswith("text/plain")
    assert httpx.get(f"{url}/metrics").status_code == 200, "on loopback nobody is asked"


def test_others_are_not_let_in_without_tokens(settings: Settings) -> None:
    with Workspace(settings) as workspace, pytest.raises(SpecError, match="no token") as told:
        create_app(workspace, host="0.0.0.0")
    assert "token create" in told.value.hint


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost.evil.example"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
    ],
)
def test_pages_of_other_sites_are_refused(url: str, headers: dict[str, str]) -> None:
    for answer in (
        httpx.get(f"{url}/api/v1/runs", headers=headers),
        httpx.post(f"{url}/api/v1/data", headers=headers, json={"name": "x", "source": "x"}),
        httpx.post(f"{url}/v1/completions", headers=headers, json={"model": "handbook", "prompt": "x"}),
    ):
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "Denied"


def test_our_own_page_and_other_names_of_this_machine_are_welcome(url: str) -> None:
    port = url.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        assert httpx.get(f"{url}/api/v1/runs", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("data", {"name": "x", "source": "y", "dedupe": "none"}, "dedupe"),
        ("train", {"recipe": "", "data": "tokens:x", "overides": []}, "overides"),
        ("compress", {"model": "model:x", "schem": "w8a8"}, "schem"),
        ("apps/handbook/feedback", {"trace": "t", "thumb": "sideways"}, "thumb"),
        ("data", {"name": "x"}, "source"),
        ("serve", {"model": "model:x", "port": "high"}, "port"),
    ],
)
def test_a_field_that_is_wrong_or_unknown_is_named(url: str, path: str, body: dict[str, object], named: str) -> None:
    answer = httpx.post(f"{url}/api/v1/{path}", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"{named}: ")


def test_a_body_that_is_no_json_is_the_clients_error(url: str) -> None:
    answer = httpx.post(f"{url}/api/v1/data", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    answer = httpx.post(f"{url}/api/v1/data", content=b'{"name": "x", "source": "x"}')
    assert answer.status_code == 400, "a form of another site could send it without asking"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("artifacts/dataset:handbok", "dataset:handbook"),
        ("artifacts/dataset:handbook@9", "1"),
        ("runs/nowhere", "mainspring ps"),
        ("runs/nowhere/logs", "mainspring ps"),
        ("no-such-resource", "/docs"),
    ],
)
def test_what_does_not_exist_is_404_with_a_hint(url: str, path: str, hint: str) -> None:
    answer = httpx.get(f"{url}/api/v1/{path}")
    assert answer.status_code == 404
    assert hint in answer.json()["error"]["hint"]


def test_every_resource_is_described(url: str) -> None:
    described = httpx.get(f"{url}/openapi.json").json()["paths"]
    for path in (
        "runs",
        "plan",
        "train",
        "data",
        "artifacts",
        "lineage/{ref}",
        "events",
        "hardware",
        "doctor",
        "serve",
    ):
        assert f"/api/v1/{path}" in described
    assert "/v1/chat/completions" in described


def test_the_same_server_answers_openai_clients(url: str) -> None:
    assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == ["handbook"]
    messages = [{"role": "user", "content": "Which function copies an entire directory tree recursively?"}]
    answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "handbook", "messages": messages}, timeout=60)
    assert "copy" in answer.json()["choices"][0]["message"]["content"]


def test_a_broken_workspace_does_not_take_the_server_down(tmp_path: Path) -> None:
    with Workspace(Settings(home=str(tmp_path / "home"))) as workspace, listen(create_app(workspace)) as url:
        assert httpx.get(f"{url}/api/v1/reports/report:x").status_code == 404
        assert httpx.get(f"{url}/api/v1/runs").json() == []


def test_the_documentation_page_comes_whole_from_this_machine(url: str) -> None:
    page = httpx.get(f"{url}/docs").text
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources
    assert all(source.startswith("/") for source in sources)
    assert all(httpx.get(url + source).status_code == 200 for source in sources)
