"""The engine: one model, one thread that steps its batch, and asyncio streams that read what it produces.

The thread owns the batch; others only append to an inbox. Pieces of one step travel to each event loop in a single
wake-up, which at 16 streams costs a tenth of one wake-up per piece. A failed step ends every request with
`Unavailable` and the engine stays down: a model that raised once on valid input cannot be trusted with the next.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Items
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from mainspring.hardware import limits
from mainspring.models.joined import join_projections
from mainspring.models.tokenizer import Tokenizer
from mainspring.models.transformer import Decoder
from mainspring.models.weights import load_pretrained, read_config
from mainspring.serve.engine.batch import Batch, Event
from mainspring.serve.engine.kv import size_cache, token_bytes
from mainspring.serve.engine.metrics import FALLEN
from mainspring.serve.engine.request import Sequence, StopFilter
from mainspring.serve.servable import Piece
from mainspring.spec import DoesNotFit, EngineConfig, MainspringError, SamplingParams, SpecError, Unavailable

log = logging.getLogger(__name__)

Outcome = Piece | MainspringError
"""What a stream reads: pieces, then possibly the reason it ended early."""


class Stream:
    """One request's way back: the reader's event loop and a queue in it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Outcome] = asyncio.Queue()


class Engine:
    """A served model. Made by `Engine.load`; `close()` ends it and every stream."""

    def __init__(self, batch: Batch, *, name: str, context: int, max_waiting: int) -> None:
        self.name, self.context, self.max_waiting = name, context, max_waiting
        self.tokenizer = batch.tokenizer
        self.vocab = batch.model.config.vocab
        self._batch = batch
        self._keys = count()
        self._streams: dict[int, Stream] = {}
        self._changed = threading.Condition()
        self._added: list[tuple[Sequence, Stream]] = []
        self._aborted: list[int] = []
        self._down = ""
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, folder: Path | str, config: EngineConfig | None = None, *, name: str = "") -> "Engine":
        """Load a model folder onto the accelerator (as bfloat16) or, where there is none, the CPU (as float32).

        Raises `SpecError` or `NotFound` for a bad folder and `DoesNotFit` for a cache of less than one block.
        """
        config = config or EngineConfig()
        if config.step_tokens < config.max_sequences:
            raise SpecError(
                f"step_tokens ({config.step_tokens}) is below max_sequences ({config.max_sequences})",
                hint="every sequence needs one token per step",
            )
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        decoder = read_config(folder)
        size = size_cache(
            config,
            context=decoder.context,
            token_bytes=token_bytes(decoder, dtype),
            memory_bytes=_memory_bytes(device),
            lazy=device.type == "cpu",
        )
        if size.context < decoder.context:
            log.warning("context cut to the KV cache", extra={"model": decoder.context, "served": size.context})
        tokenizer = Tokenizer.load(folder)
        model = load_pretrained(folder, dtype=dtype, device=device).eval()
        join_projections(model)
        name = name or Path(folder).name
        batch = Batch(model, tokenizer, config, size=size, name=name)
        return cls(batch, name=name, context=size.context, max_waiting=config.max_waiting)

    async def generate(
        self, tokens: Items[int], sampling: SamplingParams, *, score: bool = False
    ) -> AsyncGenerator[Piece, None]:
        """Stream the continuation of `tokens`; leaving the iterator early frees everything the request holds.

        Raises `SpecError` for an empty prompt or an unknown token id, `DoesNotFit` when prompt and answer exceed
        the context, `Unavailable` when the engine is down or its queue full.
        """
        sampling = self._check(tokens, sampling)
        sequence = Sequence(
            key=next(self._keys),
            tokens=list(tokens),
            sampling=sampling,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            stream=self.tokenizer.stream(),
            stops=StopFilter(sampling.stop),
            arrived_s=time.monotonic(),
            score=score,
        )
        stream = Stream()
        with self._changed:
            if self._down:
                raise Unavailable(self._down)
            waiting = len(self._added) + len(self._batch.waiting)
            if waiting >= self.max_waiting:
                raise Unavailable(f"{waiting} requests wait for {self.name} already", hint="try again later")
            self._added.append((sequence, stream))
            self._changed.notify()
        try:
            while True:
                outcome = await stream.queue.get()
                if isinstance(outcome, MainspringError):
                    raise outcome
                yield outcome
                if outcome.finish:
                    return
        finally:
            with self._changed:
                self._aborted.append(sequence.key)
                self._changed.notify()

    def close(self) -> None:
        """Stop the thread after its current step; streams still open end with `Unavailable`."""
        with self._changed:
            self._down = self._down or f"the engine of {self.name} was closed"
            self._changed.notify()
        self._thread.join()
        FALLEN.pop(id(self), None)

    def _check(self, tokens: Items[int], sampling: SamplingParams) -> SamplingParams:
        """Raise for a request that cannot be served; fill in the longest answer where none was asked for."""
        if not tokens:
            raise SpecError("the prompt is empty", hint="send at least one token")
        if min(tokens) < 0 or max(tokens) >= self.vocab:
            wrong = max(tokens) if max(tokens) >= self.vocab else min(tokens)
            raise SpecError(f"token id {wrong} is outside the vocabulary of {self.vocab}")
        answer = max(1, self.context - len(tokens)) if sampling.max_tokens is None else sampling.max_tokens
        if len(tokens) + answer > self.context:
            raise DoesNotFit(
                f"the context of {self.name} is {self.context} tokens, but {len(tokens) + answer} were asked for "
                f"({len(tokens)} in the prompt, {answer} for the answer)",
                hint="shorten the prompt or ask for fewer tokens",
            )
        return replace(sampling, max_tokens=answer)

    def _run(self) -> None:
        """The thread: take in what arrived, step, hand out, until closed."""
        try:
            if self._batch.cache.slab.device.type == "cpu":
                torch.set_num_threads(pick_threads(self._batch.model))
            while self._take():
                self._deliver(self._batch.step())
        except BaseException as error:  # the tokenizer's panics are no `Exception`, and streams must not hang
            log.exception("engine step failed", extra={"model": self.name})
            with self._changed:
                self._down = f"the engine of {self.name} failed: {type(error).__name__}: {error}"
            FALLEN[id(self)] = self._down
        for stream in (*self._streams.values(), *(stream for _, stream in self._added)):
            self._send({stream.loop: [(stream, Unavailable(self._down))]})

    def _take(self) -> bool:
        """Move the inbox into the batch, waiting until there is something to do. False when closing."""
        with self._changed:
            while not self._down:
                for sequence, stream in self._added:
                    self._streams[sequence.key] = stream
                    self._batch.add(sequence)
                self._added.clear()
                self._drop_aborted()
                if not self._batch.idle:
                    return True
                self._changed.wait()
        return False

    def _drop_aborted(self) -> None:
        for key in self._aborted:
            if self._streams.pop(key, None):
                self._batch.abort(key)
        self._aborted.clear()

    def _deliver(self, events: Items[Event]) -> None:
        """Send a step's events, one wake-up per event loop."""
        batches: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Outcome]]] = {}
        for key, outcome in events:
            stream = self._streams[key]
            if isinstance(outcome, MainspringError) or outcome.finish:
                del self._streams[key]
            batches.setdefault(stream.loop, []).append((stream, outcome))
        self._send(batches)

    def _send(self, batches: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Outcome]]]) -> None:
        for loop, found in batches.items():
            try:
                loop.call_soon_threadsafe(_fill, found)
            except RuntimeError:  # the loop was closed under its streams: nobody is left to read them
                self._aborted += [key for key, stream in self._streams.items() if stream.loop is loop]


