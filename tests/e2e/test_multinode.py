"""One program on a cluster without a shared disk: two Ray nodes with a home each, and a driver with a third.

They share a PostgreSQL server and an object store, here `local://`: fsspec's local files, reached as any object store
is, by no path that the nodes know. A driver runs in a process of its own, as Ray allows one connection in each.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mainspring.testing.postgres import NoPostgres, empty_database, running_postgres

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(" " in sys.executable, reason="Ray's client server does not start from a path with a space"),
]

PASSWORD = "correct-horse-battery"
STEPS = 12

RECIPE = f"""
import mainspring as ms
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig
from neighbour import paced_loss

def model(vocab, eos_id):
    return Decoder(DecoderConfig(
        vocab=vocab, hidden=16, layers=1, heads=2, kv_heads=1, ffn=24, context=16, eos_id=eos_id))

recipe = ms.Recipe(model=model, loss=paced_loss, config=ms.TrainConfig(
    steps={STEPS}, global_batch=4, microbatch=2, seq_len=12, checkpoint_every=2, lr=1e-2))
"""

NEIGHBOUR = """
import time
from mainspring.train.recipe import next_token_loss

def paced_loss(model, batch):
    time.sleep(0.1)
    return next_token_loss(model, batch)
"""

PUBLISH = """
    import json, sys, os, signal, time
    from pathlib import Path
    import numpy as np
    import mainspring as ms
    from mainspring.models.tokenizer import train_bpe
    from mainspring.spec import Failed, Settings, SpecError, TokenSet, TokenSplit
    from mainspring.store import parse
    from mainspring.testing.processes import eventually, marked

    def publish_tokens(store):
        words = train_bpe(["the quick brown fox jumps over the lazy dog " * 40], vocab=280)
        ids = np.random.default_rng(0).integers(0, 280, 4000).astype(np.uint16)
        with store.scratch() as folder:
            words.save(folder)
            tokenizer = store.publish("tokenizer", "words", folder).ref
        with store.scratch() as folder:
            ids.tofile(folder / "ids.bin")
            split = dict(file="ids.bin", tokens=len(ids), documents=1)
            splits = tuple(TokenSplit(name=name, **split) for name in ("train", "held_out"))
            names = dict(dtype="uint16", tokenizer=tokenizer, snapshot="dataset:none@1")
            tokens = TokenSet(splits=splits, vocab=words.vocab, **names)
            (folder / "tokens.json").write_text(parse.to_json(tokens))
            return store.publish("tokens", "docs", folder).ref

    order = json.load(sys.stdin)
    settings = Settings(**order["settings"])
"""

TRAIN = (
    PUBLISH
    + """
    def ranks_of(home):
        return [pid for pid, line in marked("MAINSPRING_HOME", home).items() if "cluster.rank" in line]

    def seen_by_ps():
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        return any(order["password"].encode() in line for line in lines)

    def rows(run):
        return [[row["step"], row["loss"]] for row in run.metrics()]

    with ms.connect(settings=settings) as ws:
        tokens = publish_tokens(ws.store)
        plan = ws.plan(order["recipe"], data=tokens, ranks=2)
        straight = ws.train(order["recipe"], data=tokens, plan=plan, name="straight")
        first = straight.result(120)
        killed = ws.train(order["recipe"], data=tokens, plan=plan, name="resumed")
        assert eventually(lambda: len(rows(killed)) >= 5, within_s=90), killed.logs()
        visible = seen_by_ps()
        (victim,) = ranks_of(order["homes"][1])
        os.kill(victim, signal.SIGKILL)
        try:
            killed.result(60)
        except Failed as error:
            said = [type(error).__name__, str(error), error.hint]
        before = rows(killed)
        resumed = ws.resume(killed.id)
        second = resumed.result(120)

        # The same run once more: nothing is left to train, and what it wrote is still there.
        from mainspring.train import launch
        log_before = killed.logs(1)
        again = launch.train(
            ws.store, ws.launcher, order["recipe"], plan=plan, tokens_ref=tokens, name="resumed", run=killed.id)
        folder = ws.store.fetch(second)
        print(json.dumps({
            "plan": plan.mesh.label, "error": said, "visible": visible,
            "straight": rows(straight), "killed": before, "resumed": rows(resumed), "after": rows(killed),
            "weights": [next(f.digest for f in a.files if f.path.endswith("tensors")) for a in (first, second, again)],
            "files": sorted(path.name for path in folder.iterdir()),
            "logs": [resumed.logs(0), resumed.logs(1)], "continued": killed.logs(1).startswith(log_before),
            "configs": [record.config_json for record in ws.runs()], "runs": [killed.id, resumed.id],
            "recipe_sha256": json.loads(second.meta_json)["recipe_sha256"],
        }))
"""
)

REFUSED = (
    PUBLISH
    + """
    with ms.connect(settings=settings) as ws:
        tokens = publish_tokens(ws.store)
        plan = ws.plan(order["recipe"], data=tokens, ranks=2)
        run = ws.train(order["recipe"], data=tokens, plan=plan)
        try:
            run.result(60)
        except SpecError as error:
            logs = [path.name for path in ws.store.run_dir(run.id).glob("rank-*")]
            print(json.dumps({"error": str(error), "hint": error.hint, "logs": logs}))
