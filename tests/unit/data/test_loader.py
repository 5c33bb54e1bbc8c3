"""The loader: every sample exactly once, whatever the world size and wherever a run was killed."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.data.loader import TokenLoader, permute
from mainspring.spec import NotFound, SpecError, TokenSet, TokenSplit
from mainspring.store.parse import to_json


def packed(folder: Path, tokens: int, *, dtype: str = "uint16") -> Path:
    """A packed dataset whose token `i` is `i`, so that a row shows where it came from."""
    folder.mkdir(parents=True, exist_ok=True)
    np.arange(tokens).astype(np.dtype(dtype).newbyteorder("<")).tofile(folder / "train.bin")
    split = TokenSplit(name="train", file="train.bin", tokens=tokens, documents=1)
    token_set = TokenSet(splits=(split,), vocab=1 << 16, dtype=dtype, tokenizer="tokenizer:t@1", snapshot="dataset:d@1")
    (folder / "tokens.json").write_text(to_json(token_set))
    return folder


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key=key).tolist()) == list(range(n))


def test_permutations_of_different_keys_differ_and_look_random() -> None:
    n = 10_007
    one, other = permute(np.arange(n), n, key=1), permute(np.arange(n), n, key=2)
    assert (one == other).mean() < 0.01
    assert abs(np.corrcoef(np.arange(n), one)[0, 1]) < 0.05
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.05


@given(data=st.data())
def test_killed_and_resumed_on_other_worlds_each_sample_is_seen_exactly_once(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seq_len = data.draw(st.integers(1, 9))
    samples = data.draw(st.integers(1, 80))
    global_batch = data.draw(st.integers(1, 24))
    seed = data.draw(st.integers(0, 2**63))
    tail = data.draw(st.integers(0, seq_len - 1))
    folder = packed(tmp_path_factory.mktemp("p"), samples * seq_len + 1 + tail)
    epochs = data.draw(st.integers(1, 3))
    steps = -(-samples * epochs // global_batch)
    seen: list[int] = []
    loader = TokenLoader(folder, "train", seq_len=seq_len, global_batch=global_batch, seed=seed)
    while loader.position < steps:
        world = data.draw(st.integers(1, global_batch))
        bounds = [global_batch * rank // world for rank in range(world + 1)]
        rows = [loader.batch(loader.position, a, b - a) for a, b in pairwise(bounds)]
        seen += np.concatenate(rows)[:, 0].tolist()
        loader.position += 1
        if data.draw(st.booleans()):  # killed: a new process has the checkpoint's state and nothing else
            state = loader.state()
            loader = TokenLoader(folder, "train", seq_len=seq_len, global_batch=global_batch, seed=seed)
            loader.load_state(state)
    for epoch in range(epochs):
        starts = seen[epoch * samples : (epoch + 1) * samples]
        assert sorted(starts) == [i * seq_len for i in range(samples)]


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_row_is_consecutive_tokens_one_longer_than_the_sequence(tmp_path: Path, dtype: str) -> None:
    loader = TokenLoader(packed(tmp_path, 1000, dtype=dtype), "train", seq_len=10, global_batch=4)
    batch = loader.batch(3)
    assert batch.shape == (4, 11)
    assert batch.dtype == np.int64
    assert (np.diff(batch, axis=1) == 1).all()
    assert (batch[:, 0] % 10 == 0).all()


def test_epochs_are_ordered_differently_and_seeds_too(tmp_path: Path) -> None:
    def order(seed: int, step: int) -> list[int]:
        loader = TokenLoader(packed(tmp_path, 1001), "train", seq_len=10, global_batch=100, seed=seed)
        return loader.sample_ids(step).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert sorted(order(0, 1)) == list(range(100))


def test_steps_that_learn_their_tokens_by_heart_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = TokenLoader(packed(tmp_path, 1001), "train", seq_len=10, global_batch=5)
    assert loader.reading(160) == "160 steps read the 1,001 tokens 8.0 times"
    assert not caplog.records
    assert loader.reading(200).endswith(
        "10.0 times, which learns them by heart: add documents, or set steps to at most 160"
    )
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    folder = packed(tmp_path, 1000)
    state = TokenLoader(folder, "train", seq_len=10, global_batch=4, seed=1).state()
    with pytest.raises(SpecError, match="global_batch 4, this run has 8"):
        TokenLoader(folder, "train", seq_len=10, global_batch=8, seed=1).load_state(state)


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    folder = packed(tmp_path / "tokens", 8)
    with pytest.raises(SpecError, match="has 8 tokens, one sample needs 17"):
        TokenLoader(folder, "train", seq_len=16, global_batch=1)
    with pytest.raises(NotFound, match="no split 'test'"):
        TokenLoader(folder, "test", seq_len=2, global_batch=1)
    with pytest.raises(NotFound, match=r"tokens\.json"):
        TokenLoader(tmp_path, "train", seq_len=2, global_batch=1)
    with pytest.raises(SpecError, match="a step has 4"):
        TokenLoader(folder, "train", seq_len=2, global_batch=4).batch(0, 3, 2)
    (folder / "train.bin").write_bytes(b"\0" * 10)
    with pytest.raises(SpecError, match="holds 5 tokens, its manifest says 8"):
        TokenLoader(folder, "train", seq_len=2, global_batch=1)
