"""A batch stepped by hand: the same tokens alone, in company, after preemption and from cached blocks."""

from pathlib import Path

import pytest
import torch

from mainspring.models.tokenizer import Tokenizer
from mainspring.models.transformer import Decoder
from mainspring.models.weights import load_pretrained
from mainspring.serve.engine.batch import Batch
from mainspring.serve.engine.kv import CacheSize, size_cache
from mainspring.serve.engine.request import Sequence, StopFilter
from mainspring.serve.servable import Piece
from mainspring.spec import DoesNotFit, EngineConfig, Failed, SamplingParams

ROOMY = CacheSize(slots=16, blocks=128, context=256)
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module", params=["model_folder", "int8_folder"])
def model(request: pytest.FixtureRequest) -> Decoder:
    return load_pretrained(request.getfixturevalue(request.param)).eval()


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 250, (3 + 7 * i % 60,), generator=generator).tolist() for i in range(count)]


def run(
    batch: Batch, tokenizer: Tokenizer, asked: list[list[int]], sampling: SamplingParams | list[SamplingParams] = GREEDY
) -> list[list[int]]:
    """Generate for all prompts at once; the tokens of each."""
    params = sampling if isinstance(sampling, list) else [sampling] * len(asked)
    for key, (tokens, each) in enumerate(zip(asked, params, strict=True)):
        batch.add(sequence(key, tokens, tokenizer, each))
    found: list[list[int]] = [[] for _ in asked]
    while not batch.idle:
        for key, piece in batch.step():
            assert isinstance(piece, Piece)
            found[key] += piece.token_ids
        check(batch)
    return found


def sequence(key: int, tokens: list[int], tokenizer: Tokenizer, sampling: SamplingParams) -> Sequence:
    return Sequence(
        key=key,
        tokens=list(tokens),
        sampling=sampling,
        seed=sampling.seed or 0,
        stream=tokenizer.stream(),
        stops=StopFilter(sampling.stop),
        arrived_s=0.0,
    )


def check(batch: Batch) -> None:
    """The batch's invariants."""
    assert [each.slot for each in batch.running] == list(range(len(batch.running)))
    assert batch.pool.held == sum(each.held for each in batch.running)
    assert batch.pool.held + batch.pool.cached <= batch.pool.total


def fresh(model: Decoder, tokenizer: Tokenizer, *, size: CacheSize = ROOMY, step_tokens: int = 64) -> Batch:
    config = EngineConfig(max_sequences=size.slots, step_tokens=step_tokens, block_tokens=16)
    return Batch(model, tokenizer, config, size=size, name="test")


def test_greedy_output_is_the_same_alone_and_in_any_company(model: Decoder, tokenizer: Tokenizer) -> None:
    asked = prompts(12)
    alone = [run(fresh(model, tokenizer), tokenizer, [each])[0] for each in asked]
    assert run(fresh(model, tokenizer), tokenizer, asked) == alone
    assert run(fresh(model, tokenizer), tokenizer, asked[::-1])[::-1] == alone
    assert run(fresh(model, tokenizer, step_tokens=17), tokenizer, asked) == alone


def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_batch(model: Decoder, tokenizer: Tokenizer) -> None:
    asked = prompts(8)
    params = [
        SamplingParams(max_tokens=20, temperature=0.5 + i / 8, top_p=(1.0, 0.8)[i % 2], seed=100 + i, ignore_eos=True)
        for i in range(8)
    ]
    alone = [run(fresh(model, tokenizer), tokenizer, [p], [s])[0] for p, s in zip(asked, params, strict=True)]
    assert run(fresh(model, tokenizer), tokenizer, asked, params) == alone
    other = SamplingParams(max_tokens=20, temperature=1.0, seed=999, ignore_eos=True)
    assert run(fresh(model, tokenizer), tokenizer, asked[:1], [other])[0] != alone[0]


def test_preemption_changes_no_token_and_leaks_no_block(model: Decoder, tokenizer: Tokenizer) -> None:
    asked = prompts(8)
    expected = run(fresh(model, tokenizer), tokenizer, asked)
    tight = fresh(model, tokenizer, size=CacheSize(slots=16, blocks=9, context=128))
    before = tight.meters.preemptions._value.get()
    assert run(tight, tokenizer, asked) == expected
    assert tight.meters.preemptions._value.get() > before
    assert tight.pool.held == 0


def test_a_shared_prefix_is_computed_once(model: Decoder, tokenizer: Tokenizer) -> None:
    prefix = prompts(9)[8] * 2
    first, second = [*prefix, 7, 8], [*prefix, 9]
    expected = [run(fresh(model, tokenizer), tokenizer, [each])[0] for each in (first, second)]
    batch = fresh(model, tokenizer)
    assert run(batch, tokenizer, [first]) == expected[:1]
    hits = batch.meters.prefix_hits._value.get()
    assert run(batch, tokenizer, [second]) == expected[1:]
    assert batch.meters.prefix_hits._value.get() - hits == len(prefix) // 16 * 16
    batch.pool.forget()
    assert batch.pool.cached == 0


def test_an_aborted_sequence_returns_its_blocks_wherever_it_is(model: Decoder, tokenizer: Tokenizer) -> None:
    batch = fresh(model, tokenizer, size=CacheSize(slots=2, blocks=32, context=256))
    asked = prompts(4)
    for key, tokens in enumerate(asked):
        batch.add(sequence(key, tokens, tokenizer, GREEDY))
    batch.step()
    batch.abort(0)
    batch.abort(3)
    check(batch)
    finished: set[int] = set()
    while not batch.idle:
        finished |= {key for key, _ in batch.step()}
        check(batch)
    assert finished == {1, 2}
    assert batch.pool.held == 0


def test_a_prompt_that_breaks_the_model_fails_alone(model_folder: Path, tokenizer: Tokenizer) -> None:
    broken = load_pretrained(model_folder).eval()
    good = prompts(3)
    expected = run(fresh(broken, tokenizer), tokenizer, good)
    with torch.no_grad():
        broken.model.embed_tokens.weight[tokenizer.vocab - 1] = float("nan")
        broken.lm_head = torch.nn.Linear(broken.config.hidden, tokenizer.vocab - 1, bias=False)
        broken.lm_head.weight.copy_(broken.model.embed_tokens.weight[: tokenizer.vocab - 1])
    batch = fresh(broken, tokenizer)
    batch.add(sequence(9, [4, tokenizer.vocab - 1, 5], tokenizer, GREEDY))
    ends = [event for event in batch.step() if isinstance(event[1], Failed)]
    assert [key for key, _ in ends] == [9]
    assert run(batch, tokenizer, good) == expected


def test_the_cache_is_cut_to_memory_and_says_when_nothing_fits() -> None:
    config = EngineConfig(max_sequences=8, step_tokens=64, block_tokens=32)
    roomy = size_cache(config, context=1000, token_bytes=100, memory_bytes=10**9, lazy=True)
    assert roomy == CacheSize(slots=8, blocks=8 * 32, context=1000)
    tight = size_cache(config, context=1000, token_bytes=100, memory_bytes=400_000, lazy=True)
    assert tight == CacheSize(slots=2, blocks=31, context=992)
    eager = size_cache(config, context=1000, token_bytes=100, memory_bytes=4_000_000, lazy=False)
    assert eager.slots * eager.context * 100 + eager.blocks * 3200 <= 4_000_000 // 4
    small = EngineConfig(kv_bytes=1000)
    with pytest.raises(DoesNotFit, match="1000 bytes, one block of 32 tokens needs 3200"):
        size_cache(small, context=1000, token_bytes=100, memory_bytes=10**9, lazy=True)
