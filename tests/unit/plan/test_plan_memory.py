"""Bytes per rank: hand-computed cases, and what sharding may and may not change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.plan.memory import rank_memory, shard_params, units
from mainspring.spec import MemoryEstimate, Mesh
from mainspring.testing.machines import build_model

MODEL = build_model(layers=4, hidden=256, vocab=1000)


def memory(mesh: Mesh, **changes: object) -> MemoryEstimate:
    settings = {
        "tokens": 128,
        "microbatches": 1,
        "precision": "fp32",
        "recompute": "none",
        "reshard_after_forward": True,
    }
    return rank_memory(MODEL, mesh, **{**settings, **changes})  # pyright: ignore[reportArgumentType]


def test_one_rank_keeps_sixteen_bytes_for_each_parameter() -> None:
    found = memory(Mesh())
    assert found.params_bytes + found.grads_bytes + found.optimizer_bytes == 16 * MODEL.params
    assert found.gathered_bytes == 0


def test_logits_and_activations_match_a_count_by_hand() -> None:
    found = memory(Mesh(), tokens=100)
    assert found.logits_bytes == 100 * 1000 * (4 + 4)  # fp32 scores and their log-softmax
    layer, head = 4 * (10 * 256 + 4 * 1024), 4 * 3 * 256
    assert found.activations_bytes == 100 * (4 * layer + head)


def test_full_recomputation_keeps_block_inputs_and_one_block() -> None:
    found = memory(Mesh(), tokens=100, recompute="full")
    layer, head, cut = 4 * (10 * 256 + 4 * 1024), 4 * 3 * 256, 4 * 256
    assert found.activations_bytes == 100 * (4 * cut + layer + head)


@given(degree=st.integers(1, 4096), layers=st.integers(1, 40), hidden=st.integers(1, 97), vocab=st.integers(1, 999))
def test_sharding_never_loses_a_parameter_and_pads_less_than_a_degree_per_unit(
    degree: int, layers: int, hidden: int, vocab: int
) -> None:
    model = build_model(layers=layers, hidden=hidden, vocab=vocab)
    together = degree * shard_params(model, degree)
    root, blocks = units(model)
    assert root + sum(count * params for count, params in blocks) == model.params
    assert model.params <= together < model.params + degree * (1 + sum(count for count, _ in blocks))


@given(
    degree=st.integers(1, 64),
    tokens=st.integers(1, 10_000),
    precision=st.sampled_from(["fp32", "bf16"]),
    recompute=st.sampled_from(["none", "full"]),
    regather=st.booleans(),
)
def test_twice_the_shards_never_need_more_of_anything(
    degree: int, tokens: int, precision: str, recompute: str, regather: bool
) -> None:
    one, two = (
        memory(
            Mesh(fsdp=shards),
            tokens=tokens,
            precision=precision,
            recompute=recompute,
            reshard_after_forward=regather,
        )
        for shards in (degree, 2 * degree)
    )
    for part in ("params_bytes", "grads_bytes", "optimizer_bytes", "activations_bytes", "logits_bytes"):
        assert getattr(two, part) <= getattr(one, part)


def test_zero2_holds_whole_gradients_only_when_they_accumulate() -> None:
    once = memory(Mesh(fsdp=4), reshard_after_forward=False, microbatches=1)
    often = memory(Mesh(fsdp=4), reshard_after_forward=False, microbatches=2)
    assert once.grads_bytes == once.params_bytes
    assert often.grads_bytes == 4 * MODEL.params


def test_recomputation_saves_and_bf16_narrows() -> None:
    wide = memory(Mesh(), tokens=4096)
    assert memory(Mesh(), tokens=4096, recompute="full").activations_bytes < wide.activations_bytes
    narrow = memory(Mesh(), tokens=4096, precision="bf16").activations_bytes
    assert narrow == pytest.approx(0.69 * wide.activations_bytes)
