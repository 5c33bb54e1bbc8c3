"""How many tokens per second does the server write for 16 clients at once, against transformers one after another?

Both sides have the same weights (random, of the handbook's shape and of a larger one), the same prompts, greedy
decoding to the same length, and the same number of compute threads. Ours is the whole way a user goes: the `openai`
package over HTTP, streaming, to a server in a process of its own. Theirs is `generate` in this process, without HTTP,
in a loop over the requests and, as the best case of static batching, once over all of them as one batch.

Ceiling: decoding reads every weight once per step (4 bytes per parameter in float32, 1 in W8A8), whatever the batch;
so 16 sequences could go at most 16 times as fast as one, less the products, attention and HTTP that grow with them.

Run: python benchmarks/serve_throughput.py [--quick] [--rounds 5] [--threads 1]
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openai import AsyncOpenAI
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from mainspring.compress.quantize import quantize_folder
from mainspring.models.tokenizer import Tokenizer, train_bpe
from mainspring.models.transformer import Decoder
from mainspring.models.weights import save_pretrained
from mainspring.spec import DecoderConfig, Deployment, ServePayload, Task
from mainspring.store.parse import read_json, to_json
from measure import Findings, parse_options, publish, ratios, spread, take_turns

CLIENTS = 16
SERVE = """
import json, sys
from mainspring.serve.http import main
from mainspring.spec import Task
from mainspring.store.parse import read_json
main(read_json(sys.argv[1], Task), json.loads(sys.argv[2]))
"""
PACKAGES = ("torch", "transformers", "openai", "uvicorn")
LOOP, STATIC, OURS, OURS_INT8 = (
    "transformers generate, in a loop",
    "transformers generate, one batch of 16",
    "Mainspring, 16 clients",
    "Mainspring W8A8, 16 clients",
)
SHAPES = {
    "handbook": DecoderConfig(
        vocab=4096, hidden=256, layers=6, heads=4, kv_heads=2, ffn=704, context=512, qk_norm=True, eos_id=0
    ),
    "larger": DecoderConfig(
        vocab=4096, hidden=512, layers=12, heads=8, kv_heads=4, ffn=1536, context=512, qk_norm=True, eos_id=0
    ),
}


@dataclass(frozen=True, slots=True)
class Work:
    """What every arm of a shape does in a round: `CLIENTS` prompts of so many tokens, and answers of so many."""

    prompt_tokens: int
    answer_tokens: int
    vocab: int

    def prompts(self, number: int) -> list[list[int]]:
        """The round's own prompts: none begins like an earlier one, so no arm finds a prefix in its cache."""
        drawn = np.random.default_rng(number).integers(8, self.vocab, (CLIENTS, self.prompt_tokens))
        return drawn.tolist()


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one arm: tokens per second over all requests, seconds to each request's first token, texts."""

    tokens_per_s: float
    first_token_s: tuple[float, ...]
    texts: tuple[str, ...]


class FirstToken(BaseStreamer):
    """Notes when `generate` hands out its first new token; the prompt comes before it."""

    def __init__(self) -> None:
        self.puts_s: list[float] = []

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002 transformers' signature
        self.puts_s.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


