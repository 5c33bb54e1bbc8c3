"""The wheel turned from the command line, as its user turns it: real documents, two ranks, real processes.

Documents are the docstrings of a few modules of the standard library. Every command is a process of its own, marked in
its environment, so that a test can prove that an interrupted one leaves nothing running.
"""

import importlib
import inspect
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mainspring.testing.processes import eventually, marked

# Eight gangs start here, each of two ranks that import torch: a minute of two idle cores, several of two busy ones.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
BUSY_S = 150.0

MODULES = ("argparse", "collections", "heapq", "json", "os", "pathlib", "random", "re", "shutil", "string", "textwrap")
RECIPE = """
import threading
from pathlib import Path

import mainspring as ms
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig
from mainspring.train.recipe import next_token_loss

SLOW = Path({slow!r})


def model(vocab, eos_id):
    shape = {{"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 64, "context": 128}}
    return Decoder(DecoderConfig(vocab=vocab, eos_id=eos_id, **shape))


def loss(model, batch):
    if SLOW.exists() and not batch.is_meta:  # not when it is tried, before ranks start
        threading.Event().wait(0.2)
    return next_token_loss(model, batch)


config = ms.TrainConfig(steps=100, global_batch=4, seq_len=64, warmup_steps=2, checkpoint_every=10)
recipe = ms.Recipe(model=model, loss=loss, config=config)
"""
FLOW = """
[flow]
name = "wheel"

[steps.documents]
call = "mainspring.apps.steps:documents"
with = { source = "docs", name = "flow" }

[steps.tokens]
call = "mainspring.apps.steps:tokens"
with = { data = "${documents}", vocab = 512 }

[steps.train]
call = "mainspring.apps.steps:train"
with = { recipe = "recipe.py", tokens = "${tokens}", name = "flow", ranks = 2 }
"""


