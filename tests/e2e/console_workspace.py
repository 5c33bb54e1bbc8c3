"""A small workspace with something on every page of the console, made by the real stages from a few Markdown files."""

import bisect
import collections
import csv
import inspect
import json
import math
import os
import queue
import random
import shutil
import statistics
import string
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import ModuleType

import pytest
import torch

from mainspring.data import pack
from mainspring.data.loader import TokenLoader, read_token_set
from mainspring.flow import execution
from mainspring.hardware.topology import local_cluster
from mainspring.models.tokenizer import Tokenizer
from mainspring.models.transformer import Decoder
from mainspring.models.weights import save_pretrained
from mainspring.spec import DecoderConfig, NotFound, Settings
from mainspring.testing.books import fill_books
from mainspring.workspace import Workspace

STEPS, SEQ_LEN, BATCH = 60, 64, 8
MODULES = (bisect, collections, csv, json, math, os.path, queue, random, shutil, statistics, string, textwrap, time)
FLOW = """
[flow]
name = "handbook-refresh"
[params]
docs = "{docs}"
[steps.documents]
call = "mainspring.apps.steps:documents"
with = {{ source = "${{params.docs}}", name = "handbook" }}
[steps.tokens]
call = "mainspring.apps.steps:tokens"
with = {{ data = "${{documents}}", vocab = 512 }}
[steps.index]
call = "mainspring.apps.steps:index"
with = {{ data = "${{documents}}", name = "passages" }}
[steps.retrieval]
call = "mainspring.apps.steps:retrieval"
with = {{ index = "${{index}}" }}
"""


@dataclass(frozen=True)
class Made:
    """What the tests look for."""

    home: Path
    train_run: str
    failed_run: str
    flow_run: str
    model: str
    dataset: str
    running: str
    release: Event
    workspace: Workspace

    def close(self) -> None:
        """End the running run and let go of everything."""
        self.release.set()
        self.workspace.run(self.running).result(30)
        self.workspace.close()


def populate(home: Path, docs: Path) -> Made:
    """Fill a workspace at `home` from Markdown files written to `docs`; set `release` to end its running run."""
    workspace = Workspace(Settings(home=str(home)))
    _write_documents(docs, modules=MODULES[:-1])
    workspace.publish_data("handbook", source=str(docs)).result(60)
    _write_documents(docs, modules=MODULES)
    (docs / "math.isclose.md").unlink()
    with (docs / "csv.reader.md").open("a", encoding="utf-8") as page:
        page.write("\nA dialect may be given by name; list them with csv.list_dialects().\n")
    flow = docs.parent / "flow.toml"
    flow.write_text(FLOW.format(docs=docs), encoding="utf-8")
    flow_run = workspace.flow(flow).check().run.id
    dataset = workspace.artifact("dataset:handbook")
    tokens = pack.tokens_of(workspace.store, dataset.ref, vocab=512)
    train_run = _train(workspace, tokens.ref)
    model = workspace.artifact("model:handbook-lm")
    workspace.store.tag(model.ref, "latest-good")
    workspace.evaluate(model.ref).result(60)
    workspace.compress(model.ref).result(60)
    workspace.evaluate("model:handbook-lm-w8a8", compare_to=model.ref).result(60)
    workspace.publish_app("handbook", corpus=dataset.ref, engine=model.ref).result(60)
    failed = workspace.publish_data("missing", source=str(home / "no-such-folder"))
    with pytest.raises(NotFound, match="no-such-folder"):
        failed.result(30)
    fill_books(workspace.store)
    running, release = _keep_running(workspace)
    return Made(home, train_run, failed.id, flow_run, model.ref, dataset.ref, running, release, workspace)


def _write_documents(folder: Path, *, modules: Sequence[ModuleType]) -> None:
    """What the modules of the standard library say about themselves, and four files that should not get through."""
    folder.mkdir(parents=True, exist_ok=True)
    for module in modules:
        for name, member in sorted(vars(module).items()):
            text = inspect.getdoc(member) or ""
            if name[0] != "_" and callable(member) and len(text) > 150:
                page = f"# {module.__name__}.{name}\n\n{text}\n"
                (folder / f"{module.__name__}.{name}.md").write_text(page, encoding="utf-8")
    (folder / "stub.md").write_text("Soon.", encoding="utf-8")
    (folder / "empty.md").write_text("", encoding="utf-8")
    (folder / "shutil.copytree-again.md").write_bytes((folder / "shutil.copytree.md").read_bytes())
    (folder / "photo.pdf").write_bytes(b"%PDF-1.7 this is not one")


def _train(workspace: Workspace, tokens_ref: str) -> str:
    """A short real training in this process, recorded as a run with the files that ranks leave behind."""
    store = workspace.store
    folder = store.fetch(tokens_ref)
    tokenizer = Tokenizer.load(store.fetch(read_token_set(folder).tokenizer))
    run = store.start_run("train", "handbook-lm", config={"steps": STEPS, "lr": 3e-3}, inputs=(tokens_ref,))
    store.set_run_state(run.id, "RUNNING")
    config = DecoderConfig(
        vocab=tokenizer.vocab,
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=2,
        ffn=128,
        context=256,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
    )
    model = Decoder(config, seed=1)
    rows = _fit(model, TokenLoader(folder, "train", seq_len=SEQ_LEN, global_batch=BATCH, seed=0))
    kept = store.run_dir(run.id)
    (kept / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for rank in range(2):
        lines = "".join(f"step {row['step']:.0f} loss {row['loss']:.4f}\n" for row in rows[::10])
        (kept / f"rank-{rank}.log").write_text(f"rank {rank} of 2 joined\n{lines}", encoding="utf-8")
    execution.write_progress(kept, 1.0, f"step {STEPS} of {STEPS}, loss {rows[-1]['loss']:.3f}")
    with store.scratch() as scratch:
        save_pretrained(model, scratch / "model", tokenizer=tokenizer)
        meta = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": STEPS,
            "final_loss": rows[-1]["loss"],
        }
        store.publish("model", "handbook-lm", scratch / "model", meta=meta, run=run.id, inputs=(tokens_ref,))
    store.set_run_state(run.id, "SUCCEEDED")
    return run.id


def _fit(model: Decoder, loader: TokenLoader) -> list[dict[str, float]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    peak = local_cluster().nodes[0].devices[0].fp32_flops_per_s
    rows: list[dict[str, float]] = []
    began_s = time.perf_counter()
    for step in range(1, STEPS + 1):
        since_s = time.perf_counter()
        batch = torch.from_numpy(loader.batch(step - 1))
        logits = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - since_s
        rows.append(
            {
                "step": step,
                "loss": loss.item(),
                "lr": 3e-3,
                "tokens": step * BATCH * SEQ_LEN,
                "tokens_per_s": BATCH * SEQ_LEN / seconds,
                "mfu": 6 * parameters * BATCH * SEQ_LEN / seconds / peak,
                "joules": 15.0 * (time.perf_counter() - began_s),
                "seconds": time.perf_counter() - began_s,
            }
        )
    return rows


def _keep_running(workspace: Workspace) -> tuple[str, Event]:
    """A run that goes on until it is released."""
    release = Event()

    def body(work: execution.Execution) -> None:
        while not release.wait(0.2):
            work.progress(0.42, "reading page 42 of 100")

    work = execution.start(workspace.store, body, kind="data", name="wiki", config={"source": "wiki"})
    return work.id, release
