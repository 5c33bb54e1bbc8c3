"""How much slower is training through Mainspring than the loop a person would write by hand?

Ours is what a rank of a training job runs: the plan-driven `Trainer`, the sharded data loader, and the live record of
loss, speed and energy with a line for every step. Theirs is plain PyTorch on the same model, samples, optimiser,
schedule, clipping and precision, reading the loss each step as everybody does. Both live in this process with the
same number of threads and take turns of a few steps. Checkpoints are left out on both sides.

Ceiling: the same FLOPs on both sides, so a ratio of 1; what is missing from it is bookkeeping per step.

Run: python benchmarks/train_overhead.py [--quick] [--rounds 12] [--steps 4] [--threads 1]
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mainspring.data.loader import TokenLoader
from mainspring.hardware.topology import local_cluster
from mainspring.models.transformer import Decoder
from mainspring.plan.search import plan_training
from mainspring.spec import DecoderConfig, Plan, Task, TokenSet, TokenSplit, TrainConfig
from mainspring.store.parse import to_json
from mainspring.train.loop import Trainer, TrainingData
from mainspring.train.metrics import FILE, Recorder
from mainspring.train.parallel import Group
from mainspring.train.profile import profile_recipe
from mainspring.train.recipe import LoadedRecipe, Recipe
from measure import Findings, parse_options, publish, ratios, spread, take_turns

VOCAB, TOKENS = 4096, 1_000_000
PLAIN, OURS = "plain PyTorch", "Mainspring"


@dataclass(frozen=True, slots=True)
class Case:
    """A model and a configuration; `name` is how the table calls it, `key` how the numbers do."""

    key: str
    name: str
    model: DecoderConfig
    config: TrainConfig

    def build(self) -> Decoder:
        """The model, the same each time."""
        return Decoder(self.model, seed=self.config.seed)


HANDBOOK = DecoderConfig(vocab=VOCAB, hidden=256, layers=6, heads=4, kv_heads=2, ffn=704, context=512, qk_norm=True)
SMALL = DecoderConfig(vocab=VOCAB, hidden=128, layers=4, heads=4, kv_heads=2, ffn=352, context=512)


def configure(*, rows: int, microbatch: int, seq_len: int, bf16: bool) -> TrainConfig:
    """The handbook's optimiser and schedule, which never ends here."""
    return TrainConfig(
        steps=100_000,
        global_batch=rows,
        microbatch=microbatch,
        seq_len=seq_len,
        lr=3e-3,
        warmup_steps=30,
        min_lr_ratio=0.05,
        precision="bf16" if bf16 else "fp32",
        checkpoint_every=0,
    )


# The last one has steps of 25 ms, so that what a step costs beside its products would show most.
CASES = (
    Case("bf16", "handbook, bf16", HANDBOOK, configure(rows=8, microbatch=8, seq_len=256, bf16=True)),
    Case("fp32", "handbook, fp32", HANDBOOK, configure(rows=8, microbatch=8, seq_len=256, bf16=False)),
    Case("split", "handbook, bf16, 4 micro-batches", HANDBOOK, configure(rows=8, microbatch=2, seq_len=256, bf16=True)),
    Case("short", "1 M parameters, fp32, 256 tokens", SMALL, configure(rows=4, microbatch=4, seq_len=64, bf16=False)),
)


def write_tokens(folder: Path) -> Path:
    """A packed dataset of uniformly random tokens: what they say does not change how long a step takes."""
    split = TokenSplit(name="train", file="train.bin", tokens=TOKENS, documents=1)
    made = TokenSet(splits=(split,), vocab=VOCAB, dtype="uint16", tokenizer="", snapshot="")
    np.random.default_rng(0).integers(0, VOCAB, TOKENS, np.uint16).tofile(folder / split.file)
    (folder / "tokens.json").write_text(to_json(made), encoding="utf-8")
    return folder


def open_loader(tokens: Path, config: TrainConfig) -> TokenLoader:
    """The training split, in the order this configuration reads it."""
    return TokenLoader(tokens, "train", seq_len=config.seq_len, global_batch=config.global_batch, seed=config.seed)


def run_ours(case: Case, tokens: Path, scratch: Path, *, stack: ExitStack) -> Iterator[float]:
    """The losses of Mainspring's steps, each computed when asked for; `stack` closes what it opened."""
    recipe = Recipe(model=case.build, config=case.config)
    loaded = LoadedRecipe(recipe=recipe, path=Path(__file__), digest="0" * 64)
    model = profile_recipe(recipe, {}, name="model")
    plan = one_rank(plan_training(model, local_cluster(), case.config, ranks=1), case)
    task = Task(
        job_id="bench",
        rank=0,
        world=1,
        local_rank=0,
        local_world=1,
        run_dir=str(scratch),
        master="127.0.0.1:0",
    )
    recorder = Recorder(scratch / FILE, plan, model, task, log_every=1)
    stack.callback(recorder.close)
    data = TrainingData(train=open_loader(tokens, case.config), facts={})
    trainer = Trainer(loaded, plan, Group(task), data=data, folder=scratch / "checkpoints")
    stack.callback(trainer.close)
    recorder.start(0)
    for result in trainer.steps():
        recorder.record(result, final_step=case.config.steps, failed_saves=0)
        yield result.loss


