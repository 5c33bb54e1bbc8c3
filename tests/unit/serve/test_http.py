"""The server as the `openai` package sees it: a real uvicorn, a real tiny model, a real tokenizer."""

import asyncio
import json
import math
import struct
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from mainspring.models.embedder import Vectors, fit_lsa
from mainspring.models.tokenizer import Tokenizer
from mainspring.serve.http import create_app, listen
from mainspring.serve.models import EmbedderServable, EngineServable, Models, embed_with
from mainspring.serve.servable import Embeddable, Embeddings, Piece, Prompt, Servable
from mainspring.spec import Denied, EngineConfig, Failed, SamplingParams, SpecError, Unavailable

PROMPTS = ["a dictionary maps keys", "def join(a, *p):", "os.path splits them", "naïve café 日本語 😀"]


class Assistant(Servable):
    """An application behind a model name: cites, and fails in the ways applications do."""

    name, created_s, context = "assistant", 0.0, 1000

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncIterator[Piece]:
        assert prompt.messages is not None
        question = prompt.messages[-1][1]
        if question == "broken from the start":
            raise KeyError(question)
        yield Piece("Use join", token_ids=(1, 2), prompt_tokens=3)
        if question == "broken in the middle":
            raise Failed("the index went away")
        yield Piece(" [1]", token_ids=(3,), prompt_tokens=3, finish="stop", metadata={"citations": [{"marker": 1}]})

    async def embed(self, inputs: Sequence[Embeddable]) -> Embeddings:
        raise SpecError(f"no vectors for {len(inputs)} texts")

    def close(self) -> None: ...


class Letters:
    """An embedder with a tokenizer small enough to check by eye: letters a, b, c are 0, 1, 2 and the dimensions."""

    name, dim, nested = "letters", 3, False

    def encode(self, texts: Sequence[str]) -> Vectors:
        return np.array([[letter in text for letter in "abc"] for text in texts], dtype=np.float32)

    def count(self, texts: Sequence[str]) -> int:
        return sum(map(len, texts))

    def decode(self, ids: Sequence[int]) -> str:
        if max(ids) > 2:
            raise SpecError(f"token id {max(ids)} is outside the vocabulary of 3")
        return "".join("abc"[token] for token in ids)

    def save(self, folder: Path | str) -> None: ...


class Spelled(Assistant):
    name = "spelled"

    async def embed(self, inputs: Sequence[Embeddable]) -> Embeddings:
        return embed_with(Letters(), inputs)


def refuse_to_load() -> Servable:
    raise SpecError("tensor x is missing")


@pytest.fixture(scope="module")
def models(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    lsa = tmp_path_factory.mktemp("lsa")
    fit_lsa([*PROMPTS, "a list keeps items", "os.path"], dim=3).save(lsa)
    config = EngineConfig(max_sequences=16)
    loaded = Models(
        {
            "tiny": lambda: EngineServable("tiny", model_folder, config),
            "vectors": lambda: EmbedderServable("vectors", lsa),
            "assistant": Assistant,
            "spelled": Spelled,
            "damaged": refuse_to_load,
        }
    )
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def url(models: Models) -> Iterator[str]:
    with listen(create_app(models)) as found:
        yield found


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


async def idle(models: Models) -> None:
    """Wait until the engine holds nothing."""
    engine: Any = models.get("tiny")
    batch = engine.engine._batch
    async with asyncio.timeout(20):
        while batch.pool.held or not batch.idle:  # noqa: ASYNC110 another thread
            await asyncio.sleep(0.01)


def test_models_are_listed_and_described(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "vectors", "assistant", "spelled", "damaged"]
    assert client.models.retrieve("tiny").model_dump()["max_model_len"] == 256


def test_streamed_and_whole_completions_agree(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "The os.path", "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    prompt_tokens = len(tokenizer.encode_prompt("The os.path"))
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (prompt_tokens, 20)
    assert whole.usage.total_tokens == prompt_tokens + 20


def test_a_chat_streams_its_role_first_and_its_usage_last(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "How to "}, {"type": "text", "text": "join?"}]},
    ]
    asked: dict[str, Any] = {"model": "tiny", "messages": messages, "max_completion_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    first, *middle, last = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in middle) == whole.choices[0].message.content
    assert middle[-1].choices[0].finish_reason == "length"
    assert (last.choices, last.usage) == ([], whole.usage)
    assert whole.usage is not None
    turns = (("system", "Be brief."), ("user", "How to join?"))
    assert whole.usage.prompt_tokens == len(tokenizer.chat_ids(turns))


def test_sixteen_at_once_give_what_each_gives_alone(url: str, client: openai.OpenAI) -> None:
    def asked(i: int) -> dict[str, Any]:
        greedy = {"temperature": 0} if i % 2 else {"temperature": 0.9, "top_p": 0.9, "seed": i}
        return {"model": "tiny", "prompt": PROMPTS[i % 4][: 3 + i], "max_tokens": 8 + i, **greedy}

    alone = [client.completions.create(**asked(i)).choices[0].text for i in range(16)]

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as many:

            async def one(i: int) -> str:
                if i % 3:
                    return (await many.completions.create(**asked(i))).choices[0].text
                stream = await many.completions.create(**asked(i), stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(i) for i in range(16)))

    assert asyncio.run(together()) == alone


