"""The entry point of a training gang: every rank runs `main`; rank 0 also keeps the record and publishes the model."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mainspring.data.loader import TokenLoader, read_token_set
from mainspring.hardware import limits
from mainspring.models.tokenizer import Tokenizer
from mainspring.models.transformer import Decoder
from mainspring.models.weights import save_pretrained, save_tensors
from mainspring.spec import Plan, Settings, Task, TrainConfig, TrainPayload
from mainspring.store import Store, parse
from mainspring.train.loop import Trainer, TrainingData
from mainspring.train.metrics import FILE, Recorder
from mainspring.train.profile import profile_recipe
from mainspring.train.recipe import Facts, LoadedRecipe, load_recipe

RESULT = "result.json"
TRAIN, HELD_OUT = "train", "held_out"  # the splits of data.pack, whose import would load Lance on every rank

log = logging.getLogger(__name__)


def main(task: Task, payload: Mapping[str, Any]) -> None:
    """Train as the `TrainPayload` says, from its newest checkpoint if it has one; rank 0 leaves `result.json`."""
    order = parse.read_dict(payload, TrainPayload)
    torch.set_num_threads(max(1, limits.cores() // task.local_world))
    plan = parse.read_json(order.plan_json, Plan)
    config = parse.read_json(order.config_json, TrainConfig)
    loaded = load_recipe(order.recipe)
    loaded = replace(loaded, recipe=replace(loaded.recipe, config=config))
    facts = read_facts(Path(order.tokens), Path(order.tokenizer) if order.tokenizer else None, config)
    recorder = None
    if task.rank == 0:
        model = profile_recipe(loaded.recipe, facts, name=order.output)
        recorder = Recorder(Path(task.run_dir) / FILE, plan, model, task, log_every=config.log_every)
    data = _open_data(order, config, facts)
    trainer = Trainer(loaded, plan, task, data=data, folder=Path(order.checkpoints))
    try:
        state = _train(trainer, recorder)
    except BaseException:
        # The checkpoint being written is worth keeping. The group is left as it is: the others must not hear of
        # the broken connection before the launcher has heard from this rank.
        trainer.wait()
        raise
    trainer.close()
    if recorder is not None:
        _publish(order, plan, loaded, model=trainer.model, state=state, run_dir=Path(task.run_dir), recorder=recorder)
        recorder.close()


def read_facts(tokens: Path, tokenizer: Path | None, config: TrainConfig) -> Facts:
    """What a recipe's model may ask about its data."""
    words = Tokenizer.load(tokenizer) if tokenizer is not None else None
    return {
        "vocab": read_token_set(tokens).vocab,
        "seq_len": config.seq_len,
        "eos_id": words.eos_id if words else None,
        "bos_id": words.bos_id if words else None,
    }


def _open_data(order: TrainPayload, config: TrainConfig, facts: Facts) -> TrainingData:
    def loader(split: str) -> TokenLoader:
        return TokenLoader(
            Path(order.tokens),
            split,
            seq_len=config.seq_len,
            global_batch=config.global_batch,
            seed=config.seed,
        )

    return TrainingData(train=loader(TRAIN), facts=facts, held_out=loader(HELD_OUT) if config.eval_every else None)


def _train(trainer: Trainer, recorder: Recorder | None) -> dict[str, Tensor]:
    if trainer.restore():
        log.info("resumed from a checkpoint", extra={"step": trainer.step})
    if recorder is not None:
        recorder.start(trainer.step)
    for result in trainer.steps():
        if recorder is not None:
            failed = len(trainer.save_errors)
            recorder.record(result, final_step=trainer.config.steps, failed_saves=failed)
    return trainer.full_state()


def _publish(
    order: TrainPayload,
    plan: Plan,
    loaded: LoadedRecipe,
    *,
    model: nn.Module,
    state: Mapping[str, Tensor],
    run_dir: Path,
    recorder: Recorder,
) -> None:
    """Write the model's folder, publish it with what it was made from, and say so in `result.json`."""
    last = recorder.rows.last or {}
    meta = {
        "recipe_sha256": loaded.digest,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "steps": loaded.recipe.config.steps,
        "tokens": loaded.recipe.config.steps * plan.global_batch * plan.seq_len,
        "final_loss": last.get("loss"),
        "plan": plan.mesh.label,
    }
    settings = parse.read_json(order.settings_json, Settings)
    with Store.open(settings) as store, store.scratch() as folder:
        export(model, state, folder, tokenizer=Path(order.tokenizer) if order.tokenizer else None)
        shutil.copyfile(loaded.path, folder / "recipe.py")
        artifact = store.publish("model", order.output, folder, meta=meta, run=order.run_id, inputs=order.inputs)
    measured = {name: last.get(name) for name in ("seconds", "joules", "held_out_loss", "failed_saves")}
    partial = run_dir / f".{RESULT}"
    partial.write_text(json.dumps({"ref": artifact.ref, **meta, **measured}), "utf-8")
    partial.replace(run_dir / RESULT)


def export(model: nn.Module, state: Mapping[str, Tensor], folder: Path, *, tokenizer: Path | None) -> None:
    """Write `state`, the whole weights of `model`, to `folder`: a `Decoder` in the Hugging Face layout."""
    words = Tokenizer.load(tokenizer) if tokenizer is not None else None
    if not isinstance(model, Decoder):
        save_tensors(state, folder)
        if words is not None:
            words.save(folder)
        return
    with torch.device("meta"):
        whole = Decoder(model.config)
    whole.load_state_dict(state, assign=True)
    save_pretrained(whole, folder, tokenizer=words)
