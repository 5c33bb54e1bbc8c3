"""Models, plans and orders for gangs that train, and the oracle they are held against."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mainspring.models.moe import Mixture, MoeDecoder
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig, MemoryEstimate, Mesh, MoeConfig, Plan, Stage, Task, TimeEstimate, TrainConfig
from mainspring.testing.gangs import CONTEXT, PATIENCE_S, PRELOAD, FileGroup
from mainspring.testing.steps import Rows
from mainspring.train.loop import StepResult, Trainer, TrainingData, lr_factor
from mainspring.train.messages import Counter, Counts
from mainspring.train.parallel import local
from mainspring.train.recipe import LoadedRecipe, Recipe, adamw

VOCAB, SEQ_LEN, GLOBAL_BATCH, LAYERS = 64, 16, 8, 4
CONFIG = TrainConfig(
    steps=5, global_batch=GLOBAL_BATCH, seq_len=SEQ_LEN, lr=1e-3, warmup_steps=2, clip_norm=0.5, checkpoint_every=0
)
FAMILIES = ("llama", "qwen2", "gpt2", "t5")
CONTEXT.set_forkserver_preload(
    [*PRELOAD, "parallel_pool", *(f"transformers.models.{family}.modeling_{family}" for family in FAMILIES)]
)


def batches() -> Rows:
    return Rows(vocab=VOCAB, global_batch=GLOBAL_BATCH, length=SEQ_LEN)


SIZES = DecoderConfig(vocab=VOCAB, hidden=32, layers=LAYERS, heads=4, kv_heads=2, ffn=64, context=32)


def decoder(vocab: int) -> nn.Module:
    return Decoder(SIZES)


def untied_qwen3(vocab: int) -> nn.Module:
    return Decoder(replace(SIZES, tied=False, qk_norm=True))


def _sizes() -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }


def llama(vocab: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_sizes()))


def qwen2(vocab: int) -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_sizes(), tie_word_embeddings=True))


def gpt2(vocab: int, dropout: float = 0.0) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 32}
    silent = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**config, **silent))


class T5(nn.Module):
    """An encoder and a decoder that both read the sequence, which no pipeline can cut."""

    def __init__(self, vocab: int) -> None:
        from transformers import T5Config, T5ForConditionalGeneration

        super().__init__()
        sizes = {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 64, "d_kv": 8}
        self.t5 = T5ForConditionalGeneration(T5Config(vocab_size=vocab, dropout_rate=0.0, **sizes))

    def forward(self, ids: Tensor) -> Tensor:
        return self.t5(input_ids=ids, decoder_input_ids=ids).logits


class Mixing(nn.Module):
    """Attention and feed-forward as somebody may write them: no name here is in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.query, self.value, self.result = (nn.Linear(32, 32) for _ in range(3))
        self.key = nn.Linear(32, 32, bias=False)  # softmax does not see a bias of keys: its gradient is but noise

    def forward(self, x: Tensor) -> Tensor:
        heads = (*x.shape[:2], self.heads, -1)
        q, k, v = (part(x).view(heads).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.result(mixed.transpose(1, 2).flatten(2))


class Widening(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.wide, self.drop, self.narrow = nn.Linear(32, 64), nn.Dropout(dropout), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.drop(torch.relu(self.wide(x))))


class Unnamed(nn.Module):
    """A user's own block."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)
        self.mix, self.widen, self.drop = Mixing(), Widening(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.mix(self.first(x)))
        return x + self.widen(self.second(x))


class Homemade(nn.Module):
    def __init__(self, vocab: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocab, 32), nn.Parameter(torch.randn(32, 32) * 0.02)
        self.tower = nn.Sequential(*(Unnamed(dropout) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(32)
        self.score = nn.Linear(32, vocab, bias=False)
        nn.init.normal_(self.words.weight, std=0.02)
        self.score.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places[: ids.shape[1]]
        return self.score(self.norm(self.tower(x)))


def moe(vocab: int) -> nn.Module:
    decoder = replace(SIZES, qk_norm=True)
    return MoeDecoder(MoeConfig(decoder=decoder, experts=4, experts_per_token=2, expert_ffn=32, balance_rate=0.01))


def lopsided_moe(vocab: int) -> nn.Module:
    """All tokens choose the same two experts: the ranks of the others are sent nothing."""
    model = MoeDecoder(MoeConfig(decoder=replace(SIZES, qk_norm=True), experts=4, experts_per_token=2, expert_ffn=32))
    for module in model.modules():
        if isinstance(module, Mixture):
            module.bias[:2] = 9.0
    return model


def moving_moe(vocab: int) -> nn.Module:
    decoder = replace(SIZES, qk_norm=True)
    return MoeDecoder(MoeConfig(decoder=decoder, experts=8, experts_per_token=2, expert_ffn=32, move_every=2))


def staying_moe(vocab: int) -> nn.Module:
    decoder = replace(SIZES, qk_norm=True)
    return MoeDecoder(MoeConfig(decoder=decoder, experts=8, experts_per_token=2, expert_ffn=32))


def tuned(vocab: int) -> nn.Module:
    """Fine-tuned: words, keys, what attention gives and most of the feed-forwards are frozen."""
    return frozen(untied_qwen3(vocab), but=("norm", "q_proj", "v_proj", "up_proj", "lm_head"))


def tuned_moe(vocab: int) -> nn.Module:
    return frozen(moving_moe(vocab), but=("norm", "q_proj", "up_proj", "embed_tokens"))


def frozen(model: nn.Module, *, but: tuple[str, ...]) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in but))
    return model


MODELS = {
    "tuned": tuned,
    "tuned moe": tuned_moe,
    "moe": moe,
    "lopsided": lopsided_moe,
    "moving": moving_moe,
    "staying": staying_moe,
    "decoder": decoder,
    "qwen3": untied_qwen3,
    "llama": llama,
    "qwen2": qwen2,
    "gpt2": gpt2,
    "t5": T5,
    "homemade": Homemade,
    "dropping": partial(gpt2, dropout=0.2),
    "inside": partial(Homemade, dropout=0.2),
}


def masked_loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Counts only targets below half of the vocabulary, so that every row weighs differently."""
    targets = batch[:, 1:].flatten()
    kept = targets < VOCAB // 2
    found = model(batch[:, :-1])
    logits = found if isinstance(found, Tensor) else found.logits
    losses = cross_entropy(logits.flatten(0, 1).float(), targets, reduction="none")
    return (losses * kept).sum(), kept.sum()


def plan_of(
    mesh: Mesh,
    *,
    microbatch: int = 1,
    counts: tuple[int, ...] | None = None,
    stages: tuple[int, ...] | None = None,
    recompute: str = "none",
    **changes: Any,
) -> Plan:
    """A plan nobody searched for: `stages` are the units of each pipeline stage."""
    counts = counts or (GLOBAL_BATCH // microbatch // mesh.replicas,) * mesh.replicas
    stages = stages or even_stages(mesh.pp)
    made, first = [], 0
    for units in stages:
        made.append(Stage(blocks=units, device="cpu", ranks=(), microbatches=counts, first=first, recompute=recompute))
        first += units
    nothing = MemoryEstimate(params_bytes=0, grads_bytes=0, optimizer_bytes=0, activations_bytes=0, logits_bytes=0)
    plan = Plan(
        model="tiny",
        cluster="here",
        mesh=mesh,
        stages=tuple(made),
        global_batch=GLOBAL_BATCH,
        microbatch=microbatch,
        seq_len=SEQ_LEN,
        precision="fp32",
        memory=nothing,
        device_memory_bytes=1 << 30,
        time=TimeEstimate(compute_s=1.0, communication_s=0.0, bubble_s=0.0, optimizer_s=0.0),
        steps=CONFIG.steps,
        watts=1.0,
        price_usd_per_hour=0.0,
        mfu=0.1,
        objective="time",
        zero=changes.pop("zero", 3 if mesh.fsdp > 1 else 0),
    )
    return replace(plan, **changes)


def even_stages(count: int) -> tuple[int, ...]:
    """The units of the decoder (embedding, layers, head) spread over `count` stages."""
    units = LAYERS + 2
    return tuple(units * (place + 1) // count - units * place // count for place in range(count))


@dataclass(frozen=True)
class Order:
    """What a gang does: train from whatever checkpoint there is; `counts` what it sends on the way."""

    plan: Plan
    folder: Path
    model: str = "decoder"
    config: TrainConfig = CONFIG
    stop_at: int = 0
    counts: bool = False


@dataclass(frozen=True)
class Sent:
    """What a rank sent in its second step (in the first, pipelines learn their shapes), and what it holds."""

    counts: Counts
    other: dict[str, int]
    held_bytes: int
    moved: frozenset[str]
    """Layers whose experts changed places."""


@dataclass
class Outcome:
    """What one rank saw."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    state: dict[str, np.ndarray] = field(default_factory=dict)
    held_out: float | None = None
    slots: dict[str, list[int]] = field(default_factory=dict)
    sent: Sent | None = None


def recipe_of(model: str, config: TrainConfig) -> LoadedRecipe:
    recipe = Recipe(model=MODELS[model], loss=masked_loss, optimizer=adamw, config=config)
    return LoadedRecipe(recipe=recipe, path=Path("recipe.py"), digest="0" * 64)


@contextlib.contextmanager
def trainer_of(task: Task, order: Order) -> Iterator[Trainer]:
    """A trainer in its group, as the worker makes one."""
    torch.set_num_threads(1)
    data = TrainingData(train=batches(), facts={"vocab": VOCAB}, held_out=batches())
    group = FileGroup(task, timeout_s=PATIENCE_S)
    trainer = Trainer(recipe_of(order.model, order.config), order.plan, group, data=data, folder=order.folder / "saved")
    try:
        yield trainer
    finally:
        trainer.close()


def train(task: Task, order: Order) -> Outcome:
    """One rank's life."""
    outcome = Outcome()
    with trainer_of(task, order) as trainer:
        trainer.restore()
        for result in _counted(trainer, outcome) if order.counts else trainer.steps():
            outcome.losses.append(result.loss)
            outcome.norms.append(result.grad_norm)
            if result.held_out_loss is not None:
                outcome.held_out = result.held_out_loss
            if result.step == order.stop_at:
                trainer.save()
                break
        outcome.slots = trainer._parallel.slots
        outcome.state = {name: tensor.numpy() for name, tensor in trainer.full_state().items()}
    return outcome


def _counted(trainer: Trainer, outcome: Outcome) -> Iterator[StepResult]:
    """The steps of `trainer`; what the second one sends is counted."""
    steps = trainer.steps()
    yield next(steps)
    before = trainer._parallel.slots
    with Counter() as counter:
        second = next(steps)
    moved = frozenset(name for name, slots in trainer._parallel.slots.items() if slots != before[name])
    held = sum(local(p).nbytes for p in trainer._parallel._state.parameters.values())
    outcome.sent = Sent(counter.counts, counter.other, held, moved)
    yield second
    yield from steps


@dataclass(frozen=True)
class Expected:
    losses: list[float]
    norms: list[float]
    state: dict[str, np.ndarray]


def plain_pytorch(model_name: str, config: TrainConfig = CONFIG) -> Expected:
    """The loop everybody writes: whole batches, one process, torch's own clipping."""
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    model, losses, norms = MODELS[model_name](VOCAB), [], []
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=(config.beta1, config.beta2))
    for step in range(config.steps):
        optimizer.zero_grad()
        total, count = masked_loss(model, torch.from_numpy(batches().batch(step, 0, GLOBAL_BATCH)))
        (total / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * lr_factor(step, config)
        optimizer.step()
        for mixture in (module for module in model.modules() if isinstance(module, Mixture)):
            mixture.balance(mixture.load)
            mixture.load.zero_()
        losses.append((total / count).item())
        norms.append(norm.item())
    names = {name for name, _ in model.named_parameters()}
    kept = {n: t.numpy() for n, t in model.state_dict().items() if n in names or n not in _parameter_names(model)}
    return Expected(losses, norms, kept)


def _parameter_names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}
