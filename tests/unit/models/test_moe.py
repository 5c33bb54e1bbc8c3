"""Our mixture of experts against transformers' Qwen3-MoE, and what moving and evening out experts may not change."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from mainspring.models.moe import MoeDecoder, from_hub, to_hub
from mainspring.models.weights import save_moe
from mainspring.plan.experts import imbalance, place_experts
from mainspring.spec import DecoderConfig, MoeConfig, SpecError

SIZES = DecoderConfig(vocab=64, hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, context=32, qk_norm=True, tied=False)
CONFIG = MoeConfig(decoder=SIZES, experts=4, experts_per_token=2, expert_ffn=24)
IDS = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> MoeDecoder:
    torch.manual_seed(0)
    made = MoeDecoder(CONFIG)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # so that choices are no near ties
    return made.eval()


def test_transformers_loads_what_is_saved_and_computes_the_same(model: MoeDecoder, tmp_path) -> None:
    from transformers import Qwen3MoeForCausalLM

    save_moe(CONFIG, model.state_dict(), tmp_path)
    theirs = Qwen3MoeForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), theirs(IDS).logits, atol=2e-5, rtol=1e-4)


def test_the_hubs_names_and_back_lose_nothing(model: MoeDecoder) -> None:
    state = model.state_dict()
    back = from_hub(to_hub(state), CONFIG)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)


def test_an_evened_out_model_keeps_its_biases_and_is_not_taken_for_one_without(model: MoeDecoder, tmp_path) -> None:
    from transformers import AutoConfig

    model.blocks[0].mlp.bias[1] = 0.5
    save_moe(CONFIG, model.state_dict(), tmp_path)
    back = MoeDecoder(CONFIG).eval()
    back.load_state_dict(from_hub(load_file(tmp_path / "model.safetensors"), CONFIG))
    with torch.no_grad():
        assert torch.equal(back(IDS), model(IDS))
    with pytest.raises(ValueError, match="qwen3_moe_biased"):
        AutoConfig.from_pretrained(tmp_path)


def test_what_a_checkpoint_of_qwen3_cannot_say_is_not_saved(tmp_path) -> None:
    plain = MoeDecoder(replace(CONFIG, decoder=replace(SIZES, qk_norm=False)))
    with pytest.raises(SpecError, match="normalises queries and keys"):
        save_moe(plain.moe, plain.state_dict(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_meta_construction_then_init_gives_the_weights_of_direct_construction() -> None:
    direct = MoeDecoder(CONFIG, seed=3)
    with torch.device("meta"):
        late = MoeDecoder(CONFIG, seed=3)
    late.to_empty(device="cpu")
    late.init_weights(3)
    for (name, one), (_, other) in zip(direct.named_parameters(), late.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_experts_in_other_slots_compute_the_same_to_the_last_bit(model: MoeDecoder) -> None:
    expected: Tensor = model(IDS)
    slots = torch.tensor([2, 0, 3, 1])
    for block in model.blocks:
        experts = block.mlp.experts
        for parameter in experts.parameters():
            moved = torch.empty_like(parameter)
            moved[slots] = parameter.data
            parameter.data = moved
        experts.slots.copy_(slots)
    assert torch.equal(model(IDS), expected)


def test_training_counts_what_each_expert_sees_and_makes_the_busy_ones_less_likely(model: MoeDecoder) -> None:
    mixture = model.train().blocks[0].mlp
    mixture.config = replace(CONFIG, balance_rate=0.1)
    model(IDS)
    assert mixture.load.sum() == IDS.numel() * 2
    mixture.balance(torch.tensor([30, 10, 20, 20]))
    torch.testing.assert_close(mixture.bias, torch.tensor([-0.1, 0.1, 0.0, 0.0]))


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_a_placement_gives_every_rank_as_many_experts_and_is_near_the_best(ranks: int, room: int, data) -> None:
    loads = data.draw(st.lists(st.integers(0, 1000), min_size=ranks * room, max_size=ranks * room))
    slots = place_experts(loads, ranks)
    assert sorted(slots) == list(range(ranks * room))
    busiest = imbalance(loads, slots, ranks) * max(1, sum(loads)) / ranks
    assert busiest <= sum(loads) / ranks + max(loads, default=0) + 1e-6
    assert slots == place_experts(loads, ranks)


def test_a_hot_expert_gets_a_rank_nearly_to_itself() -> None:
    loads = [900, 100, 100, 100, 100, 100, 100, 100]
    identity = tuple(range(8))
    assert imbalance(loads, identity, 4) == pytest.approx(2.5)
    assert imbalance(loads, place_experts(loads, 4), 4) == pytest.approx(2.5)  # two experts a rank: no way round 1000
    assert imbalance([900, 800, 10, 10, 10, 10, 10, 10], place_experts([900, 800, 10, 10, 10, 10, 10, 10], 4), 4) < 2.1
