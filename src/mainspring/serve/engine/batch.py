"""The sequences of one engine and one step of all of them: plan, compute, sample, hand out, tidy up.

No thread, no clock beyond timestamps, no I/O: `step()` is called until `idle`, by the engine's thread or by a test.
Sequences fill slots 0..n-1 of the KV cache without a gap (see `kv`).
"""

import time
from bisect import insort
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from mainspring.models.tokenizer import Tokenizer
from mainspring.models.transformer import Decoder
from mainspring.serve.engine.attention import Span
from mainspring.serve.engine.blocks import BlockPool, block_count, chain_hashes
from mainspring.serve.engine.kv import CacheSize, KVCache
from mainspring.serve.engine.metrics import Meters
from mainspring.serve.engine.request import Sequence, named
from mainspring.serve.engine.runner import compute
from mainspring.serve.engine.sample import describe, sample
from mainspring.serve.engine.schedule import Limits, Load, plan_step
from mainspring.serve.servable import Piece, TokenLogprob
from mainspring.spec import EngineConfig, Failed

Event = tuple[int, Piece | Failed]
"""A request's key and its next piece, or why it ended without one."""


class Batch:
    """Everything in flight. Invariant: `running[i].slot == i`, and the pool's held blocks are their sum."""

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, config: EngineConfig, *, size: CacheSize, name: str = ""
    ) -> None:
        self.model, self.tokenizer, self.meters = model, tokenizer, Meters(name)
        self.limits = Limits(config.step_tokens, size.slots, config.block_tokens)
        self.pool = BlockPool(size.blocks)
        self.cache = KVCache(model.config, size, block_tokens=config.block_tokens, like=model.model.norm.weight)
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence in arrival order."""
        insort(self.waiting, sequence, key=lambda each: each.key)

    def abort(self, key: int) -> None:
        """Drop a sequence wherever it is; unknown keys have ended already."""
        for sequence in self.running:
            if sequence.key == key:
                self._vacate(sequence)
                return
        self.waiting = [sequence for sequence in self.waiting if sequence.key != key]

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Advance every sequence the budget allows; return what became visible."""
        chunks = self._schedule()
        rows = sorted(chunks, key=lambda each: (each[1] > 1, each[0].slot))
        spans = [Span(sequence.slot, sequence.computed, count) for sequence, count in rows]
        ids = [token for (s, count) in rows for token in s.tokens[s.computed : s.computed + count]]
        wanted, readers = _wanted(rows)
        logits = compute(self.model, self.cache, spans, ids=ids, wanted=wanted)
        self.meters.step_tokens.observe(len(ids))
        self._score(logits, readers)
        for sequence, count in rows:
            sequence.computed += count
        ready = [row for row, (sequence, at) in enumerate(readers) if at == len(sequence.tokens) - 1]
        events = self._sample(
            logits if len(ready) == len(readers) else logits[ready], [readers[row][0] for row in ready]
        )
        for sequence in self.running:
            self._save(sequence)
        for sequence in [each for each in self.running if each.state == "DONE"]:
            self._vacate(sequence)
        self._report()
        return events

    def _schedule(self) -> list[tuple[Sequence, int]]:
        """Plan the step and apply its preemptions and admissions."""
        size = self.limits.block_tokens
        running = sorted(self.running, key=lambda each: each.key)
        heads = self.waiting[: self.limits.max_sequences - len(running)]
        places = {each.key: self._cached(each) for each in heads}
        plan = plan_step(
            [Load(each.key, len(each.tokens), each.computed, each.held) for each in running],
            [Load(each.key, len(each.tokens), len(places[each.key]) * size) for each in heads],
            free=self.pool.available,
            limits=self.limits,
        )
        known = {each.key: each for each in (*running, *heads)}
        for key in plan.preempt:
            self._vacate(known[key])
            known[key].preempt()
            self.add(known[key])
            self.meters.preemptions.inc()
        # The copies survive `hold` even where it takes their blocks back: nothing is saved before they are read.
        for key in plan.admit:
            self._admit(known[key], places[key])
        for key, _ in plan.chunks:
            sequence = known[key]
            growth = block_count(len(sequence.tokens), size) - sequence.held
            self.pool.hold(growth)
            sequence.held += growth
        return [(known[key], count) for key, count in plan.chunks]

    def _cached(self, sequence: Sequence) -> list[int]:
        """Where the store has this sequence's beginning; at least one token is left to compute."""
        if sequence.score and not sequence.generated:
            return []
        size = self.limits.block_tokens
        sequence.hashes = chain_hashes(sequence.tokens, size, sequence.hashes)
        return self.pool.find(sequence.hashes[: (len(sequence.tokens) - 1) // size])

    def _admit(self, sequence: Sequence, places: list[int]) -> None:
        self.waiting.remove(sequence)
        sequence.slot, sequence.state = len(self.running), "PREFILL"
        self.running.append(sequence)
        if places:
            self.cache.restore(places, slot=sequence.slot)
        sequence.saved = len(places)
        sequence.computed = len(places) * self.limits.block_tokens
        self.meters.prefix_queries.inc(len(sequence.tokens))
        self.meters.prefix_hits.inc(sequence.computed)
        if not sequence.generated:
            self.meters.prompt_tokens.inc(sequence.prompt_tokens)
            self.meters.queue_s.observe(time.monotonic() - sequence.arrived_s)

    def _score(self, logits: Tensor, readers: Items[tuple[Sequence, int]]) -> None:
        """Note the log-probabilities of prompt tokens for the sequences that asked."""
        asked = [
            (row, sequence, at)
            for row, (sequence, at) in enumerate(readers)
            if sequence.score and at + 1 < sequence.prompt_tokens
        ]
        if not asked:
            return
        found = describe(
            logits[[row for row, _, _ in asked]],
            [sequence.tokens[at + 1] for _, sequence, at in asked],
            tops=[sequence.sampling.logprobs or 0 for _, sequence, _ in asked],
        )
        for (_, sequence, at), sampled in zip(asked, found, strict=True):
            if at == 0:
                first = self.tokenizer.decode(sequence.tokens[:1], keep_special=True)
                sequence.scores.append(TokenLogprob(first, sequence.tokens[0], None))
            sequence.scores.append(named(sampled, self.tokenizer))

    def _sample(self, logits: Tensor, sequences: Items[Sequence]) -> list[Event]:
        """Sample for `sequences`, one row each; one that cannot go on fails alone."""
        events: list[Event] = []
        if not sequences:
            return events
        chosen = sample(logits, [sequence.choice() for sequence in sequences])
        now = time.monotonic()
        self.meters.generation_tokens.inc(len(sequences))
        for sequence, sampled in zip(sequences, chosen, strict=True):
            if sampled is None:
                self.cache.clear(sequence.slot)
                self._vacate(sequence)
                events.append((sequence.key, Failed("the model's output is not a number for this prompt")))
                continue
            piece = sequence.accept(sampled, tokenizer=self.tokenizer)
            self._observe(sequence, piece, now)
            if piece is not None:
                events.append((sequence.key, piece))
        return events

    def _observe(self, sequence: Sequence, piece: Piece | None, now: float) -> None:
        if sequence.generated == 1:
            self.meters.ttft_s.observe(now - sequence.arrived_s)
        else:
            self.meters.inter_token_s.observe(now - sequence.last_s)
        sequence.last_s = now
        if piece is not None and piece.finish:
            self.meters.e2e_s.observe(now - sequence.arrived_s)
            self.meters.finished(piece.finish)

    def _save(self, sequence: Sequence) -> None:
        """Copy newly completed blocks to the store."""
        size = self.limits.block_tokens
        full = sequence.computed // size
        if full == sequence.saved:
            return
        sequence.hashes = chain_hashes(sequence.tokens, size, sequence.hashes)
        for block in range(sequence.saved, full):
            place = self.pool.cache(sequence.hashes[block])
            if place is not None:
                self.cache.save(sequence.slot, block, place=place)
        sequence.saved = full

    def _vacate(self, sequence: Sequence) -> None:
        """Take a running sequence out; the last one moves into its slot."""
        self.pool.release(sequence.held)
        last = self.running.pop()
        if last is not sequence:
            self.cache.move(last.slot, sequence.slot, tokens=last.computed)
            last.slot = sequence.slot
            self.running[last.slot] = last
        sequence.held, sequence.slot = 0, -1

    def _report(self) -> None:
        self.meters.running.set(len(self.running))
        self.meters.waiting.set(len(self.waiting))
        self.meters.kv_usage.set(self.pool.held / self.pool.total)


def _wanted(rows: Items[tuple[Sequence, int]]) -> tuple[list[int], list[tuple[Sequence, int]]]:
    """The flat rows whose logits are read, and for each the sequence and its token position.

    The last known token of a sequence is read to sample the next; every prompt token where scores are asked for.
    """
    wanted: list[int] = []
    readers: list[tuple[Sequence, int]] = []
    row = 0
    for sequence, count in rows:
        for at in range(sequence.computed, sequence.computed + count):
            scoring = sequence.score and not sequence.generated
            if scoring or at == len(sequence.tokens) - 1:
                wanted.append(row + at - sequence.computed)
                readers.append((sequence, at))
        row += count
    return wanted, readers
