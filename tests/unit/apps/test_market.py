"""The workspace's registry: the newest version of every name, and what becomes of the one before."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from mainspring.apps.market import Published
from mainspring.models.tokenizer import train_bpe
from mainspring.models.transformer import Decoder
from mainspring.models.weights import save_pretrained
from mainspring.serve.servable import Prompt
from mainspring.spec import DecoderConfig, NotFound, SamplingParams, Unavailable
from mainspring.store import Store
from mainspring.testing.processes import eventually

ENDLESS = SamplingParams(max_tokens=100, ignore_eos=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    words = train_bpe(["a few words, and a few more"] * 4, vocab=300)
    config = DecoderConfig(vocab=words.vocab, hidden=16, layers=1, heads=2, kv_heads=1, ffn=24, context=128, eos_id=0)
    save_pretrained(Decoder(config, seed=1), folder, tokenizer=words)
    return folder


@pytest.fixture
def market(store: Store) -> Iterator[Published]:
    opened = Published(store, retire_s=0.05)
    yield opened
    opened.close()


def test_a_name_stays_on_offer_however_many_versions_others_have(
    store: Store, market: Published, weights: Path
) -> None:
    store.publish("model", "rare", weights)
    for number in range(205):
        store.publish("model", "busy", weights / "config.json", meta={"number": number})
    assert market.names() == ("busy", "rare")
    assert [model.ref for model in store.newest("model")] == ["model:busy@205", "model:rare@1"]
    with pytest.raises(NotFound, match="'other' does not exist"):
        market.get("other")


def test_a_new_version_takes_over_and_the_old_one_is_closed_by_its_last_reader(
    store: Store, market: Published, weights: Path
) -> None:
    store.publish("model", "m", weights)
    old = market.get("m")
    assert market.get("m") is old

    async def read_across_the_change() -> int:
        seen = 0
        async with aclosing(old.stream(Prompt(text="a few"), ENDLESS)) as pieces:
            async for piece in pieces:
                if not seen:
                    store.publish("model", "m", weights, meta={"again": True})
                    assert await asyncio.to_thread(market.get, "m") is not old
                    await asyncio.sleep(0.3)  # longer than it is kept for newcomers
                seen += len(piece.token_ids)
        return seen

    assert asyncio.run(read_across_the_change()) == 100
    assert eventually(lambda: not market._retired, within_s=30)

    async def read_late() -> None:
        async for _ in old.stream(Prompt(text="a few"), ENDLESS):
            pass

    with pytest.raises(Unavailable, match="was closed"):
        asyncio.run(read_late())
