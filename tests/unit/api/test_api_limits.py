"""What strangers may send to the control API: names, numbers and bodies that must not reach past their place."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mainspring.api.access import BODY_BYTES
from mainspring.api.app import create_app
from mainspring.spec import Settings
from mainspring.workspace import Workspace

RECIPE = "import mainspring as ms\nrecipe = nothing\n"


@pytest.fixture
def workspace(settings: Settings) -> Iterator[Workspace]:
    with Workspace(settings) as opened:
        yield opened


@pytest.fixture
def client(workspace: Workspace) -> TestClient:
    return TestClient(create_app(workspace), base_url="http://localhost", raise_server_exceptions=False)


@pytest.mark.parametrize("name", ["..", "../x.py", "a/b.py", "/etc/x.py", "x\0.py", "x" * 300 + ".py", "x.pth", ""])
def test_a_recipe_keeps_to_its_folder_whatever_it_is_called(
    client: TestClient, workspace: Workspace, name: str
) -> None:
    answer = client.post("/api/v1/plan", json={"recipe": RECIPE, "recipe_name": name})
    assert answer.status_code == 400
    assert "is not the name of a recipe" in answer.json()["error"]["message"]
    assert not list(workspace.store.home.glob("recipes/**/*.*"))


def test_a_recipe_sent_twice_is_one_file_that_is_not_written_again(client: TestClient, workspace: Workspace) -> None:
    stamps: set[tuple[Path, int]] = set()
    for _ in range(2):
        assert client.post("/api/v1/plan", json={"recipe": RECIPE, "recipe_name": "größe 2.py"}).status_code == 400
        stamps |= {(path, path.stat().st_ino) for path in workspace.store.home.glob("recipes/*/*")}
    assert [path.read_text() for path, _ in stamps] == [RECIPE]


@pytest.mark.parametrize(
    "path",
    ["runs?limit=-1", "runs?limit=99999999", "events?after=-1", f"events?after={10**30}", "events?limit=-5",
     "datasets/dataset:x/documents?count=-1", "runs/x/logs?tail=-3"],
)  # fmt: skip
def test_a_number_out_of_range_is_the_clients_error(client: TestClient, path: str) -> None:
    answer = client.get(f"/api/v1/{path}")
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "SpecError")


def test_a_body_is_refused_as_soon_as_it_is_too_long_even_from_strangers(workspace: Workspace) -> None:
    workspace.create_token("ann", role="admin")
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 8 * BODY_BYTES:
            sent += 1 << 20
            yield b" " * (1 << 20)

    with TestClient(create_app(workspace), base_url="http://localhost") as client:
        assert client.post("/api/v1/train", content=endless()).status_code == 413
        assert client.post("/api/v1/train", content=b"{}").status_code in (400, 401)


@pytest.mark.parametrize("headers", [{"host": "[::1"}, {"origin": "http://[x"}, {"host": "evil.example"}])
def test_a_host_or_origin_that_is_no_address_of_ours_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get("/api/v1/runs", headers=headers).status_code == 403
