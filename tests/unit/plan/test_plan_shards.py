"""How ZeRO cuts parameters: nothing is lost, and what is filled up is counted."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mainspring.plan.blocks import Cut
from mainspring.plan.estimate import Estimator
from mainspring.plan.layout import Column, Layout
from mainspring.plan.network import Fabric
from mainspring.plan.offers import kinds
from mainspring.plan.shards import divided, padded, part, rows_of
from mainspring.spec import Rows
from mainspring.testing.machines import build_cluster, build_device, build_model

ROWS = st.lists(st.builds(Rows, count=st.integers(1, 100), width=st.integers(1, 9)), min_size=1, max_size=4)


@given(rows=ROWS, shards=st.integers(1, 130))
def test_every_parameter_is_on_one_rank_and_the_first_is_the_fullest(rows: list[Rows], shards: int) -> None:
    parts = [part(rows, shards, index) for index in range(shards)]
    assert sum(parts) == sum(each.count * each.width for each in rows)
    assert parts[0] == padded(rows, shards) == max(parts)


def test_eight_experts_over_twelve_ranks_take_the_room_of_twelve() -> None:
    experts = (Rows(count=8, width=10, kind="experts"),)
    assert padded(experts, 12) * 12 == 120
    assert [part(experts, 12, rank) for rank in (0, 7, 8, 11)] == [10, 10, 0, 0]
    assert divided(experts, tp=2, ep=4) == (Rows(count=2, width=10, kind="experts"),)


def test_a_block_of_which_only_numbers_are_known_is_cut_by_values() -> None:
    block = build_model(layers=1, hidden=128, experts=4).blocks[1]
    rows = rows_of(block)
    assert sum(each.count for each in rows) == block.params
    assert {each.kind for each in rows} == {"whole", "rows", "experts"}
    here = divided(rows, tp=2, ep=4)
    assert sum(each.count for each in here if each.kind == "experts") == block.expert_params // 4


def test_what_is_filled_up_takes_memory_and_time() -> None:
    """Eight experts, nearly all of a layer, over sixteen ranks: twice the room and twice the bytes."""
    model = build_model(layers=2, hidden=256, experts=8)
    layer = model.blocks[1]
    rest = layer.params - layer.expert_params
    rows = (Rows(count=8, width=layer.expert_params // 8, kind="experts"), Rows(count=rest, width=1))
    known = replace(model, blocks=(model.blocks[0], replace(layer, rows=rows), model.blocks[2]))
    cluster = build_cluster((build_device(), 8, 2))
    rank = kinds(cluster)[0].rank(8)
    fabric = Fabric(per_node=8, inner=cluster.nodes[0].link, outer=cluster.link)
    layout = Layout(columns=(Column(16, (rank,)),), fabric=fabric)
    cut = Cut(rows=1, seq_len=128, precision="fp32", recompute="none")
    plain, filled = (Estimator(each, global_batch=16).slices(cut, layout)[0][0] for each in (model, known))
    assert plain.padding(16) < 1.001
    assert filled.padding(16) > 1.5
    assert filled.sharded(16)[-1] * 16 == filled.padding(16) * (filled.params[-1] + filled.expert_params[-1])
