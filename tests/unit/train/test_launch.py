"""From a recipe file to a published model on real gangs: a local Ray, real tokens, and what goes wrong on the way."""

from __future__ import annotations

import json
import pydoc
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_gang import SEQ_LEN, plan_of

from mainspring.cluster import Handle, Launcher
from mainspring.cluster.handle import result_of
from mainspring.models.tokenizer import Tokenizer, train_bpe
from mainspring.models.weights import load_pretrained
from mainspring.spec import (
    SAVED,
    Cancelled,
    Failed,
    Job,
    Mesh,
    QueueFile,
    Resources,
    Rules,
    Settings,
    SpecError,
    Stage,
    TimeEstimate,
    TokenSet,
    TokenSplit,
)
from mainspring.store import Store, parse
from mainspring.testing.processes import eventually
from mainspring.train import launch

pytestmark = pytest.mark.slow

RECIPE = f"""
import os, signal, time
from itertools import count
from pathlib import Path
import torch.distributed as dist
import mainspring as ms
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig
from mainspring.train.recipe import next_token_loss

FAULT, LOSS, SLOW, calls = *(Path(FOLDER) / name for name in ("fault", "loss", "slow")), count()

def model(vocab, eos_id):
    return Decoder(DecoderConfig(
        vocab=vocab, hidden=16, layers=2, heads=2, kv_heads=1, ffn=24, context=16, eos_id=eos_id))

def loss(model, batch):
    if FAULT.exists() and dist.get_rank() == 1 and next(calls) == 17:  # step 5, after 2 calls a step and 8 to evaluate
        raise RuntimeError("this recipe is broken on rank 1")
    if SLOW.exists():
        time.sleep(float(SLOW.read_text() or 0.3))
    if LOSS.exists() and dist.get_rank() == 1 and next(calls) == 17:
        LOSS.unlink()
        time.sleep(3)  # by now the checkpoint of step 4 is on disk
        os.kill(os.getppid(), signal.SIGKILL)  # what starts and watches ranks, as when its node is lost
    return next_token_loss(model, batch)

recipe = ms.Recipe(model=model, loss=loss, config=ms.TrainConfig(
    steps=6, global_batch=8, seq_len={SEQ_LEN}, checkpoint_every=2, eval_every=3, lr=1e-2))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[tuple[Store, Launcher, str]]:
    """A store with a packed dataset in it, and a launcher."""
    folder = tmp_path_factory.mktemp("home")
    texts = [pydoc.render_doc(module) for module in (json, pydoc)]
    tokenizer = train_bpe(texts, vocab=320)
    ids = np.array([i for text in texts for i in (*tokenizer.encode(text), tokenizer.eos_id)], np.uint16)
    parts = {"train": ids[:4000], "held_out": ids[4000:5000]}
    with Store.open(Settings(home=str(folder))) as store:
        with store.scratch() as scratch:
            tokenizer.save(scratch)
            tokenizer_ref = store.publish("tokenizer", "words", scratch).ref
        with store.scratch() as scratch:
            splits = []
            for name, part in parts.items():
                part.tofile(scratch / f"{name}.bin")
                splits.append(TokenSplit(name=name, file=f"{name}.bin", tokens=len(part), documents=1))
            made = TokenSet(
                splits=tuple(splits),
                vocab=tokenizer.vocab,
                dtype="uint16",
                tokenizer=tokenizer_ref,
                snapshot="dataset:none@1",
            )
            (scratch / "tokens.json").write_text(parse.to_json(made))
            tokens_ref = store.publish("tokens", "docs", scratch).ref
        hasty = QueueFile(queues=(), rules=Rules(shield_ms=1))
        with Launcher(store, address="local", quotas=hasty) as launcher:
            yield store, launcher, tokens_ref


def test_a_pipeline_of_two_replicas_publishes_the_model_one_rank_publishes(home, recipe):
    store, launcher, tokens = home
    runs = [store.start_run("train", name, config={}).id for name in ("alone", "piped")]
    one = launch.train(store, launcher, recipe, plan=plan_of(steps=6), tokens_ref=tokens, name="alone", run=runs[0])
    pieces = [Stage(blocks=2, device="cpu", ranks=(), microbatches=(2, 6), first=first) for first in (0, 2)]
    plan = replace(
        plan_of(microbatch=1), mesh=Mesh(pp=2, fsdp=2), zero=1, stages=tuple(pieces), schedule="1f1b", steps=6
    )
    two = launch.train(store, launcher, recipe, plan=plan, tokens_ref=tokens, name="piped", run=runs[1])
    first, second = (load_pretrained(store.fetch(made)).state_dict() for made in (one, two))
    for name, tensor in first.items():
        np.testing.assert_allclose(second[name], tensor, atol=1e-4, err_msg=name)


def test_a_plan_that_does_not_fit_the_model_is_refused_before_any_rank_starts(home, recipe):
    store, launcher, tokens = home
    with pytest.raises(SpecError, match="self_attn has 1 kv_heads, which 2 ranks cannot share evenly"):
        launch.train(store, launcher, recipe, plan=plan_of(Mesh(tp=2), steps=6), tokens_ref=tokens, name="no", run="no")
    assert not (launcher.run_root / "no").exists()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.py"
    path.write_text(f"FOLDER = {str(tmp_path)!r}\n{RECIPE}")
    return path


@pytest.fixture(scope="module")
def straight(home, tmp_path_factory) -> list[float]:
    """The losses of two ranks that nobody disturbs."""
    store, launcher, tokens = home
    folder, run = tmp_path_factory.mktemp("straight"), store.start_run("train", "straight", config={}).id
    (folder / "recipe.py").write_text(f"FOLDER = {str(folder)!r}\n{RECIPE}")
    plan = plan_of(Mesh(dp=2), steps=6)
    launch.train(store, launcher, folder / "recipe.py", plan=plan, tokens_ref=tokens, name="straight", run=run)
    return [row["loss"] for row in rows(store, run)]


def rows(store: Store, run: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (store.run_dir(run) / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_failed_on_one_rank_is_resumed_and_publishes_its_model_with_lineage(home, recipe):
    store, launcher, tokens = home
    run = store.start_run("train", "tiny", config={}).id
    plan = plan_of(Mesh(dp=2), steps=6)
    fault = recipe.with_name("fault")
    said: list[tuple[float, str]] = []

    fault.touch()
    line = recipe.read_text().splitlines().index('        raise RuntimeError("this recipe is broken on rank 1")') + 1
    told = rf"rank 1 on .*: RuntimeError: this recipe is broken on rank 1 \(recipe\.py, line {line}, in loss\)"
    with pytest.raises(Failed, match=told) as caught:
        launch.train(store, launcher, recipe, plan=plan, tokens_ref=tokens, name="tiny", run=run)
    assert "Traceback" in caught.value.hint
    assert [row["step"] for row in rows(store, run)] == [1, 2, 3, 4]
    before = rows(store, run)
    fault.unlink()

    artifact = launch.train(
        store,
        launcher,
        recipe,
        plan=plan,
        tokens_ref=tokens,
        name="tiny",
        run=run,
        progress=lambda fraction, message: said.append((fraction, message)),
    )
    assert said[-1][0] == 1.0
    assert said[-1][1].startswith("step 6/6, loss ")
    log = (store.run_dir(run) / "rank-0.log").read_text()
    assert "resumed from a checkpoint" in log
    assert "arning" not in log, "nothing went wrong, and no library said so"
    assert artifact.ref == "model:tiny@1"
    meta = json.loads(artifact.meta_json)
    assert meta["steps"] == 6
    assert meta["tokens"] == 6 * 8 * SEQ_LEN
    assert meta["plan"] == "dp2"
    found = rows(store, run)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert found[:4] == before
    assert meta["final_loss"] == found[-1]["loss"]
    assert ["held_out_loss" in row for row in found] == [False, False, True, False, False, True]
    edges = {(edge.role, edge.ref) for edge in store.lineage(artifact.ref).edges}
    assert edges == {("input", tokens), ("input", "tokenizer:words@1"), ("output", "model:tiny@1")}
    folder = store.fetch(artifact)
    assert load_pretrained(folder).config.vocab == Tokenizer.load(folder).vocab
    assert (folder / "recipe.py").read_bytes() == recipe.read_bytes()


def test_training_goes_on_from_its_last_checkpoint_when_its_node_agent_is_lost(home, recipe, straight):
    store, launcher, tokens = home
    run = store.start_run("train", "lost", config={}).id
    recipe.with_name("loss").touch()
    plan = plan_of(Mesh(dp=2), steps=6)
    artifact = launch.train(store, launcher, recipe, plan=plan, tokens_ref=tokens, name="lost", run=run)
    assert (store.job(run).attempt, store.job(run).losses) == (2, 1)
    assert "resumed from a checkpoint" in (store.run_dir(run) / "rank-0.log").read_text()
    assert [row["step"] for row in rows(store, run)] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows(store, run)] == straight
    assert json.loads(artifact.meta_json)["final_loss"] == straight[-1]


def test_training_that_has_to_leave_saves_the_step_at_hand_and_goes_on_exactly_when_it_may(home, recipe, straight):
    store, launcher, tokens = home
    run = store.start_run("train", "moved", config={}).id
    recipe.with_name("slow").touch()
    plan, done = plan_of(Mesh(dp=2), steps=6), []

    def train() -> None:
        done.append(launch.train(store, launcher, recipe, plan=plan, tokens_ref=tokens, name="moved", run=run))

    training = threading.Thread(target=train)
    training.start()
    saved = store.run_dir(run) / SAVED
    assert eventually(saved.exists, within_s=60)  # step 2 is on disk, and the next at hand
    urgent = Job(id="urgent", name="urgent", entry="operator:is_", resources=Resources(cpus=3), priority=1)
    assert launcher.submit(urgent).wait(60).state == "SUCCEEDED"
    left = int(saved.read_text().removeprefix("step "))
    recipe.with_name("slow").unlink()
    training.join(60)
    assert [artifact.name for artifact in done] == ["moved"]
    assert (store.job(run).attempt, store.job(run).losses) == (2, 0)
    (told,) = [json.loads(event.data_json) for event in store.events(kind="job.evict", subject=run)]
    assert told["reason"] == "stops: makes room for urgent"
    assert left in (3, 4, 5)
    log = (store.run_dir(run) / "rank-0.log").read_text()
    assert log.count("resumed from a checkpoint") == 1
    assert [row["step"] for row in rows(store, run)] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows(store, run)] == straight


@pytest.mark.timeout(400)  # five starts of up to four ranks
def test_of_two_elastic_trainings_the_first_gives_way_to_the_second_and_grows_when_that_has_ended(
    home, recipe, tmp_path
):
    store, launcher, tokens = home
    menu = [plan_of(Mesh(dp=n), steps=12, time=seconds(4 / n)) for n in (1, 2, 4)]
    runs = {name: store.start_run("train", name, config={}).id for name in ("first", "second")}
    paths = {name: tmp_path / name / "recipe.py" for name in runs}
    for path in paths.values():
        path.parent.mkdir()
        path.write_text(f"FOLDER = {str(path.parent)!r}\n{RECIPE}")
    slow = paths["first"].with_name("slow")
    slow.write_text("1.0")
    shapes: list[str] = []

    def train(name: str) -> threading.Thread:
        given = {"plan": menu[0], "menu": menu, "tokens_ref": tokens, "overrides": ("steps=12", "eval_every=0")}
        given |= {"name": name, "run": runs[name]}
        work = threading.Thread(target=lambda: launch.train(store, launcher, paths[name], **given))
        work.start()
        return work

    def shape(name: str) -> str:
        placement = store.job(runs[name]).placement
        return placement.plan if placement else ""

    first = train("first")
    assert eventually((store.run_dir(runs["first"]) / "metrics.jsonl").exists, within_s=120)
    shapes.append(shape("first"))
    second = train("second")
    assert eventually(lambda: store.job(runs["first"]).attempt == 2, within_s=120), store.job(runs["first"])
    shapes += [shape("first"), shape("second")]
    second.join(180)
    assert eventually(lambda: store.job(runs["first"]).attempt == 3, within_s=120), store.job(runs["first"])
    shapes.append(shape("first"))
    slow.unlink()
    first.join(180)
    assert shapes == ["dp4 on 4 cpu", "dp2 on 2 cpu", "dp2 on 2 cpu", "dp4 on 4 cpu"]
    found = {name: rows(store, run) for name, run in runs.items()}
    assert [[row["step"] for row in each] for each in found.values()] == [list(range(1, 13))] * 2
    # Both have the same data in the same order, and the second was never disturbed.
    losses = [[row["loss"] for row in each] for each in found.values()]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert [(store.job(run).attempt, store.job(run).losses) for run in runs.values()] == [(3, 0), (1, 0)]
    told = [json.loads(event.data_json)["reason"] for event in store.events(kind="job.evict", subject=runs["first"])]
    assert [reason.split(" at ")[0] for reason in told] == ["gives way", "grows"]


def seconds(compute_s: float) -> TimeEstimate:
    return TimeEstimate(compute_s=compute_s, communication_s=0.0, bubble_s=0.0, optimizer_s=0.0)


def test_what_cannot_be_trained_is_refused_before_a_process_starts(home, recipe):
    store, launcher, tokens = home
    stale = plan_of(steps=5)
    with pytest.raises(SpecError, match="steps = 6, the plan 5"):
        launch.train(store, launcher, recipe, plan=stale, tokens_ref=tokens, name="tiny")
    with pytest.raises(SpecError, match="no packed dataset"):
        launch.train(store, launcher, recipe, plan=stale, tokens_ref="tokenizer:words", name="tiny")
    vast, longer = plan_of(steps=6, seq_len=4000), ("seq_len=4000",)
    with pytest.raises(SpecError, match="has 4000 tokens, one sample needs 4001"):
        launch.train(store, launcher, recipe, plan=vast, tokens_ref=tokens, name="tiny", overrides=longer)
    many = plan_of(steps=6, seq_len=1500)
    with pytest.raises(SpecError, match="split 'held_out' has 1000 tokens, one sample needs 1501"):
        launch.train(store, launcher, recipe, plan=many, tokens_ref=tokens, name="tiny", overrides=("seq_len=1500",))
    assert not (store.home / "runs" / "train-tiny" / "rank-0.log").exists()


def test_a_run_that_waits_says_for_what_and_is_stopped_while_it_does(tmp_path):
    """No step is ever logged: a job behind others in the queue, or ranks that hang."""
    handle = Handle(Job(id="j", name="j", entry="m:f"), tmp_path, None)
    handle.move("PENDING", "needs 2 ranks of 1 cpu at once, 0 would fit now")
    said: list[tuple[float, str]] = []

    def progress(fraction: float, message: str) -> None:
        said.append((fraction, message))
        if len(said) == 3:
            raise Cancelled("stopped")

    queue = threading.Thread(
        target=lambda: (
            eventually(lambda: bool(handle.cancelled), within_s=20)
            and handle.finish(result_of(handle.job, "CANCELLED", "gone"))
        )
    )
    queue.start()
    with pytest.raises(Cancelled, match="stopped"):
        launch._follow(handle, steps=5, progress=progress)
    queue.join()
    assert handle.state == "CANCELLED"
    assert set(said) == {(0.0, "pending: needs 2 ranks of 1 cpu at once, 0 would fit now")}


def test_a_plan_for_the_data_knows_its_vocabulary(home, recipe):
    from mainspring.hardware.topology import local_cluster

    store, _, tokens = home
    facts = launch.facts_of(store, tokens)
    plan = launch.plan_for(recipe, cluster=local_cluster(), facts=facts, ranks=1, overrides=("steps=9",))
    assert plan.steps == 9
    assert plan.mesh.world == 1
    assert facts["vocab"] == 320
    assert launch.study(recipe, facts=facts)[0].params < launch.study(recipe)[0].params
