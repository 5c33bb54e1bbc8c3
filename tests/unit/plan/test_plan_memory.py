"""Bytes per rank: hand-computed cases, published ones, and what sharding and cutting may and may not change."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.plan.blocks import Cut, Rank, inner_rings, state
from mainspring.plan.estimate import Choice, Estimate, Estimator
from mainspring.plan.flops import model_flops
from mainspring.plan.layout import Column, Layout
from mainspring.plan.network import Fabric
from mainspring.plan.shards import rows_of
from mainspring.plan.slices import sync_rings
from mainspring.plan.stack import TORCH
from mainspring.spec import Link, MemoryEstimate, Mesh, ModelSpec
from mainspring.testing.machines import build_device, build_model, freeze

MODEL = build_model(layers=4, hidden=256, vocab=1000)
DEVICE = build_device()
RANK = Rank(device=DEVICE, share=1.0, memory_bytes=DEVICE.memory_bytes)
LINK = Link(name="link", bytes_per_s=1e11, latency_s=1e-6)
FABRIC = Fabric(per_node=8, inner=LINK, outer=LINK)


def estimate(
    mesh: Mesh, model: ModelSpec = MODEL, *, zero: int = 0, count: int = 1, cuts: tuple[int, ...] = (), **cut: object
) -> Estimate:
    """One sequence of 128 tokens a micro-batch, `count` of them on each replica."""
    settings = {"rows": 1, "seq_len": 128, "precision": "fp32", "recompute": "none", "tp": mesh.tp, "cp": mesh.cp}
    layout = Layout(columns=(Column(replicas=mesh.replicas, ranks=(RANK,) * mesh.pp),), fabric=FABRIC)
    units = sum(block.count for block in model.blocks)
    choice = Choice(
        mesh=mesh,
        cut=Cut(**{**settings, **cut}),  # pyright: ignore[reportArgumentType]
        zero=zero,  # pyright: ignore[reportArgumentType]
        schedule="1f1b",
        cuts=cuts or (0, units),
    )
    found = Estimator(model, global_batch=count * mesh.replicas)(choice, layout)
    assert found is not None
    return found


def memory(mesh: Mesh, model: ModelSpec = MODEL, **changes: object) -> MemoryEstimate:
    return estimate(mesh, model, **changes).memory[0]  # pyright: ignore[reportArgumentType]


def test_one_rank_keeps_sixteen_bytes_for_each_parameter() -> None:
    found = memory(Mesh())
    assert found.params_bytes + found.grads_bytes + found.optimizer_bytes == 16 * MODEL.params
    assert found.gathered_bytes == 0


def test_an_optimizer_without_moments_keeps_half_of_that_and_moves_less() -> None:
    plain = replace(MODEL, optimizer_bytes=0.0)
    found = memory(Mesh(), plain)
    assert found.optimizer_bytes == 0
    assert found.params_bytes + found.grads_bytes == 8 * MODEL.params
    assert estimate(Mesh(), plain).time.optimizer_s == pytest.approx(12 / 28 * estimate(Mesh()).time.optimizer_s)


def test_what_is_frozen_keeps_neither_gradients_nor_optimiser_state_and_takes_less_time() -> None:
    tuned = freeze(MODEL, 0.9, 0.9, 0.9)
    trained = sum(block.count * rows.params for block in tuned.blocks for rows in block.rows if rows.trained)
    assert trained == pytest.approx(0.1 * MODEL.params, rel=1e-3)
    for plan in ({"mesh": Mesh()}, {"mesh": Mesh(fsdp=4), "zero": 1, "count": 2}, {"mesh": Mesh(fsdp=4), "zero": 3}):
        whole, found = memory(model=MODEL, **plan), memory(model=tuned, **plan)
        assert found.params_bytes == pytest.approx(whole.params_bytes, rel=1e-3)
        assert found.grads_bytes == pytest.approx(0.1 * whole.grads_bytes, rel=1e-2)
        assert found.optimizer_bytes == pytest.approx(0.1 * whole.optimizer_bytes, rel=1e-2)
        assert found.activations_bytes == whole.activations_bytes
    whole, found = estimate(Mesh(dp=4)).time, estimate(Mesh(dp=4), tuned).time
    assert found.optimizer_s == pytest.approx(0.1 * whole.optimizer_s, rel=1e-2)
    plain = Cut(rows=8, seq_len=1024, precision="fp32", recompute="none")
    parts = [Estimator(m, global_batch=8).slice_of(plain, RANK, FABRIC) for m in (MODEL, tuned)]
    sync = sync_rings(FABRIC, Mesh(fsdp=4))
    (gather, reduce), (same, less) = (part.sharding_s(part.load([(0, 6)]), sync=sync) for part in parts)
    assert same == pytest.approx(gather, rel=1e-3)
    assert less < reduce
    assert parts[1].weight_s[-1] == pytest.approx(0.1 * parts[0].weight_s[-1], rel=1e-2)
    assert parts[1].forward_s == parts[0].forward_s


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(("zero", "pp"), [(0, 1), (1, 2), (2, 1), (3, 1), (3, 2)])
def test_blocks_of_which_each_differs_a_little_are_recomputed_and_sharded_like_alike_ones(
    recompute: str, zero: int, pp: int
) -> None:
    embedding, layer, head = MODEL.blocks
    singles = replace(MODEL, blocks=(embedding, *[replace(layer, count=1)] * layer.count, head))
    mesh = Mesh(pp=pp, fsdp=4 if zero else 1)
    how = {"zero": zero, "count": 2, "recompute": recompute, "cuts": (0, 3, 6) if pp > 1 else ()}
    alike, alone = (estimate(mesh, model, **how) for model in (MODEL, singles))
    assert alone.memory == alike.memory
    assert alone.time == alike.time


def test_nothing_runs_backward_through_a_frozen_start() -> None:
    start = replace(MODEL, blocks=(freeze(MODEL, 1, 1, 1).blocks[0], *MODEL.blocks[1:]))
    plain = Cut(rows=1, seq_len=128, precision="fp32", recompute="none")
    usual, found = (Estimator(m, global_batch=1).slice_of(plain, RANK, FABRIC) for m in (MODEL, start))
    assert usual.backward_s[1] > found.backward_s[1] == 0
    assert usual.forward_s == found.forward_s
    whole, found = (model_flops(m, tokens=1, seq_len=128) for m in (MODEL, freeze(MODEL, 1, 1, 1)))
    attention = 3 * 128 * MODEL.blocks[1].count * MODEL.blocks[1].attention_flops_per_token2
    assert found - attention == pytest.approx(2 / 3 * (whole - attention))  # the stream's gradients, and no other


def test_tied_parameters_are_kept_once_on_one_rank_and_at_both_ends_of_a_pipeline() -> None:
    tied = replace(MODEL, tied_params=1000 * 256)
    assert memory(Mesh(), tied).params_bytes == 4 * tied.params
    ends = estimate(Mesh(pp=2), tied, count=2, cuts=(0, 3, 6)).memory
    assert sum(m.params_bytes for m in ends) == 4 * MODEL.params


def test_logits_and_activations_match_a_count_by_hand() -> None:
    found = memory(Mesh(), seq_len=100)
    assert found.logits_bytes == 100 * 1000 * (4 + 4)  # fp32 scores and their log-softmax
    layer, head = 4 * (10 * 256 + 4 * 1024), 4 * 3 * 256
    assert found.activations_bytes == 100 * (4 * layer + head)


def test_full_recomputation_keeps_block_inputs_and_one_block() -> None:
    found = memory(Mesh(), seq_len=100, recompute="full")
    layer, head, cut = 4 * (10 * 256 + 4 * 1024), 4 * 3 * 256, 4 * 256
    assert found.activations_bytes == 100 * (4 * cut + layer - cut + head)


@settings(deadline=None)
@given(shards=st.integers(1, 64), layers=st.integers(1, 40), hidden=st.integers(1, 97), vocab=st.integers(1, 999))
def test_sharding_never_loses_a_parameter_and_pads_less_than_a_degree_per_part_of_a_unit(
    shards: int, layers: int, hidden: int, vocab: int
) -> None:
    model = build_model(layers=layers, hidden=64 * hidden, vocab=vocab)
    zero = 3 if shards > 1 else 0
    together = shards * memory(Mesh(fsdp=shards), model, zero=zero).params_bytes // 4
    parts = sum(block.count * len(rows_of(block)) for block in model.blocks)
    assert model.params <= together < model.params + shards * parts


@pytest.mark.parametrize(("zero", "parts"), [(1, (1, 1, 4)), (2, (4, 1, 4)), (3, (4, 4, 4))])
def test_each_zero_stage_spreads_what_rajbhandari_says(zero: int, parts: tuple[int, int, int]) -> None:
    whole, spread = memory(Mesh()), memory(Mesh(fsdp=4), zero=zero, count=2)
    for name, part in zip(("params_bytes", "grads_bytes", "optimizer_bytes"), parts, strict=True):
        assert getattr(spread, name) == pytest.approx(getattr(whole, name) / part, rel=1e-3)


def test_gradients_of_zero_2_are_whole_only_while_they_accumulate() -> None:
    once, often = (memory(Mesh(fsdp=4), zero=2, count=count) for count in (1, 2))
    assert once.grads_bytes * 4 == pytest.approx(often.grads_bytes, rel=1e-3)


def test_the_first_pipeline_rank_holds_the_activations_of_as_many_micro_batches_as_there_are_ranks() -> None:
    model = build_model(layers=14, hidden=256)
    found = estimate(Mesh(pp=4), model, count=8, cuts=(0, 4, 8, 12, 16))
    kept = [m.activations_bytes for m in found.memory]
    layer = 128 * 4 * (10 * 256 + 4 * 1024)
    assert kept[:3] == [4 * 3 * layer, 3 * 4 * layer, 2 * 4 * layer]


@settings(deadline=None)
@given(tp=st.sampled_from([1, 2, 4]), cp=st.sampled_from([1, 2, 4]), along=st.booleans())
def test_tensor_and_context_parallelism_only_ever_save(tp: int, cp: int, *, along: bool) -> None:
    whole = memory(Mesh())
    parts = memory(Mesh(tp=tp, cp=cp), sequence_parallel=along)
    assert parts.total_bytes <= whole.total_bytes
    assert parts.activations_bytes >= whole.activations_bytes // (tp * cp)
    if along:
        assert parts.activations_bytes == pytest.approx(whole.activations_bytes / (tp * cp))


def test_what_a_layer_keeps_under_tensor_parallelism_is_what_korthikanti_publishes() -> None:
    """Section 4.2: of 34 bytes per token and hidden value 24 are divided by tp alone, all by tp and sequence."""
    hidden = 512
    block = replace(
        MODEL.blocks[1], activation_bytes_per_token=34.0 * hidden, split_activation_bytes_per_token=24.0 * hidden
    )
    plain = Cut(rows=1, seq_len=1, precision="fp32", recompute="none", tp=4)
    along = replace(plain, sequence_parallel=True)
    assert state(MODEL, block, plain, TORCH).kept_bytes == hidden * (10 + 24 / 4)
    assert state(MODEL, block, along, TORCH).kept_bytes == hidden * 34 / 4


def test_experts_are_divided_over_their_axis_and_the_rest_is_not() -> None:
    model = build_model(layers=4, hidden=256, experts=8)
    block = model.blocks[1]
    cut = Cut(rows=1, seq_len=128, precision="fp32", recompute="none", ep=4)
    held = state(model, block, cut, TORCH)
    assert held.expert_params * 4 == block.expert_params
    assert held.params == block.params - block.expert_params
    assert inner_rings(FABRIC, Mesh(ep=4)).ep.ranks == 4