@dataclass(frozen=True, slots=True)
class Peer:
    """transformers on the weights in `folder`."""

    model: GenerationMixin
    tokenizer: Tokenizer
    work: Work

    @classmethod
    def load(cls, folder: Path, work: Work) -> "Peer":
        """In float32, the type in which our server computes on a CPU; the end token is switched off."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = None
        return cls(model, Tokenizer.load(folder), work)

    def loop(self, number: int) -> Sample:
        """One request after another; those behind wait for those in front."""
        first_s: list[float] = []
        texts: list[str] = []
        started = time.perf_counter()
        for prompt in self.work.prompts(number):
            watch = FirstToken()
            texts += self._generate([prompt], streamer=watch)
            first_s.append(watch.puts_s[1] - started)
        return self._sample(time.perf_counter() - started, first_s, texts)

    def batch(self, number: int) -> Sample:
        """All requests as one batch: possible only when they arrive together; nobody reads before all are done."""
        started = time.perf_counter()
        texts = self._generate(self.work.prompts(number))
        elapsed = time.perf_counter() - started
        return self._sample(elapsed, [elapsed] * CLIENTS, texts)

    def _generate(self, prompts: list[list[int]], *, streamer: BaseStreamer | None = None) -> list[str]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            found = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.work.answer_tokens,
                do_sample=False,
                pad_token_id=0,
                streamer=streamer,
            )
        assert isinstance(found, torch.Tensor)
        return [self.tokenizer.decode(row) for row in found[:, ids.shape[1] :].tolist()]

    def _sample(self, elapsed_s: float, first_s: Sequence[float], texts: Sequence[str]) -> Sample:
        return Sample(CLIENTS * self.work.answer_tokens / elapsed_s, tuple(first_s), tuple(texts))


@dataclass(frozen=True, slots=True)
class Ours:
    """A served model, asked by `CLIENTS` streams of one `openai` client."""

    url: str
    name: str
    work: Work

    def __call__(self, number: int) -> Sample:
        """All requests at once, each streamed to its end."""
        return asyncio.run(self._ask_all(self.work.prompts(number)))

    async def _ask_all(self, prompts: list[list[int]]) -> Sample:
        async with AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=600) as client:
            await client.models.retrieve(self.name)
            started = time.perf_counter()
            answers = await asyncio.gather(*(self._ask(client, prompt) for prompt in prompts))
            elapsed = time.perf_counter() - started
        texts = tuple(text for text, _, _ in answers)
        first_s = tuple(first - started for _, first, _ in answers)
        return Sample(sum(tokens for _, _, tokens in answers) / elapsed, first_s, texts)

    async def _ask(self, client: AsyncOpenAI, prompt: list[int]) -> tuple[str, float, int]:
        """The text, when its first piece arrived, and how many tokens the server says it is."""
        stream = await client.completions.create(
            model=self.name,
            prompt=prompt,
            max_tokens=self.work.answer_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        text, first, tokens = "", 0.0, 0
        async for chunk in stream:
            first = first or time.perf_counter()
            text += "".join(choice.text for choice in chunk.choices)
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        assert tokens == self.work.answer_tokens, f"asked for {self.work.answer_tokens} tokens, got {tokens}"
        return text, first, tokens


@contextmanager
def served(folders: dict[str, Path], run_dir: Path, *, threads: int) -> Iterator[str]:
    """Our server as a rank of its own process, as `mainspring serve` starts it; gives its URL."""
    payload = ServePayload(models=tuple((name, str(folder)) for name, folder in folders.items()))
    task = Task(
        job_id="bench", rank=0, world=1, local_rank=0, local_world=1, run_dir=str(run_dir), master="127.0.0.1:0"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, to_json(task), to_json(payload)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    endpoint, pause = run_dir / "endpoint.json", threading.Event()
    try:
        while not endpoint.exists():
            assert process.poll() is None, f"the server ended with code {process.returncode} before it listened"
            pause.wait(0.05)
        yield read_json(endpoint.read_text("utf-8"), Deployment).url
    finally:
        process.terminate()
        process.wait()


def make_models(config: DecoderConfig, root: Path, tokenizer: Tokenizer) -> tuple[Path, Path]:
    """Folders of a model with random weights and of the same in W8A8.

    Weights are five times the usual size, so that logits differ enough for two implementations to pick alike.
    """
    full, int8 = root / "float32", root / "w8a8"
    model = Decoder(config, seed=1)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    save_pretrained(model, full, tokenizer=tokenizer)
    quantize_folder(full, int8, scheme="w8a8")
    return full, int8


def measure_shape(
    name: str, work: Work, *, root: Path, tokenizer: Tokenizer, rounds: int, threads: int
) -> dict[str, list[Sample]]:
    """Every arm on one shape; the first, discarded round warms up caches and thread pools."""
    full, int8 = make_models(SHAPES[name], root, tokenizer)
    peer = Peer.load(full, work)
    with served({"full": full, "int8": int8}, root, threads=threads) as url:
        arms: dict[str, Any] = {
            LOOP: peer.loop,
            STATIC: peer.batch,
            OURS: Ours(url, "full", work),
            OURS_INT8: Ours(url, "int8", work),
        }
        found = take_turns(arms, rounds=rounds + 1)
    return {arm: samples[1:] for arm, samples in found.items()}


def train_tokenizer(vocab: int) -> Tokenizer:
    """A tokenizer of some of the standard library's own sources."""
    sources = sorted(Path(os.__file__).parent.glob("[a-d]*.py"))
    return train_bpe((path.read_text("utf-8", errors="replace") for path in sources), vocab=vocab)


def same_text(found: dict[str, list[Sample]]) -> float:
    """The share of requests to which our server wrote what transformers wrote, to the last character."""
    pairs = [
        (mine, theirs)
        for ours, peer in zip(found[OURS], found[LOOP], strict=True)
        for mine, theirs in zip(ours.texts, peer.texts, strict=True)
    ]
    return statistics.mean(mine == theirs for mine, theirs in pairs)


def main() -> None:
    options = parse_options(__doc__, rounds=5, threads=1, prompt=64, answer=64)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    shapes = ["handbook"] if options.quick else list(SHAPES)
    rounds = 1 if options.quick else options.rounds
    answer = 24 if options.quick else options.answer
    tokenizer = train_tokenizer(SHAPES["handbook"].vocab)
    rows: list[tuple[str, ...]] = []
    numbers: dict[str, float] = {}
    samples: dict[str, Any] = {}
    for shape in shapes:
        work = Work(options.prompt, answer, tokenizer.vocab)
        with tempfile.TemporaryDirectory() as folder:
            found = measure_shape(
                shape, work, root=Path(folder), tokenizer=tokenizer, rounds=rounds, threads=options.threads
            )
        speeds = {arm: [each.tokens_per_s for each in every] for arm, every in found.items()}
        for arm, every in found.items():
            first = [statistics.median(each.first_token_s) for each in every]
            faster = spread(ratios(speeds[arm], speeds[LOOP]))
            rows.append((shape, arm, f"{spread(speeds[arm])}", f"{spread(first)}", f"{faster}"))
        numbers[f"{shape}_ratio"] = spread(ratios(speeds[OURS], speeds[LOOP])).median
        numbers[f"{shape}_int8_ratio"] = spread(ratios(speeds[OURS_INT8], speeds[LOOP])).median
        numbers[f"{shape}_over_static"] = spread(ratios(speeds[OURS], speeds[STATIC])).median
        numbers[f"{shape}_same_text"] = same_text(found)
        samples[shape] = {
            arm: [{"tokens_per_s": each.tokens_per_s, "first_token_s": each.first_token_s} for each in every]
            for arm, every in found.items()
        }
    publish(
        Findings(
            benchmark="serve_throughput",
            headline=f"{numbers['handbook_ratio']:.1f} times the tokens per second of transformers' generate in a loop",
            columns=("model", "arm", "tokens/s", "median s to first token", "times the loop"),
            rows=tuple(rows),
            numbers=numbers,
            spec={
                "clients": CLIENTS,
                "prompt_tokens": options.prompt,
                "answer_tokens": answer,
                "threads": options.threads,
                "rounds": rounds,
            },
            samples=samples,
        ),
        packages=PACKAGES,
    )


if __name__ == "__main__":
    main()