class Desk:
    """A folder with documents, a recipe and a workspace, and the command line over it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.mark = folder, folder / "home", uuid.uuid4().hex
        self.slow = folder / "slow"
        self.environment = {**os.environ, "DESK_OF_A_TEST": self.mark}
        self.line = [str(Path(sys.executable).with_name("mainspring")), "--home", str(self.home)]

    def __call__(self, *arguments: str, code: int = 0, **given: Any) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, which must be `code`."""
        done = subprocess.run(
            [*self.line, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=BUSY_S,
            **given,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr
        return done

    def json(self, *arguments: str) -> Any:
        """What a command prints when asked for JSON."""
        return json.loads(self(*arguments, "--json").stdout)

    @contextmanager
    def started(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """A command at work, in a process group of its own as under a terminal; killed if a test forgets it."""
        process = subprocess.Popen(
            [*self.line, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def until(self, condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
        """Wait for `condition` while the command is at work."""
        assert eventually(lambda: condition() or process.poll() is not None, within_s=BUSY_S), "nothing happened"
        assert condition(), process.communicate()[1]

    def interrupt(self, process: "subprocess.Popen[str]") -> str:
        """Press Ctrl-C and return what the command says on its way out."""
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=BUSY_S)
        assert process.returncode == 130, told
        assert "Traceback" not in told
        self.nothing_is_left()
        return told

    def nothing_is_left(self) -> None:
        assert eventually(lambda: not marked("DESK_OF_A_TEST", self.mark), within_s=20), self.left()

    def left(self) -> dict[int, str]:
        return marked("DESK_OF_A_TEST", self.mark)

    def newest(self, kind: str) -> dict[str, Any]:
        """The newest run of a kind."""
        return self.json("ps", "--all", "--kind", kind)[0]

    def has_checkpoint(self, kind: str = "train", *, but: tuple[str, ...] = ()) -> Callable[[], bool]:
        """Whether a run of this kind has saved a checkpoint that is not one of `but`."""

        def check() -> bool:
            found = {path.name for path in self.home.glob(f"runs/{kind}-*/checkpoints/step-*")}
            return bool(found - set(but))

        return check

    def first_step(self, run: str) -> int:
        """The first step that a run has trained itself."""
        with (self.home / "runs" / run / "metrics.jsonl").open() as lines:
            return json.loads(next(lines))["step"]


def make_desk(folder: Path) -> Desk:
    """A desk whose documents are real: docstrings with the names they belong to."""
    docs = folder / "docs"
    docs.mkdir(parents=True)
    for name in MODULES:
        module = importlib.import_module(name)
        parts = [f"# {name}\n\n{inspect.getdoc(module) or ''}"]
        for member in getattr(module, "__all__", ()):
            told = inspect.getdoc(getattr(module, member, None))
            if told and len(told) > 80:
                parts.append(f"## {name}.{member}\n\n{told}")
        (docs / f"{name}.md").write_text("\n\n".join(parts), "utf-8")
    desk = Desk(folder)
    (folder / "recipe.py").write_text(RECIPE.format(slow=str(desk.slow)))
    (folder / "flow.toml").write_text(FLOW)
    return desk


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk whose dataset is published and whose model is trained on two ranks."""
    desk = make_desk(tmp_path_factory.mktemp("desk"))
    desk("data", "publish", "handbook", "docs")
    desk("train", "recipe.py", "--data", "dataset:handbook", "--name", "base", "--ranks", "2", "-s", "steps=12")
    yield desk
    desk.nothing_is_left()


def test_the_wheel_turns_from_documents_to_feedback(desk: Desk) -> None:
    shown = desk.json("data", "show", "dataset:handbook")
    assert shown["kept"] == shown["read"] - sum(rule["dropped"] for rule in shown["rules"]) > 5
    assert desk.json("plan", "recipe.py", "--data", "dataset:handbook", "--ranks", "2")["mesh"]
    model = desk.json("show", "model:base")
    assert {file["path"] for file in model["files"]} >= {"config.json", "model.safetensors", "tokenizer.json"}
    scores = {score["name"]: score for score in desk.json("eval", "model:base")["scores"]}
    assert 0 < scores["xz_bits_per_byte"]["value"] < scores["bits_per_byte"]["value"] < 9
    slim = desk.json("compress", "model:base", "--data", "dataset:handbook")
    assert slim["kind"] == "model"
    assert slim["size_bytes"] < model["size_bytes"]
    published = desk.json("app", "publish", "helper", "--corpus", "dataset:handbook", "--engine", "model:base")
    answer = desk.json("app", "ask", "helper", "How do I shuffle a list in random order?")
    assert answer["citations"]
    assert any("random" in citation["source"] for citation in answer["citations"])
    if answer["mode"] == "extracted":
        assert "gate" in answer["note"]
    row = desk.json("app", "feedback", "helper", answer["trace"], "--up", "--comment", "yes")
    assert (row["thumb"], row["snapshot"]) == ("up", "dataset:handbook@1")
    edges = desk.json("lineage", f"app:helper@{published['version']}", "--direction", "up")["edges"]
    assert {"dataset:handbook@1", "model:base@1"} <= {edge["ref"] for edge in edges}


def test_training_goes_on_after_ctrl_c_and_after_kill_9_by_its_run_alone(tmp_path: Path, desk: Desk) -> None:
    mine = make_desk(tmp_path / "desk")
    shutil.copytree(desk.home, mine.home)
    before = tuple(path.name for path in mine.home.glob("runs/train-*/checkpoints/step-*"))
    mine.slow.touch()
    arguments = ("train", "recipe.py", "--data", "dataset:handbook", "--name", "long", "--ranks", "2")
    with mine.started(*arguments) as process:
        mine.until(mine.has_checkpoint(but=before), process)
        told = mine.interrupt(process)
    first = mine.newest("train")
    assert first["state"] == "CANCELLED"
    assert f"mainspring train --resume {first['id']}" in told
    saved = {path.name for path in mine.home.glob(f"runs/{first['id']}/checkpoints/step-*")}
    with mine.started("train", "--resume", first["id"]) as process:
        mine.until(mine.has_checkpoint(but=(*before, *saved)), process)
        again = mine("train", "--resume", first["id"], code=2)
        assert "still at it" in again.stderr
        process.kill()
    mine.nothing_is_left()
    listed = mine("ps", "--all").stdout
    second = mine.newest("train")
    assert second["state"] == "FAILED"
    assert f"mainspring train --resume {second['id']}" in listed
    mine.slow.unlink()
    assert mine.json("train", "--resume", second["id"][-10:])["name"] == "long"
    third = mine.newest("train")
    assert 1 < mine.first_step(second["id"]) < mine.first_step(third["id"])
    assert mine.json("show", "model:long")["run"] == third["id"]
    mine.nothing_is_left()


def test_a_flow_killed_in_the_middle_repeats_no_finished_step_and_trains_on(tmp_path: Path) -> None:
    desk = make_desk(tmp_path / "desk")
    desk.slow.touch()
    with desk.started("run", "flow.toml") as process:
        desk.until(desk.has_checkpoint("step"), process)
        process.kill()
    desk.nothing_is_left()
    desk.slow.unlink()
    told = desk.json("run", "flow.toml")
    steps = {step["step"]: step for step in told["steps"]}
    assert steps["tokens"]["state"] == "CACHED"
    assert steps["train"]["value"] == "model:flow@1"
    assert desk.first_step(desk.json("show", "model:flow")["run"]) > 1
    assert {step["state"] for step in desk.json("run", "flow.toml")["steps"][1:]} == {"CACHED"}


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("data", ("data", "publish", "python", "python:docs")),
        ("app", ("app", "publish", "stopped", "--corpus", "dataset:handbook", "--engine", "model:base")),
    ],
)
def test_ctrl_c_is_recorded_and_leaves_no_half_artifact(desk: Desk, kind: str, line: tuple[str, ...]) -> None:
    before = desk.json("ls")
    with desk.started(*line) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(kind)
        told = desk.interrupt(process)
    assert desk.newest(kind)["state"] == "CANCELLED", told
    assert not [made for made in desk.json("ls", "app") if made["name"] == "stopped"]
    assert {made["kind"] for made in desk.json("ls") if made not in before} <= {"index", "report"}
    assert desk.json("doctor")[0]["state"] == "ok"


def test_a_model_is_served_until_ctrl_c_and_refuses_what_is_wrong(desk: Desk) -> None:
    with desk.started("serve", "model:base", "--port", "0", "--json") as process:
        assert process.stdout is not None
        url = json.loads("".join(process.stdout.readline() for _ in range(5)))["url"]
        asked = {"model": "base", "prompt": "Return a random", "max_tokens": 4}
        answer = httpx.post(f"{url}/completions", json=asked, timeout=30)
        assert answer.json()["usage"]["completion_tokens"] == 4
        long = httpx.post(f"{url}/completions", json=asked | {"prompt": "random " * 2000}, timeout=30)
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert httpx.post(f"{url}/completions", json=asked | {"model": "none"}, timeout=30).status_code == 404
        port = url.split(":")[2].split("/")[0]
        busy = desk("serve", "model:base", "--port", port, code=75)
        assert "port is in use" in busy.stderr
        desk.interrupt(process)


def test_up_listens_elsewhere_only_with_a_token_and_asks_everybody_for_it(tmp_path: Path) -> None:
    desk = make_desk(tmp_path / "desk")
    refused = desk("up", "--host", "0.0.0.0", code=2)
    assert "mainspring token create" in refused.stderr
    token = desk("token", "create", "anna").stdout.strip()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with desk.started("up", "--host", "0.0.0.0", "--port", str(port), "--json") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "{\n"
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/api/v1/runs", timeout=30).status_code == 401
        assert desk("--address", url, "ls", code=77).stderr.startswith("error: no token")
        assert desk("--address", url, "--token", "wrong", "ls", code=77)
        assert desk("--address", url, "--token", token, "ls").stdout == "no artifacts yet\n"
        assert desk("--address", url, "--token", token, "token", "create", "eve", code=2)
        desk.interrupt(process)


def test_bad_documents_are_named_and_cost_only_themselves(desk: Desk) -> None:
    folder = desk.folder / "mixed"
    folder.mkdir()
    (folder / "good.md").write_text((desk.folder / "docs" / "heapq.md").read_text())
    (folder / "empty.md").touch()
    (folder / "binary.md").write_bytes(bytes(range(256)) * 100)
    (folder / "corrupt.pdf").write_bytes(b"%PDF-1.7\nnothing of the kind")
    with (folder / "line.txt").open("wb") as file:
        file.write(b"x " * 50_000_000)
    told = desk("data", "publish", "mixed", "mixed").stdout
    skipped = {line.split(":")[0].rpartition("/")[2] for line in told.splitlines() if line.startswith("skipped")}
    assert skipped == {"empty.md", "binary.md", "corrupt.pdf", "line.txt"}
    assert "1 of 1 documents kept" in told
    assert desk.json("data", "head", "dataset:mixed")[0]["title"] == "heapq"


def test_a_recipe_that_raises_on_one_rank_says_which_and_why(desk: Desk) -> None:
    text = (desk.folder / "recipe.py").read_text()
    check = "    assert batch.is_meta or torch.distributed.get_rank() != 1, 'rows are short'\n"
    loss = "def loss(model, batch):\n"
    assert loss in text
    (desk.folder / "bad.py").write_text(f"import torch\n{text.replace(loss, loss + check)}")
    done = desk_fails(desk, "train", "bad.py", "--data", "dataset:handbook", "--ranks", "2")
    assert "rank 1" in done
    assert "rows are short" in done
    run = desk.newest("train")
    assert run["state"] == "FAILED"
    assert "rows are short" in desk("logs", run["id"], "--rank", "1").stdout


def desk_fails(desk: Desk, *line: str) -> str:
    """What a command says that ends with 1; the log of a rank in it may hold a traceback."""
    with desk.started(*line) as process:
        _, told = process.communicate(timeout=BUSY_S)
    assert process.returncode == 1, told
    return told


def test_a_model_folder_with_a_missing_tensor_is_refused_by_its_name(desk: Desk) -> None:
    from safetensors.torch import load_file, save_file

    from mainspring.spec import Settings
    from mainspring.store import Store

    folder = desk.folder / "broken"
    with Store.open(Settings(home=str(desk.home))) as store:
        shutil.copytree(store.fetch("model:base"), folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.0.mlp.up_proj.weight" in desk("serve", str(folder), "--port", "0", code=2).stderr


def test_a_disk_that_fills_up_costs_one_attempt_and_nothing_else(tmp_path: Path) -> None:
    desk = make_desk(tmp_path / "desk")
    desk("data", "publish", "handbook", "docs")
    largest = max(path.stat().st_size for path in desk.home.glob("mainspring.db*"))

    def small_files() -> None:
        """Runs in the child: no file may grow beyond what the database has already."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    words = (inspect.getdoc(subprocess) or "").split()
    draw = random.Random(1)
    lines = (" ".join(draw.choices(words, k=12)) for _ in range(8_000))
    (desk.folder / "docs" / "more.md").write_text("# subprocess\n\n" + "\n".join(lines))
    assert (desk.folder / "docs" / "more.md").stat().st_size > 2 * largest
    full = desk("data", "publish", "handbook", "docs", code=75, preexec_fn=small_files)
    assert "hint:" in full.stderr
    assert desk.newest("data")["state"] == "FAILED"
    desk("doctor", "--repair")
    desk("data", "publish", "handbook", "docs")
    # The disk may have filled before or after the commit of version 2, but there is never half of one or two.
    assert [made["version"] for made in desk.json("ls", "dataset")] == [2, 1]
    assert desk.json("data", "diff", "dataset:handbook@1", "dataset:handbook@2")["added"] == ["docs/more.md"]


def test_pressing_ctrl_c_twice_leaves_at_once(desk: Desk) -> None:
    deaf = "import signal\n" + RECIPE.format(slow=str(desk.slow)).replace(
        "threading.Event().wait(0.2)", "signal.signal(signal.SIGTERM, signal.SIG_IGN), threading.Event().wait(60)"
    )
    (desk.folder / "deaf.py").write_text(deaf)
    desk.slow.touch()
    with desk.started("train", "deaf.py", "--data", "dataset:handbook", "--ranks", "2") as process:
        desk.until(lambda: sum("cluster.rank" in line for line in desk.left().values()) == 2, process)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
        started_s = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=BUSY_S)
        assert process.returncode == 130
        assert time.monotonic() - started_s < 15  # and not the 30 s it would wait for work that listens
    desk.nothing_is_left()
    desk.slow.unlink()
    assert desk.newest("train")["state"] == "CANCELLED"
