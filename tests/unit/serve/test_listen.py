"""Starting and stopping: ports, signals, streams in flight, lazy loading, and the entry point of a gang."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from mainspring.models.embedder import fit_lsa
from mainspring.serve.http import create_app, listen
from mainspring.serve.models import EmbedderServable, EngineServable, Models, open_folder
from mainspring.serve.servable import Embeddable, Embeddings, Piece, Prompt, Servable
from mainspring.spec import NotFound, SamplingParams, SpecError, Unavailable

RANK = """
import json, sys
from mainspring.serve.http import main
from mainspring.spec import Task
folder, run_dir, port = sys.argv[1:]
task = Task(job_id="job-1", rank=0, world=1, local_rank=0, local_world=1, run_dir=run_dir, master="")
main(task, {"models": [["tiny", folder]], "port": int(port), "engine": {"max_sequences": 4}})
"""


class Slow(Servable):
    """Writes a word every tenth of a second."""

    name, created_s, context = "slow", 0.0, 100

    def __init__(self) -> None:
        self.closed = False

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncIterator[Piece]:
        for _ in range(5):
            yield Piece("word ")
            await asyncio.sleep(0.1)
        yield Piece("end", finish="stop")

    async def embed(self, inputs: Sequence[Embeddable]) -> Embeddings:
        raise SpecError(f"no vectors for {len(inputs)} texts")

    def close(self) -> None:
        self.closed = True


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    app = create_app(Models({}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=rf"cannot listen on 127\.0\.0\.1:{port}: the port is in use") as caught:
            listen(app, "127.0.0.1", port).__enter__()
    assert "another port" in caught.value.hint
    with pytest.raises(Unavailable, match=r"cannot listen on 203\.0\.113\.1"):
        listen(app, "203.0.113.1", 0).__enter__()
    with pytest.raises(Unavailable, match="70000"):
        listen(app, "127.0.0.1", 70000).__enter__()


def test_stopping_finishes_the_streams_in_flight() -> None:
    body = {"model": "slow", "messages": [{"role": "user", "content": "go"}], "stream": True}
    with ThreadPoolExecutor() as pool:
        with listen(create_app(Models({"slow": Slow}))) as url:
            begun = threading.Event()

            def read() -> list[str]:
                with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=20) as response:
                    lines = []
                    for line in response.iter_lines():
                        begun.set()
                        lines.append(line)
                    return lines

            reading = pool.submit(read)
            assert begun.wait(20)
        assert "data: [DONE]" in reading.result(timeout=20)


def test_a_stream_longer_than_the_grace_is_cut() -> None:
    body = {"model": "slow", "prompt": "go", "n": 1, "stream": True}

    class Endless(Slow):
        async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncIterator[Piece]:
            while True:
                yield Piece("word ")
                await asyncio.sleep(0.1)

    with httpx.Client() as client:
        with listen(create_app(Models({"slow": Endless})), grace_s=1) as url:
            request = httpx.Request("POST", f"{url}/v1/completions", json=body)
            response = client.send(request, stream=True)
            lines = response.iter_lines()
            next(lines)
            started = time.monotonic()
        assert 0.9 < time.monotonic() - started < 8
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
        response.close()


def test_a_model_is_loaded_once_and_on_first_use_only() -> None:
    loads: list[str] = []

    def load() -> Slow:
        loads.append("slow")
        threading.Event().wait(0.05)
        return Slow()

    models = Models({"slow": load, "other": Slow})
    assert models.names() == ("slow", "other")
    assert loads == []
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(models.get, ["slow"] * 8))
    assert (len(found), loads) == (1, ["slow"])
    with pytest.raises(NotFound, match="'slo' does not exist") as caught:
        models.get("slo")
    assert caught.value.hint == "did you mean slow?"
    models.close()
    assert [each.closed for each in found if isinstance(each, Slow)] == [True]


def test_a_decoder_makes_no_embeddings_and_says_so(model_folder: Path) -> None:
    servable = EngineServable("tiny", model_folder)
    with pytest.raises(SpecError, match="tiny generates text"):
        asyncio.run(servable.embed(["a"]))
    servable.close()


@pytest.mark.slow
def test_a_rank_serves_until_it_is_told_to_stop_and_says_where(model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK, str(model_folder), str(tmp_path), "0"]
    rank = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        endpoint = tmp_path / "endpoint.json"
        deadline = time.monotonic() + 60
        while not endpoint.exists():
            assert rank.poll() is None, rank.stderr and rank.stderr.read()
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        found = json.loads(endpoint.read_text())
        assert (found["models"], found["run"]) == (["tiny"], "job-1")
        body = {"model": "tiny", "prompt": "x", "max_tokens": 2}
        answer = httpx.post(f"{found['url']}/v1/completions", json=body, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 2
        os.kill(rank.pid, signal.SIGTERM)
        assert rank.wait(timeout=20) in (0, -signal.SIGTERM)
    finally:
        rank.kill()
        rank.communicate()


def test_a_folder_is_served_as_what_it_holds(model_folder: Path, tmp_path: Path) -> None:
    fit_lsa(["a list keeps items", "a set forgets"], dim=2).save(tmp_path)
    embedder, decoder = open_folder("vectors", tmp_path), open_folder("tiny", model_folder)
    assert (type(embedder), type(decoder)) == (EmbedderServable, EngineServable)
    assert len(asyncio.run(embedder.embed(["a list"])).vectors[0]) == 2
    decoder.close()
