"""The decoder: causality, positions, the attention hook, ties and initialisation."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.models.transformer import Decoder, attend_causally, rotary_angles, rotate
from mainspring.spec import DecoderConfig

TINY = DecoderConfig(vocab=64, hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, context=64)


@pytest.fixture
def model() -> Decoder:
    return Decoder(TINY, seed=1).requires_grad_(False)


def test_a_token_never_sees_the_ones_after_it(model: Decoder) -> None:
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 64
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


@given(shift=st.integers(1, 10_000))
@settings(max_examples=20, deadline=None)
def test_only_the_distance_between_positions_matters(shift: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 6, 1, 16, dtype=torch.float64)
    positions = torch.arange(6)[None]

    def scores(offset: int) -> torch.Tensor:
        angles = rotary_angles(positions + offset, width=16, theta=10000.0)
        return (rotate(q, angles)[0, :, 0] @ rotate(k, angles)[0, :, 0].T).float()

    torch.testing.assert_close(scores(0), scores(shift), atol=2e-2, rtol=1e-2)


def test_grouped_heads_equal_repeated_ones() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 4, 8), torch.randn(2, 5, 2, 8), torch.randn(2, 5, 2, 8)
    grouped = attend_causally(0, q, k, v)
    repeated = attend_causally(0, q, k.repeat_interleave(2, dim=2), v.repeat_interleave(2, dim=2))
    torch.testing.assert_close(grouped, repeated)


def test_a_cache_behind_the_attend_hook_gives_the_same_logits(model: Decoder) -> None:
    """The serving engine's way: one token at a time, keys and values kept per layer."""
    ids = torch.randint(0, 64, (1, 10), generator=torch.Generator().manual_seed(3))
    cache: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {0: [], 1: []}

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        cache[layer].append((k, v))
        keys, values = (torch.cat(parts, 1).transpose(1, 2) for parts in zip(*cache[layer], strict=True))
        out = torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), keys, values, enable_gqa=True)
        return out.transpose(1, 2)

    stepped = [model(ids[:, t : t + 1], positions_BT=torch.tensor([[t]]), attend=attend) for t in range(10)]
    torch.testing.assert_close(torch.cat(stepped, 1), model(ids), atol=1e-5, rtol=1e-5)


def test_a_tied_head_is_one_parameter_through_meta_copies_and_gradients() -> None:
    with torch.device("meta"):
        empty = Decoder(TINY)
    made = empty.to_empty(device="cpu")
    made.init_weights(seed=1)
    assert "lm_head.weight" not in made.state_dict()
    ids = torch.arange(8)[None]
    torch.testing.assert_close(made(ids), Decoder(TINY, seed=1)(ids))
    twin = copy.deepcopy(made)
    twin.model.embed_tokens.weight.data.zero_()
    assert not twin(ids).any()
    assert made(ids).any()
    made(ids).sum().backward()
    assert made.model.embed_tokens.weight.grad is not None


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = Decoder(TINY, seed=7).state_dict()
    torch.manual_seed(2)
    again = Decoder(TINY, seed=7).state_dict()
    other = Decoder(TINY, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    wide = Decoder(DecoderConfig(vocab=64, hidden=256, layers=8, heads=4, kv_heads=4, ffn=512, context=8))
    block = wide.blocks[0].state_dict()
    assert block["mlp.up_proj.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert block["mlp.down_proj.weight"].std().item() == pytest.approx(0.005, rel=0.05)
    assert torch.equal(block["input_layernorm.weight"], torch.ones(256))


def test_a_few_steps_of_training_learn_a_short_cycle() -> None:
    model = Decoder(TINY, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(33).remainder(7).repeat(4, 1)
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
