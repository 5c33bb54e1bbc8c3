"""Slab attention gives what whole-sequence attention gives, however a step mixes chunks and decodes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mainspring.models.transformer import Decoder
from mainspring.models.weights import load_pretrained
from mainspring.serve.engine.attention import Span, cut_runs
from mainspring.serve.engine.kv import CacheSize, KVCache
from mainspring.serve.engine.runner import compute


@pytest.fixture(scope="module")
def model(model_folder) -> Decoder:
    return load_pretrained(model_folder).eval()


def cache_for(model: Decoder) -> KVCache:
    size = CacheSize(slots=4, blocks=16, context=64)
    return KVCache(model.config, size, block_tokens=16, like=model.model.norm.weight)


@torch.inference_mode()
def test_chunks_and_decodes_in_one_step_equal_whole_sequences(model: Decoder) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab, (4, 30), generator=generator)
    whole = model(ids)
    cache = cache_for(model)
    done = [0, 0, 0, 0]
    steps = [{0: 10, 1: 1, 2: 7}, {0: 1, 1: 1, 2: 9, 3: 13}, {1: 1, 2: 1, 0: 5}, {0: 1, 1: 1, 2: 1, 3: 1}, {3: 2, 1: 8}]
    for step in steps:
        rows = sorted(step.items(), key=lambda each: (each[1] > 1, each[0]))
        spans = [Span(slot, done[slot], count) for slot, count in rows]
        flat = [token for slot, count in rows for token in ids[slot, done[slot] : done[slot] + count].tolist()]
        logits = compute(model, cache, spans, ids=flat, wanted=range(len(flat)))
        expected = torch.cat([whole[slot, done[slot] : done[slot] + count] for slot, count in rows])
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
        for slot, count in rows:
            done[slot] += count


@torch.inference_mode()
def test_moving_and_restoring_a_sequence_changes_no_bit(model: Decoder) -> None:
    cache = cache_for(model)
    ids = list(range(3, 36))
    compute(model, cache, [Span(0, 0, 32)], ids=ids[:32], wanted=[31])
    for block in (0, 1):
        cache.save(0, block, place=5 - block)
    expected = compute(model, cache, [Span(0, 32, 1)], ids=ids[32:], wanted=[0])
    cache.move(0, 2, tokens=32)
    cache.restore([5, 4], slot=3)
    cache.clear(0)
    for slot in (2, 3):
        assert torch.equal(compute(model, cache, [Span(slot, 32, 1)], ids=ids[32:], wanted=[0]), expected)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4000)), min_size=1, max_size=24))
def test_runs_cover_every_sequence_once_and_never_cost_more_than_the_obvious_cuts(pairs: list[tuple[int, int]]) -> None:
    slots: list[int] = []
    for gap, _ in pairs:
        slots.append((slots[-1] if slots else -1) + gap)
    lengths = [length for _, length in pairs]
    runs = cut_runs(slots, lengths)
    by_slot = dict(zip(slots, lengths, strict=True))
    assert [slot for run in runs for slot in range(run.start, run.end)] == slots
    assert all(run.length == max(by_slot[slot] for slot in range(run.start, run.end)) for run in runs)
    cost = sum(256 + (run.end - run.start) * run.length for run in runs)
    assert cost <= sum(256 + length for length in lengths)
    if slots[-1] - slots[0] + 1 == len(slots):
        assert cost <= 256 + len(slots) * max(lengths)


def test_one_long_sequence_does_not_make_its_neighbours_long() -> None:
    runs = cut_runs([0, 1, 2, 3, 4], [50, 60, 4000, 55, 65])
    assert [(run.start, run.end, run.length) for run in runs] == [(0, 2, 60), (2, 3, 4000), (3, 5, 65)]