def _fill(found: Items[tuple[Stream, Outcome]]) -> None:
    for stream, outcome in found:
        stream.queue.put_nowait(outcome)


@torch.inference_mode()
def pick_threads(model: Decoder, *, rows: int = 16) -> int:
    """How many threads to compute with: all of the process's, if they beat a single one by a quarter right now.

    The kernels of a small model last microseconds. Where other processes want the cores too, a second thread is
    descheduled in the middle of one and the first waits a time slice for it: measured 30 times slower at 5 M
    parameters on two contended cores.
    """
    most = torch.get_num_threads()
    ids = torch.zeros(1, rows, dtype=torch.long)
    seconds: dict[int, float] = {}
    for threads in (1, most):
        torch.set_num_threads(threads)
        model(ids)
        times: list[float] = []
        for _ in range(5):
            started = time.perf_counter()
            model(ids)
            times.append(time.perf_counter() - started)
        seconds[threads] = sorted(times)[-2]
    picked = most if seconds[most] * 1.25 < seconds[1] else 1
    log.info("compute threads picked", extra={"threads": picked, "seconds": seconds})
    return picked


def _memory_bytes(device: torch.device) -> int:
    """Free memory of an accelerator, or what this process may use of the host's."""
    if device.type == "cpu":
        return limits.memory_bytes()
    return torch.accelerator.get_memory_info(device)[0]