def test_a_stop_string_ends_the_text_before_itself(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "def join(", "max_tokens": 30, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[7:10]
    expected = whole[: whole.index(stop)]
    for form in (stop, [stop, "never"]):
        found = client.completions.create(**asked, stop=form).choices[0]
        assert (found.text, found.finish_reason) == (expected, "stop")
    chunks = list(client.completions.create(**asked, stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected


def test_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["a list", "a set"], "n": 2, "seed": 11, "max_tokens": 10}
    first, second = client.completions.create(**asked), client.completions.create(**asked)
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in first.choices] == [choice.text for choice in second.choices]
    assert len({choice.text for choice in first.choices}) == 4
    single = client.completions.create(model="tiny", prompt="a set", seed=11, max_tokens=10)
    assert single.choices[0].text == first.choices[2].text
    assert first.usage is not None
    assert single.usage is not None
    assert first.usage.completion_tokens == 40
    alone = client.completions.create(model="tiny", prompt="a list", max_tokens=1)
    assert alone.usage is not None
    assert first.usage.prompt_tokens == alone.usage.prompt_tokens + single.usage.prompt_tokens


def test_prompts_may_be_token_ids(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_prompt("a list")
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    expected = client.completions.create(prompt="a list", **asked).choices[0].text
    assert client.completions.create(prompt=ids, **asked).choices[0].text == expected
    both = client.completions.create(prompt=[ids, ids], **asked)
    assert [choice.text for choice in both.choices] == [expected] * 2


def test_an_echo_scores_the_prompt_as_generation_would(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "logprobs": 3}
    grown = client.completions.create(prompt="a list keeps", max_tokens=6, **asked).choices[0]
    assert grown.logprobs is not None
    ids = [*tokenizer.encode_prompt("a list keeps")]
    echoed = client.completions.create(prompt="a list keeps", max_tokens=6, echo=True, **asked).choices[0]
    scored = client.completions.create(prompt="a list keeps", max_tokens=0, echo=True, **asked)
    assert echoed.text == "a list keeps" + grown.text
    assert echoed.logprobs is not None
    assert scored.choices[0].logprobs is not None
    assert echoed.logprobs.tokens == [*(scored.choices[0].logprobs.tokens or []), *(grown.logprobs.tokens or [])]
    assert echoed.logprobs.token_logprobs[: len(ids)] == scored.choices[0].logprobs.token_logprobs  # pyright: ignore[reportOptionalSubscript]
    assert echoed.logprobs.token_logprobs[len(ids) :] == pytest.approx(grown.logprobs.token_logprobs, abs=1e-4)  # pyright: ignore[reportOptionalSubscript]
    assert echoed.logprobs.token_logprobs[0] is None  # pyright: ignore[reportOptionalSubscript]
    assert (scored.choices[0].text, scored.usage and scored.usage.completion_tokens) == ("a list keeps", 0)
    offsets, tokens = echoed.logprobs.text_offset or [], echoed.logprobs.tokens or []
    assert offsets == [sum(map(len, tokens[:i])) for i in range(len(tokens))]


def test_log_probabilities_of_alternatives_sum_to_at_most_one(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=5,
        temperature=0,
        logprobs=True,
        top_logprobs=20,
    )
    assert found.choices[0].logprobs is not None
    content = found.choices[0].logprobs.content or []
    assert len(content) == 5
    for token in content:
        assert token.top_logprobs[0].logprob == token.logprob
        assert 0 < math.fsum(math.exp(top.logprob) for top in token.top_logprobs) <= 1


def test_embeddings_come_as_floats_and_as_base64(client: openai.OpenAI, url: str) -> None:
    found = client.embeddings.create(model="vectors", input=["a list keeps items", "os.path"], encoding_format="float")
    assert [each.index for each in found.data] == [0, 1]
    assert math.hypot(*found.data[0].embedding) == pytest.approx(1.0, abs=1e-5)
    body = {"model": "vectors", "input": "os.path", "encoding_format": "base64"}
    raw = httpx.post(f"{url}/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert struct.unpack("<3f", b64decode(raw)) == pytest.approx(found.data[1].embedding, abs=1e-6)
    assert client.embeddings.create(model="vectors", input="os.path").data[0].embedding == pytest.approx(
        found.data[1].embedding, abs=1e-6
    )


def test_embedding_usage_counts_the_embedders_tokens(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="vectors", input=["os.path, os.path!", "a list"])
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (6, 6)


def test_fewer_dimensions_are_the_leading_ones_at_length_one(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "vectors", "input": ["a list keeps items", "zzz"]}
    whole, cut = client.embeddings.create(**asked), client.embeddings.create(**asked, dimensions=2)
    length = math.hypot(*whole.data[0].embedding[:2])
    assert cut.data[0].embedding == pytest.approx([each / length for each in whole.data[0].embedding[:2]], abs=1e-6)
    assert cut.data[1].embedding == [0, 0]


def test_token_ids_reach_the_embedder_in_every_form_the_api_has(client: openai.OpenAI) -> None:
    def embedded(given: Any) -> list[list[float]]:
        return [each.embedding for each in client.embeddings.create(model="spelled", input=given).data]

    assert embedded([1, 2]) == embedded("bc") == [[0.0, 1.0, 1.0]]
    assert embedded([[0], [1, 2]]) == embedded(["a", "bc"])
    assert client.embeddings.create(model="spelled", input=[[0], [1, 2]]).usage.total_tokens == 3
    with pytest.raises(openai.BadRequestError, match="token id 9 is outside") as caught:
        embedded([9])
    assert caught.value.param == "input"


def test_what_an_application_adds_reaches_the_client(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "join?"}]
    whole = client.chat.completions.create(model="assistant", messages=messages)
    assert whole.choices[0].message.content == "Use join [1]"
    assert whole.choices[0].model_dump()["mainspring"] == {"citations": [{"marker": 1}]}
    chunks = list(client.chat.completions.create(model="assistant", messages=messages, stream=True))
    assert chunks[-1].choices[0].model_dump()["mainspring"] == {"citations": [{"marker": 1}]}


BAD: list[tuple[str, dict[str, Any], int, str | None, str | None, str]] = [
    ("completions", {"model": "tin"}, 404, "model", "model_not_found", "served: tiny"),
    ("completions", {"prompt": "a" * 2000}, 400, None, "context_length_exceeded", "256 tokens, but 2016 were"),
    ("completions", {"prompt": []}, 400, "prompt", None, "empty"),
    ("completions", {"prompt": ""}, 400, None, None, "the prompt is empty"),
    ("completions", {"prompt": ["x"] * 100, "n": 100}, 400, "prompt", None, "100 prompts times n = 100 is above 2048"),
    ("completions", {"prompt": {"text": "x"}}, 400, "prompt", "invalid_type", "must be a string, a list"),
    ("completions", {"prompt": [1, "x"]}, 400, "prompt", "invalid_type", "must be a string"),
    ("completions", {"prompt": [99999]}, 400, None, None, "token id 99999 is outside"),
    ("completions", {"max_tokens": "ten"}, 400, "max_tokens", "invalid_value", "integer"),
    ("completions", {"max_tokens": -1}, 400, "max_tokens", "invalid_value", "greater than or equal to 0"),
    ("completions", {"temperature": 2.5}, 400, "temperature", "invalid_value", "less than or equal to 2"),
    ("completions", {"top_p": 0}, 400, "top_p", "invalid_value", "greater than 0"),
    ("completions", {"n": 0}, 400, "n", "invalid_value", "greater than or equal to 1"),
    ("completions", {"stop": [1]}, 400, "stop", "invalid_type", "stop must be a string or a list"),
    ("completions", {"stream": "yes"}, 400, "stream", "invalid_value", "boolean"),
    ("completions", {"suffix": "end"}, 400, "suffix", "unsupported_parameter", "suffix is not supported"),
    ("completions", {"logit_bias": {"5": 1}}, 400, "logit_bias", "unsupported_parameter", "not supported"),
    ("completions", {"frequency_penalty": 0.5}, 400, "frequency_penalty", "unsupported_parameter", "not supported"),
    ("completions", {"best_of": 3}, 400, "best_of", "unsupported_parameter", "not supported"),
    ("completions", {"temprature": 1}, 400, "temprature", "unknown_parameter", "did you mean temperature?"),
    ("chat/completions", {"messages": []}, 400, "messages", "invalid_value", "at least 1 item"),
    ("chat/completions", {"messages": [{"role": "boss", "content": "x"}]}, 400, "messages.0.role", None, "'user'"),
    ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, 400, "messages.0.content", None, "parts of"),
    ("chat/completions", {"messages": [{"role": "user"}]}, 400, "messages.0.content", None, "you must provide"),
    ("chat/completions", {"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter", "not supported"),
    ("chat/completions", {"response_format": {"type": "json_object"}}, 400, "response_format", None, "not supported"),
    ("chat/completions", {"top_logprobs": 2}, 400, "top_logprobs", None, "needs logprobs"),
    ("chat/completions", {"max_tokens": 0}, 400, "max_tokens", "invalid_value", "greater than or equal to 1"),
    ("embeddings", {"model": "tiny"}, 400, "model", None, "makes no embeddings"),
    ("embeddings", {"input": [[1, 2]]}, 400, "input", None, "has no token ids, got 2"),
    ("embeddings", {"input": [7]}, 400, "input", None, "has no token ids, got 1"),
    ("embeddings", {"input": []}, 400, "input", None, "0 entries, expected 1 to 2048"),
    ("embeddings", {"input": ["x"] * 2049}, 400, "input", None, "2049 entries"),
    ("embeddings", {"input": ["x", ""]}, 400, "input", None, "empty string"),
    ("embeddings", {"input": [[]]}, 400, "input", "invalid_type", "lists of token ids"),
    ("embeddings", {"input": [-1]}, 400, "input", "invalid_type", "lists of token ids"),
    ("embeddings", {"input": [1, "x"]}, 400, "input", "invalid_type", "lists of token ids"),
    ("embeddings", {"dimensions": 7}, 400, "dimensions", None, "3 dimensions or fewer, not 7"),
    ("embeddings", {"dimensions": 0}, 400, "dimensions", "invalid_value", "greater than or equal to 1"),
    ("embeddings", {"model": "spelled", "dimensions": 2}, 400, "dimensions", None, "3 dimensions, not 2"),
    ("embeddings", {"encoding_format": "hex"}, 400, "encoding_format", "invalid_value", "'float' or 'base64'"),
    ("chat/completions", {"model": "vectors"}, 400, None, None, "generates no text"),
    ("chat/completions", {"model": "damaged"}, 503, None, "unavailable", "cannot be loaded: tensor x is missing"),
]
GOOD: dict[str, dict[str, Any]] = {
    "completions": {"model": "tiny", "prompt": "x"},
    "chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "x"}]},
    "embeddings": {"model": "vectors", "input": "x"},
}


@pytest.mark.parametrize(("path", "change", "status", "param", "code", "words"), BAD)
def test_a_bad_request_gets_a_status_and_names_what_is_wrong(
    url: str, path: str, change: dict[str, Any], status: int, param: str | None, code: str | None, words: str
) -> None:
    response = httpx.post(f"{url}/v1/{path}", json=GOOD[path] | change)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.status_code == status
    assert words in error["message"]
    assert param is None or error["param"] == param
    assert code is None or error["code"] == code
    assert ("retry-after" in response.headers) == (status == 503)


def test_fields_that_ask_for_nothing_are_ignored(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi", "name": "ann"}],
        max_tokens=2,
        user="ann",
        metadata={"a": "b"},
        frequency_penalty=0,
        response_format={"type": "text"},
        tools=[],
        stop=None,
        logit_bias=None,
    )
    assert found.usage is not None
    assert found.usage.completion_tokens <= 2


def test_broken_json_an_unknown_path_and_a_huge_body_are_explained(url: str) -> None:
    broken = httpx.post(f"{url}/v1/completions", content=b'{"model": ')
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
    missing = httpx.get(f"{url}/v1/nothing")
    assert (missing.status_code, "/v1/nothing" in missing.json()["error"]["message"]) == (404, True)
    wrong_verb = httpx.get(f"{url}/v1/completions")
    assert (wrong_verb.status_code, wrong_verb.json()["error"]["type"]) == (405, "invalid_request_error")
    huge = httpx.post(f"{url}/v1/completions", content=b" " * (17 * 1024**2))
    assert (huge.status_code, huge.json()["error"]["code"]) == (413, "request_too_large")


def test_errors_of_an_application_become_a_status_or_an_event(client: openai.OpenAI, url: str) -> None:
    def ask(question: str, *, stream: bool) -> Any:
        messages: Any = [{"role": "user", "content": question}]
        return client.chat.completions.create(model="assistant", messages=messages, stream=stream)

    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="internal error"):
            ask("broken from the start", stream=stream)
    with pytest.raises(openai.InternalServerError, match="the index went away"):
        ask("broken in the middle", stream=False)
    texts: list[str] = []
    with pytest.raises(openai.APIError, match="the index went away"):
        texts += [chunk.choices[0].delta.content for chunk in ask("broken in the middle", stream=True)]
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks(url: str, models: Models, *, stream: bool) -> None:
    async def scenario() -> None:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 200, "n": 16, "stream": stream, "ignore_eos": True}
        engine: Any = models.get("tiny")
        sampled = engine.engine._batch.meters.generation_tokens._value
        before = sampled.get()
        async with httpx.AsyncClient() as client, asyncio.TaskGroup() as tasks:
            sent = tasks.create_task(read_a_little(client, f"{url}/v1/completions", body))
            async with asyncio.timeout(20):
                while not engine.engine._batch.pool.held:  # noqa: ASYNC110 another thread
                    await asyncio.sleep(0)
            sent.cancel()
        await idle(models)
        assert sampled.get() - before < 16 * 200

    asyncio.run(scenario())


