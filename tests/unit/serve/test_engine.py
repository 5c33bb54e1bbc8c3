"""The engine against transformers, and what happens to the others when one request or the whole engine fails."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import torch

from mainspring.models.tokenizer import Tokenizer
from mainspring.serve.engine.loop import Engine, pick_threads
from mainspring.spec import DoesNotFit, EngineConfig, NotFound, SamplingParams, SpecError, Unavailable

GREEDY = SamplingParams(max_tokens=32, temperature=0.0, ignore_eos=True)
PROMPTS = ["The os.path module", "A dictionary maps", "def join(", "日本語 😀"]


@asynccontextmanager
async def running(folder: Path, config: EngineConfig | None = None) -> AsyncIterator[Engine]:
    engine = Engine.load(folder, config)
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)


async def generate(engine: Engine, tokens: list[int], sampling: SamplingParams = GREEDY) -> tuple[list[int], str]:
    found, text = [], ""
    async for piece in engine.generate(tokens, sampling):
        found += piece.token_ids
        text += piece.text
    return found, text


async def settled(engine: Engine) -> None:
    """Wait until the engine holds nothing."""
    async with asyncio.timeout(20):
        while engine._batch.pool.held or not engine._batch.idle or engine._streams:  # noqa: ASYNC110 another thread
            await asyncio.sleep(0.01)


def test_greedy_text_equals_transformers_on_the_same_weights(model_folder: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model_folder)
    asked = [tokenizer.encode(text) for text in PROMPTS]

    async def ours() -> list[tuple[list[int], str]]:
        async with running(model_folder) as engine:
            return await asyncio.gather(*(generate(engine, tokens) for tokens in asked))

    for tokens, (found, text) in zip(asked, asyncio.run(ours()), strict=True):
        expected = reference.generate(
            torch.tensor([tokens]), max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert found == expected[0, len(tokens) :].tolist()
        assert text == tokenizer.decode(found)


def test_leaving_a_stream_early_frees_its_blocks_and_disturbs_nobody(model_folder: Path, tokenizer: Tokenizer) -> None:
    async def scenario() -> None:
        async with running(model_folder) as engine:
            tokens = tokenizer.encode(PROMPTS[0])
            expected = await generate(engine, tokens)
            other = asyncio.ensure_future(generate(engine, tokens))
            endless = SamplingParams(max_tokens=None, ignore_eos=True)
            async with aclosing(engine.generate(tokenizer.encode(PROMPTS[1]), endless)) as pieces:
                await anext(pieces)
                assert engine._batch.pool.held > 0
            assert await other == expected
            await settled(engine)

    asyncio.run(scenario())


def test_a_cancelled_task_frees_its_request(model_folder: Path, tokenizer: Tokenizer) -> None:
    async def scenario() -> None:
        async with running(model_folder, EngineConfig(max_sequences=2)) as engine:
            endless = SamplingParams(max_tokens=None, ignore_eos=True)
            tasks = [asyncio.ensure_future(generate(engine, tokenizer.encode(text), endless)) for text in PROMPTS]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError | tuple) for each in results)
            await settled(engine)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("tokens", "sampling", "error", "words"),
    [
        ([], GREEDY, SpecError, "the prompt is empty"),
        ([1, 10**6], GREEDY, SpecError, "token id 1000000 is outside the vocabulary"),
        ([1, -2], GREEDY, SpecError, "token id -2 is outside"),
        ([5] * 250, GREEDY, DoesNotFit, r"is 256 tokens, but 282 were asked for \(250 in the prompt, 32"),
        ([5] * 256, SamplingParams(max_tokens=None), DoesNotFit, "256 tokens, but 257"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(
    model_folder: Path, tokens: list[int], sampling: SamplingParams, error: type[Exception], words: str
) -> None:
    async def scenario() -> None:
        async with running(model_folder) as engine:
            with pytest.raises(error, match=words):
                await generate(engine, tokens, sampling)
            assert len((await generate(engine, [5] * 224))[0]) == 32

    asyncio.run(scenario())


def test_a_full_queue_refuses_and_takes_requests_again_when_there_is_room(model_folder: Path) -> None:
    async def scenario() -> None:
        async with running(model_folder, EngineConfig(max_sequences=1, max_waiting=2)) as engine:
            endless = SamplingParams(max_tokens=None, ignore_eos=True)
            streams = [asyncio.ensure_future(generate(engine, [5, i], endless)) for i in range(8)]
            results = await asyncio.gather(*streams, return_exceptions=True)
            refused = [each for each in results if isinstance(each, Unavailable)]
            assert 5 <= len(refused) <= 6
            assert "2 requests wait" in str(refused[0])
            assert all(len(each[0]) == 254 for each in results if isinstance(each, tuple))
            assert len((await generate(engine, [5]))[0]) == 32

    asyncio.run(scenario())


def test_log_probabilities_are_those_of_transformers(model_folder: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model_folder)
    tokens = tokenizer.encode(PROMPTS[0])
    sampling = SamplingParams(max_tokens=12, temperature=0.8, seed=3, logprobs=5, ignore_eos=True)

    async def ours() -> list[tuple[int, float | None, tuple[tuple[str, float], ...]]]:
        async with running(model_folder) as engine:
            pieces = [piece async for piece in engine.generate(tokens, sampling)]
            return [(each.token_id, each.logprob, each.top) for piece in pieces for each in piece.logprobs or ()]

    found = asyncio.run(ours())
    assert len(found) == 12
    with torch.no_grad():
        exact = reference(torch.tensor([[*tokens, *(token for token, _, _ in found)]])).logits[0].log_softmax(-1)
    for row, (token, logprob, top) in enumerate(found, start=len(tokens) - 1):
        assert logprob == pytest.approx(exact[row, token].item(), abs=1e-4)
        assert [value for _, value in top] == pytest.approx(exact[row].topk(5).values.tolist(), abs=1e-4)


def test_an_answer_without_a_limit_fills_the_context(model_folder: Path) -> None:
    async def scenario() -> None:
        async with running(model_folder) as engine:
            found, _ = await generate(engine, [5] * 10, SamplingParams(max_tokens=None, ignore_eos=True))
            assert len(found) == 246

    asyncio.run(scenario())


def test_a_closed_engine_ends_its_streams_and_refuses_more(model_folder: Path) -> None:
    async def scenario() -> None:
        engine = Engine.load(model_folder)
        endless = SamplingParams(max_tokens=None, ignore_eos=True)
        open_streams = [asyncio.ensure_future(generate(engine, [5, 6], endless)) for _ in range(3)]
        await asyncio.sleep(0.02)
        await asyncio.to_thread(engine.close)
        for each in open_streams:
            with pytest.raises(Unavailable, match="was closed"):
                await each
        with pytest.raises(Unavailable, match="was closed"):
            await generate(engine, [5])

    asyncio.run(scenario())


def test_a_step_that_raises_ends_every_request_and_says_why(model_folder: Path) -> None:
    async def scenario() -> None:
        async with running(model_folder) as engine:
            await generate(engine, [5])
            engine._batch.model.lm_head = torch.nn.Linear(3, 5)
            waiting = [asyncio.ensure_future(generate(engine, [5, 6, i])) for i in range(3)]
            for each in waiting:
                with pytest.raises(Unavailable, match="failed: RuntimeError"):
                    await each
            with pytest.raises(Unavailable, match="failed: RuntimeError"):
                await generate(engine, [7])

    asyncio.run(scenario())


def test_a_loop_that_went_away_does_not_stop_the_engine(model_folder: Path) -> None:
    engine = Engine.load(model_folder)
    expected = asyncio.run(generate(engine, [5, 6]))
    loop = asyncio.new_event_loop()
    endless = SamplingParams(max_tokens=None, ignore_eos=True)
    pieces = engine.generate([9], endless)
    loop.run_until_complete(anext(pieces))
    loop.close()
    assert asyncio.run(generate(engine, [5, 6])) == expected
    asyncio.run(settled(engine))
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_until_complete(pieces.aclose())


@pytest.fixture
def broken_folder(model_folder: Path, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder)
    return folder


def test_a_folder_without_a_tokenizer_or_with_another_config_is_an_error(broken_folder: Path) -> None:
    config = json.loads((broken_folder / "config.json").read_text())
    (broken_folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    with pytest.raises(SpecError, match="lacks tensor"):
        Engine.load(broken_folder)
    (broken_folder / "tokenizer.json").unlink()
    with pytest.raises(NotFound, match="tokenizer"):
        Engine.load(broken_folder)


def test_a_step_budget_below_the_number_of_sequences_is_refused(model_folder: Path) -> None:
    with pytest.raises(SpecError, match=r"step_tokens \(4\) is below max_sequences \(8\)"):
        Engine.load(model_folder, EngineConfig(max_sequences=8, step_tokens=4))


def test_threads_are_picked_among_one_and_all(model_folder: Path) -> None:
    from mainspring.models.weights import load_pretrained

    assert pick_threads(load_pretrained(model_folder)) in (1, torch.get_num_threads())