def one_rank(plan: Plan, case: Case) -> Plan:
    """The plan, once it is certain that it computes the same products as the loop beside it."""
    assert plan.microbatch == case.config.microbatch, f"planned micro-batches of {plan.microbatch}"
    assert plan.recompute == "none", f"planned recomputation: {plan.recompute}"
    return plan


def run_plain(case: Case, tokens: Path, *, steps: int) -> Iterator[float]:
    """The same in plain PyTorch, as one would write it; which samples come when is worked out beforehand."""
    config, model = case.config, case.build()
    optimizer = plain_adamw(model, config)
    stored = np.memmap(tokens / "train.bin", np.uint16, "r")
    loader = open_loader(tokens, config)
    starts = np.stack([loader.sample_ids(step) for step in range(steps)]) * config.seq_len
    window = np.arange(config.seq_len + 1)
    accumulate = config.global_batch // config.microbatch
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * plain_schedule(step, config)
        optimizer.zero_grad(set_to_none=True)
        rows = torch.from_numpy(stored[starts[step][:, None] + window].astype(np.int64))
        total = 0.0
        for batch in rows.split(config.microbatch):
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                logits = model(batch[:, :-1])
                loss = cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
            (loss / accumulate).backward()
            total += loss.item() / accumulate
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        yield total


def plain_adamw(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW in its fastest form, vectors without decay."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def plain_schedule(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step + 1 - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, slots=True)
class Turn:
    """A few steps of one arm: tokens per second by the clock and by processor time, and the last loss."""

    tokens_per_s: float
    tokens_per_cpu_s: float
    loss: float


def taking_turns(losses: Iterator[float], *, steps: int, step_tokens: int) -> Callable[[int], Turn]:
    """An arm that advances `losses` by `steps` each time it is called."""

    def advance(number: int) -> Turn:  # noqa: ARG001 each turn is like any other
        wall, cpu = time.perf_counter(), time.process_time()
        loss = [next(losses) for _ in range(steps)][-1]
        tokens = steps * step_tokens
        return Turn(tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu), loss)

    return advance


def measure_case(case: Case, *, rounds: int, steps: int) -> dict[str, list[Turn]]:
    """Both arms in turn; the first, discarded round lets the optimisers and allocators settle."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        tokens = write_tokens(Path(folder))
        runs = {
            PLAIN: run_plain(case, tokens, steps=steps * (rounds + 1)),
            OURS: run_ours(case, tokens, Path(folder), stack=stack),
        }
        step_tokens = case.config.global_batch * case.config.seq_len
        arms = {name: taking_turns(run, steps=steps, step_tokens=step_tokens) for name, run in runs.items()}
        found = take_turns(arms, rounds=rounds + 1)
    return {name: turns[1:] for name, turns in found.items()}


def main() -> None:
    options = parse_options(__doc__, rounds=12, steps=4, threads=1)
    torch.set_num_threads(options.threads)
    rounds = 5 if options.quick else options.rounds
    rows: list[tuple[str, ...]] = []
    numbers: dict[str, float] = {}
    samples: dict[str, object] = {}
    for case in CASES[-1:] if options.quick else CASES:
        found = measure_case(case, rounds=rounds, steps=options.steps)
        clock = {arm: [turn.tokens_per_s for turn in turns] for arm, turns in found.items()}
        processor = {arm: [turn.tokens_per_cpu_s for turn in turns] for arm, turns in found.items()}
        slower = spread([100 * (each - 1) for each in ratios(clock[PLAIN], clock[OURS])])
        costlier = spread([100 * (each - 1) for each in ratios(processor[PLAIN], processor[OURS])])
        apart = max(abs(a.loss - b.loss) for a, b in zip(found[PLAIN], found[OURS], strict=True))
        rows.append(
            (
                case.name,
                f"{spread(clock[PLAIN]).median:,.0f}",
                f"{spread(clock[OURS]).median:,.0f}",
                f"{slower.median:+.1f} % ({slower.low:+.1f} to {slower.high:+.1f})",
                f"{costlier.median:+.1f} % ({costlier.low:+.1f} to {costlier.high:+.1f})",
                f"{apart:.1g}",
            )
        )
        numbers |= {
            f"{case.key}_overhead_percent": slower.median,
            f"{case.key}_cpu_overhead_percent": costlier.median,
            f"{case.key}_loss_difference": apart,
        }
        samples[case.name] = {"tokens_per_s": clock, "tokens_per_cpu_s": processor}
    overhead = next(iter(numbers.values()))
    publish(
        Findings(
            benchmark="train_overhead",
            headline=f"{overhead:+.1f} % time per step against the same loop in plain PyTorch",
            columns=(
                "case",
                f"{PLAIN}, tokens/s",
                f"{OURS}, tokens/s",
                "overhead (quartiles)",
                "in processor time",
                "losses differ by",
            ),
            rows=tuple(rows),
            numbers=numbers,
            spec={"threads": options.threads, "rounds": rounds, "steps_per_turn": options.steps},
            samples=samples,
        ),
        packages=("torch", "numpy"),
    )


if __name__ == "__main__":
    main()
