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

from mainspring.cluster import notice
from mainspring.data.loader import HELD_OUT, TRAIN, TokenLoader, read_token_set
from mainspring.hardware import limits
from mainspring.models.moe import MoeDecoder
from mainspring.models.tokenizer import Tokenizer
from mainspring.models.transformer import Decoder
from mainspring.models.weights import is_transformers, save_moe, save_pretrained, save_tensors, save_transformers
from mainspring.spec import SAVED, Plan, Task, TrainConfig, TrainPayload
from mainspring.store import Store, parse
from mainspring.train.loop import Trainer, TrainingData
from mainspring.train.metrics import FILE, Recorder
from mainspring.train.parallel import Group
from mainspring.train.profile import profile_recipe
from mainspring.train.recipe import Facts, LoadedRecipe
from mainspring.train.travel import Inputs, fetch_inputs, rank_settings, unpack_recipe

RESULT = "result.json"

log = logging.getLogger(__name__)


def main(task: Task, payload: Mapping[str, Any]) -> None:
    """Train as the `TrainPayload` says, from its newest checkpoint if it has one; rank 0 leaves `result.json`.

    Asked to make room, all ranks save after the step at hand and leave.
    """
    noticed = notice.heed()
    order = parse.read_dict(payload, TrainPayload)
    torch.set_num_threads(max(1, limits.cores() // task.local_world))
    plan = parse.read_json(order.plan_json, Plan)
    config = parse.read_json(order.config_json, TrainConfig)
    loaded = unpack_recipe(order, task)
    loaded = replace(loaded, recipe=replace(loaded.recipe, config=config))
    group = Group(task)
    inputs = fetch_inputs(order, group)
    facts = read_facts(inputs, config)
    recorder = None
    if task.rank == 0:
        model = profile_recipe(loaded.recipe, facts, name=order.output)
        recorder = Recorder(Path(task.run_dir) / FILE, plan, model, task, log_every=config.log_every)
    data = _open_data(inputs.tokens, config, facts)
    trainer = Trainer(loaded, plan, group, data=data, folder=order.checkpoints, asked=noticed.is_set)
    try:
        state = _train(trainer, recorder, Path(task.run_dir))
    except BaseException:
        # The checkpoint being written is worth keeping. The group is left as it is: the others must not hear of
        # the broken connection before the launcher has heard from this rank.
        _keep_last_checkpoint(trainer)
        raise
    trainer.close()
    if state is None:
        notice.leave()
    if recorder is not None:
        meta = _describe(plan, loaded, state, recorder)
        with Store.open(rank_settings(order, task)) as store, store.scratch() as folder:
            export(trainer.model, state, folder, tokenizer=inputs.tokenizer)
            shutil.copyfile(loaded.path, folder / "recipe.py")
            made = store.publish("model", order.output, folder, meta=meta, run=order.run_id, inputs=order.inputs)
        _write_result(Path(task.run_dir), made.ref, meta=meta, recorder=recorder)
        recorder.close()


def _keep_last_checkpoint(trainer: Trainer) -> None:
    """Wait for the one being written; should that fail too, it is the first failure that must be heard of."""
    try:
        trainer.wait()
    except Exception:  # of whatever kind, on top of one that ends this rank
        log.exception("the last checkpoint was not written")


def read_facts(inputs: Inputs, config: TrainConfig) -> Facts:
    """What a recipe's model may ask about its data."""
    words = Tokenizer.load(inputs.tokenizer)
    return {
        "vocab": read_token_set(inputs.tokens).vocab,
        "seq_len": config.seq_len,
        "eos_id": words.eos_id,
        "bos_id": words.bos_id,
    }


def _open_data(tokens: Path, config: TrainConfig, facts: Facts) -> TrainingData:
    def loader(split: str) -> TokenLoader:
        return TokenLoader(
            tokens,
            split,
            seq_len=config.seq_len,
            global_batch=config.global_batch,
            seed=config.seed,
        )

    return TrainingData(train=loader(TRAIN), facts=facts, held_out=loader(HELD_OUT) if config.eval_every else None)


def _train(trainer: Trainer, recorder: Recorder | None, run_dir: Path) -> dict[str, Tensor] | None:
    """Train and keep the record; all weights at the end, None when the ranks have to leave before that."""
    saved = 0
    if trainer.restore():
        log.info("resumed from a checkpoint", extra={"step": trainer.step})
    if recorder is not None:
        recorder.start(trainer.step)
    for result in trainer.steps():
        if recorder is not None:
            failed = len(trainer.save_errors)
            recorder.record(result, final_step=trainer.config.steps, failed_saves=failed)
            if trainer.saved_step != saved:
                saved = trainer.saved_step
                (run_dir / SAVED).write_text(f"step {saved}\n", "utf-8")
    if trainer.step == trainer.config.steps:
        return trainer.full_state()
    if recorder is not None:
        (run_dir / SAVED).write_text(f"step {trainer.saved_step}\n", "utf-8")
    return None


def _describe(plan: Plan, loaded: LoadedRecipe, state: Mapping[str, Tensor], recorder: Recorder) -> dict[str, Any]:
    """What a model's artifact says of how it was made."""
    config = loaded.recipe.config
    return {
        "recipe_sha256": loaded.digest,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "steps": config.steps,
        "tokens": config.steps * plan.global_batch * plan.seq_len,
        "final_loss": (recorder.rows.last or {}).get("loss"),
        "plan": plan.mesh.label,
    }


def _write_result(run_dir: Path, ref: str, *, meta: Mapping[str, Any], recorder: Recorder) -> None:
    """Say in `result.json` what was published, and what it took."""
    last = recorder.rows.last or {}
    measured = {name: last.get(name) for name in ("seconds", "joules", "held_out_loss", "failed_saves")}
    partial = run_dir / f".{RESULT}"
    partial.write_text(json.dumps({"ref": ref, **meta, **measured}), "utf-8")
    partial.replace(run_dir / RESULT)


def export(model: nn.Module, state: Mapping[str, Tensor], folder: Path, *, tokenizer: Path) -> None:
    """Write `state`, the whole weights of `model`, to `folder`, in the Hugging Face layout if it has one."""
    words = Tokenizer.load(tokenizer)
    if isinstance(model, MoeDecoder):
        save_moe(model.moe, state, folder)
        words.save(folder)
        return
    if not isinstance(model, Decoder):
        save_transformers(model, state, folder) if is_transformers(model) else save_tensors(state, folder)
        words.save(folder)
        return
    with torch.device("meta"):
        whole = Decoder(model.config)
    whole.load_state_dict(state, assign=True)
    save_pretrained(whole, folder, tokenizer=words)
