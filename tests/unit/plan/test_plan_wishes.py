"""Wishes are granted or refused with the reason that refuses them; none is dropped."""

from dataclasses import replace

import pytest

from mainspring.plan.search import menu, plan_training
from mainspring.spec import Cluster, DoesNotFit, Hints, ModelSpec, SpecError, TrainConfig
from mainspring.testing.machines import build_cluster, build_device, build_model

MODEL = build_model(layers=4, hidden=256)
LOOSE = replace(MODEL, chain=False)
DEAF = replace(MODEL, blocks=tuple(replace(block, kv_bytes_per_token=0.0) for block in MODEL.blocks))
CONFIG = TrainConfig(steps=10, global_batch=8, seq_len=64)
EIGHT = build_cluster((build_device(), 8, 1))
PAIRS = build_cluster((build_device(), 2, 4))
ONE = build_cluster((build_device(), 1, 1))


@pytest.mark.parametrize(
    ("model", "cluster", "wishes", "words"),
    [
        (MODEL, EIGHT, {"pp": 2, "schedule": "zbv", "recompute": "full"}, "recomputation would be paid for twice"),
        (MODEL, EIGHT, {"zero": 3, "pp": 2, "schedule": "zbv"}, "zbv puts weight gradients off"),
        (MODEL, EIGHT, {"zero": 0, "fsdp": 2}, "zero 0 was asked for, which spreads nothing, with fsdp 2"),
        (MODEL, EIGHT, {"zero": 2, "fsdp": 1, "cp": 1}, "fsdp 1 leaves no ranks to spread state over"),
        (MODEL, EIGHT, {"cp": 3}, "cp 3 does not divide seq_len 64"),
        (MODEL, EIGHT, {"cp": 128}, "cp 128 does not divide seq_len 64"),
        (DEAF, EIGHT, {"cp": 2}, "no block of toy is known to look along a sequence"),
        (MODEL, EIGHT, {"pp": 1, "schedule": "1f1b"}, "schedule 1f1b was asked for with pp 1, which is no pipeline"),
        (MODEL, EIGHT, {"chunks": 2, "pp": 1}, "chunks 2 was asked for with pp 1"),
        (MODEL, EIGHT, {"chunks": 2, "schedule": "1f1b"}, "1f1b runs one stage a rank, not 2"),
        (MODEL, EIGHT, {"chunks": 3, "schedule": "zero_bubble"}, "zero_bubble is planned with 1, 2 stages a rank"),
        (MODEL, EIGHT, {"pp": 4, "chunks": 2}, "makes 8 stages at least, toy has 6 blocks to cut between"),
        (LOOSE, EIGHT, {"schedule": "zbv"}, "schedule zbv was asked for, toy is no chain of blocks"),
        (MODEL, ONE, {"schedule": "zbv"}, "needs 2 ranks, cluster 'c' has room for 1"),
        (MODEL, EIGHT, {"sequence_parallel": True, "tp": 1}, "sequence_parallel was asked for with tp 1"),
        (LOOSE, EIGHT, {"sequence_parallel": True}, "no tp that may be used here cuts toy"),
        (MODEL, EIGHT, {"pp": 4, "tp": 4}, "pp 4 x tp 4 needs 16 ranks, cluster 'c' has room for 8"),
        (MODEL, PAIRS, {"tp": 4}, "tp 4 needs as many devices of one node, cluster 'c' has at most 2"),
        (MODEL, EIGHT, {"dp": 3}, "a global batch of 8 sequences is not a multiple of 3 replicas"),
        (
            MODEL,
            EIGHT,
            {"dp": 4, "pp": 2, "schedule": "dualpipev"},
            "dualpipev on 2 pipeline ranks needs 4 micro-batches",
        ),
    ],
)
def test_a_wish_that_cannot_be_granted_is_refused_with_its_reason(
    model: ModelSpec, cluster: Cluster, wishes: dict[str, object], words: str
) -> None:
    with pytest.raises((SpecError, DoesNotFit)) as caught:
        plan_training(model, cluster, CONFIG, hints=replace(Hints(), **wishes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "wishes", "words", "hint"),
    [
        (3, {"tp": 2}, "3 ranks were asked for, which is no multiple of tp 2", "2 or 4 ranks"),
        (8, {"tp": 2, "pp": 3}, "8 ranks were asked for, which is no multiple of pp 3 x tp 2 = 6", "ask for 6 ranks"),
        (1, {"schedule": "1f1b"}, "1 ranks were asked for, which is no multiple of schedule 1f1b on pp 2", "2 ranks"),
        (6, {"tp": 2, "pp": 1}, "a global batch of 8 sequences is not a multiple of 3 replicas = 3", "6 or 9"),
    ],
)
def test_ranks_that_wishes_cannot_make_up_are_refused_with_what_could_be(
    ranks: int, wishes: dict[str, object], words: str, hint: str
) -> None:
    with pytest.raises(SpecError) as caught:
        plan_training(MODEL, EIGHT, CONFIG, ranks=ranks, hints=replace(Hints(), **wishes))
    assert words in str(caught.value)
    assert hint in caught.value.hint


def test_a_schedule_or_several_stages_a_rank_mean_a_pipeline() -> None:
    for wishes in (Hints(schedule="zbv"), Hints(chunks=2), Hints(schedule="gpipe", tp=2)):
        plan = plan_training(MODEL, EIGHT, CONFIG, hints=wishes)
        assert plan.mesh.pp > 1
        assert wishes.schedule in (None, plan.schedule)
        assert wishes.chunks in (0, plan.chunks)
        assert all(other.mesh.pp > 1 for other in plan.rejected)


def test_sequence_parallelism_means_tensor_parallelism() -> None:
    plan = plan_training(MODEL, EIGHT, CONFIG, hints=Hints(sequence_parallel=True))
    assert plan.sequence_parallel
    assert plan.mesh.tp > 1
    assert all(other.mesh.tp > 1 for other in plan.rejected)


def test_a_menu_grants_wishes_on_every_number_of_ranks_that_can() -> None:
    plans = menu(MODEL, EIGHT, CONFIG, hints=Hints(schedule="1f1b"))
    assert [plan.mesh.world for plan in plans] == [2, 4, 8]
    assert all(plan.mesh.pp > 1 for plan in plans)


def test_degrees_that_nothing_here_makes_up_are_refused_also_where_no_number_of_ranks_was_asked_for() -> None:
    pairs = build_cluster((build_device(), 2, 2))
    with pytest.raises(SpecError, match="pp 3 does not lie on the ranks of 'c'"):
        plan_training(build_model(layers=10, hidden=64), pairs, replace(CONFIG, global_batch=4), hints=Hints(pp=3))