async def read_a_little(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> None:
    async with client.stream("POST", url, json=body, timeout=60) as response:
        async for _ in response.aiter_lines():
            await asyncio.sleep(1)


def test_metrics_use_the_names_that_dashboards_know(url: str, client: openai.OpenAI) -> None:
    client.completions.create(model="tiny", prompt="x", max_tokens=3)
    text = httpx.get(f"{url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
    assert float(values['vllm:generation_tokens_total{model_name="tiny"}']) >= 3
    assert float(values['vllm:time_to_first_token_seconds_count{model_name="tiny"}']) >= 1
    assert float(values['vllm:num_requests_running{model_name="tiny"}']) == 0
    assert 0 <= float(values['vllm:kv_cache_usage_perc{model_name="tiny"}']) <= 1


def test_request_ids_come_back(url: str) -> None:
    body = GOOD["completions"]
    answered = httpx.post(f"{url}/v1/completions", json=body, headers={"x-request-id": "mine"})
    assert answered.headers["x-request-id"] == "mine"
    refused = httpx.post(f"{url}/v1/completions", json=body | {"model": "no"})
    assert refused.headers["x-request-id"].startswith("req-")


def test_a_server_with_tokens_wants_one(models: Models) -> None:
    with listen(create_app(models, check_token=check_right)) as url:
        for key, error in (("wrong", openai.AuthenticationError), ("later", openai.InternalServerError)):
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client, pytest.raises(error):
                client.models.list()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="right", max_retries=0) as client:
            assert client.completions.create(model="tiny", prompt="x", max_tokens=1).choices
        bare = httpx.post(f"{url}/v1/completions", json=GOOD["completions"])
        assert (bare.status_code, bare.json()["error"]["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{url}/health").status_code == 200
        closed = httpx.get(f"{url}/metrics")
        assert (closed.status_code, "tiny" in closed.text) == (401, False)
        assert "tiny" in httpx.get(f"{url}/metrics", headers={"authorization": "Bearer right"}).text
        assert json.loads(httpx.get(f"{url}/version").text)["version"]


class Panic(BaseException):
    """What the tokenizer's Rust raises when it panics: no `Exception`."""


def test_health_says_that_an_engine_died_and_names_it_only_to_those_who_may_know(model_folder: Path) -> None:
    servable = EngineServable("fragile", model_folder)
    app = create_app(Models({"fragile": lambda: servable}), check_token=check_right)

    def panic(*_: object) -> None:
        raise Panic("byte index 3 is not a char boundary")

    servable.engine._batch.step = panic  # pyright: ignore[reportAttributeAccessIssue]
    body = {"model": "fragile", "prompt": "x"}
    with listen(app) as url, httpx.Client(headers={"authorization": "Bearer right"}, timeout=20) as client:
        assert client.get(f"{url}/health").json() == {"status": "ok"}
        for _ in range(2):
            refused = client.post(f"{url}/v1/completions", json=body)
            assert (refused.status_code, "failed: Panic" in refused.text) == (503, True)
        told = client.get(f"{url}/health")
        assert (told.status_code, told.json()["status"]) == (503, "failed")
        assert "the engine of fragile failed: Panic: byte index 3" in told.json()["reasons"][0]
        assert httpx.get(f"{url}/health").json() == {"status": "failed", "reasons": []}
        servable.close()
        assert client.get(f"{url}/health").status_code == 200


def check_right(token: str) -> str:
    if token == "later":
        raise Unavailable("the token database is locked")
    if token != "right":
        raise Denied("the token is not known")
    return "ann"