"""
)


@dataclass(frozen=True)
class World:
    """The cluster's addresses, the nodes' homes, and what everybody reaches."""

    client: str
    gcs: str
    homes: tuple[Path, Path]
    bucket: Path
    database_url: str
    session: Path
    recipe: Path

    def settings(self, home: Path, **others: str) -> dict[str, str]:
        shared = {"database_url": self.database_url, "artifacts_url": f"local://{self.bucket}"}
        return {"home": str(home), "address": self.client, **shared, **others}

    def drive(self, program: str, settings: dict[str, str], *, timeout_s: float = 230) -> dict:
        """Run `program` as a driver; secrets reach it on its standard input."""
        order = {"settings": settings, "homes": [str(home) for home in self.homes], "recipe": str(self.recipe)}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            input=json.dumps({**order, "password": PASSWORD}),
            env={**os.environ, "RAY_ADDRESS": self.gcs},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world")
    (root / "recipe.py").write_text(RECIPE)
    (root / "neighbour.py").write_text(NEIGHBOUR)
    session = Path(tempfile.mkdtemp(prefix="ms-ray-", dir="/tmp"))  # a socket's path is limited to 107 characters
    homes = (root / "home-a", root / "home-b")
    cluster = None
    try:
        with running_postgres() as socket_folder:
            command = [sys.executable, str(Path(__file__).with_name("two_nodes.py")), *map(str, homes), str(session)]
            cluster = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            url = empty_database(socket_folder).replace("@/", f":{PASSWORD}@/")
            assert cluster.stdout is not None
            addresses = json.loads(cluster.stdout.readline())
            yield World(
                **addresses,
                homes=homes,
                bucket=root / "bucket",
                database_url=url,
                session=session,
                recipe=root / "recipe.py",
            )
    except NoPostgres as error:
        pytest.skip(str(error))
    finally:
        if cluster is not None:
            cluster.communicate(timeout=60)
        shutil.rmtree(session, ignore_errors=True)


def holding(folders: list[Path], word: str) -> list[Path]:
    """Files below `folders` that contain `word`."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if word.encode() in path.read_bytes()]


def test_a_run_killed_on_one_of_two_machines_resumes_bit_for_bit_without_a_shared_disk(world: World, tmp_path: Path):
    told = world.drive(TRAIN, world.settings(tmp_path))
    assert told["plan"] == "dp2"
    assert told["error"][0] == "WorkerLost"
    assert "killed by SIGKILL" in told["error"][1]
    assert f"mainspring train --resume {told['runs'][0]}" in told["error"][2]

    # Exactly the uninterrupted run: its losses up to the kill, its losses after the resume, its weights.
    straight = told["straight"]
    assert [step for step, _ in straight] == list(range(1, STEPS + 1))
    assert told["killed"] == straight[: len(told["killed"])]
    first = told["resumed"][0][0]
    assert 1 < first <= len(told["killed"]) + 1
    assert told["resumed"] == straight[first - 1 :]
    assert len(set(told["weights"])) == 1
    assert told["after"] == told["killed"]
    assert told["continued"]

    # On the driver: the model, and what every rank said.
    assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.py"} <= set(told["files"])
    assert "resumed from a checkpoint" in told["logs"][0]
    assert "resumed from a checkpoint" in told["logs"][1]

    # Each node fetched for itself; checkpoints are in the bucket alone, the last two, marked.
    for home in world.homes:
        assert len(list((home / "fetched").glob("*/tokens.json"))) == 1
        assert not list(home.glob("gangs/*"))
    assert not [path for home in (*world.homes, tmp_path) for path in home.rglob("*.distcp")]
    kept = list(world.bucket.glob(f"*/runs/{told['runs'][0]}/checkpoints/*"))
    assert sorted(path.name.split("-")[1] for path in kept) == [f"{STEPS - 2:08d}", f"{STEPS:08d}"]
    assert all((path / "committed").exists() for path in kept)

    # The database's password is nowhere: not in a process list, a log, a run's configuration, a file.
    assert not told["visible"]
    assert not [config for config in told["configs"] if PASSWORD in config]
    assert holding([*world.homes, tmp_path, world.bucket, world.session], PASSWORD) == []


def test_a_store_on_the_drivers_disk_is_refused_before_anything_starts(world: World, tmp_path: Path):
    settings = {"home": str(tmp_path), "address": world.client}
    told = world.drive(REFUSED, settings)
    assert told["error"].startswith("2 of the 2 nodes")
    assert "MAINSPRING_DATABASE_URL" in told["hint"]
    assert "MAINSPRING_ARTIFACTS_URL" in told["hint"]
    assert told["logs"] == []


def test_the_command_line_sees_plans_and_trains_on_the_cluster_it_is_in(world: World, tmp_path: Path):
    """With the address `auto`, as on a node of the cluster."""
    settings = world.settings(tmp_path)
    environment = {**os.environ, "RAY_ADDRESS": world.gcs, "MAINSPRING_HOME": str(tmp_path)}
    environment |= {"MAINSPRING_DATABASE_URL": settings["database_url"]}
    environment |= {"MAINSPRING_ARTIFACTS_URL": settings["artifacts_url"]}
    tokens = world.drive(
        PUBLISH + "\n    with ms.connect(settings=settings) as ws: print(json.dumps(publish_tokens(ws.store)))",
        settings,
    )

    def mainspring(*arguments: str) -> dict:
        command = [
            sys.executable,
            "-c",
            "from mainspring.cli import main; main()",
            "--address",
            "auto",
            *arguments,
            "--json",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=230)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    machines = mainspring("hw")
    assert len({node["name"] for node in machines["nodes"]}) == 2
    assert machines["link"]["name"] == "tcp, measured"
    plan = mainspring("plan", str(world.recipe), "--data", str(tokens), "--ranks", "2")
    assert plan["mesh"]["dp"] == 2
    made = mainspring(
        "train", str(world.recipe), "--data", str(tokens), "--ranks", "2", "--name", "wired", "-s", "steps=2"
    )
    assert (made["kind"], made["name"]) == ("model", "wired")
