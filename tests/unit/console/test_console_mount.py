"""The console in a process that has torch loaded, as the demo's has."""

import subprocess
import sys
from pathlib import Path

import pytest

from mainspring.spec import Settings

SCRIPT = """
import gc
import torch.distributed
import httpx
from mainspring.api.app import create_app
from mainspring.console.app import mount
from mainspring.serve import http
from mainspring.spec import load_settings
from mainspring.workspace import Workspace


class Aged(http.Server):  # an old object, which is looked at after those of torch
    async def startup(self, sockets=None):
        gc.collect()
        await super().startup(sockets)


http.Server = Aged
with Workspace(load_settings()) as workspace:
    app = create_app(workspace)
    mount(app, workspace)
    with http.listen(app) as url:
        assert httpx.get(url, timeout=60).status_code == 200
        assert httpx.get(f"{url}/no-such-page", timeout=60).status_code == 404
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_search_for_the_server_among_all_objects_tells_nothing_of_torch(settings: Settings, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", SCRIPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
