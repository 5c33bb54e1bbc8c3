"""Recall and reciprocal rank by hand, and a published comparison of two searches."""

import json

import pytest

from mainspring.evaluate.questions import Question
from mainspring.evaluate.retrieval import evaluate_retrieval, ranks, recall_mrr
from mainspring.spec import SpecError
from mainspring.store import Store

QUESTIONS = [Question(text=f"q{n}", document=f"d{n}", form="purpose") for n in range(4)]
ANSWERS = {"q0": ["d0", "d1"], "q1": ["d9", "d9", "d1"], "q2": [], "q3": ["d5", "d6", "d7", "d8", "d4", "d3"]}


def test_ranks_count_each_document_once() -> None:
    assert ranks(ANSWERS.__getitem__, QUESTIONS).tolist() == [1, 2, 0, 6]


def test_recall_and_reciprocal_rank_by_hand() -> None:
    scores = {score.name: score for score in recall_mrr(ANSWERS.__getitem__, QUESTIONS)}
    assert scores["recall@1"].value == 0.25
    assert scores["recall@5"].value == 0.5
    assert scores["recall@10"].value == 0.75
    assert scores["mrr"].value == pytest.approx((1 + 1 / 2 + 0 + 1 / 6) / 4)
    assert all(s.low is not None and s.high is not None and s.low <= s.value <= s.high for s in scores.values())


def test_two_searches_are_compared_question_by_question_and_published(store: Store, tmp_path) -> None:
    (tmp_path / "corpus").write_text("x")
    snapshot = store.publish("dataset", "docs", tmp_path / "corpus")
    arms = {"hybrid": lambda q: [f"d{q[1:]}"], "bm25": ANSWERS.__getitem__}
    report, artifact = evaluate_retrieval(store, snapshot.ref, arms, QUESTIONS, snapshot=snapshot.ref)
    assert report.score("recall@1").value == 1.0  # pyright: ignore[reportOptionalMemberAccess]
    assert report.score("bm25:recall@1").value == 0.25  # pyright: ignore[reportOptionalMemberAccess]
    assert report.score("mrr_minus_bm25").value == pytest.approx(1 - 5 / 12)  # pyright: ignore[reportOptionalMemberAccess]
    assert any("McNemar" in note for note in report.notes)
    folder = store.fetch(artifact)
    assert json.loads((folder / "report.json").read_text())["subject"] == snapshot.ref
    assert "<svg" in (folder / "report.html").read_text()
    assert snapshot.ref in {found.ref for found in store.lineage(artifact.ref, direction="up").artifacts}


def test_no_questions_is_an_error_and_not_a_perfect_score(store: Store) -> None:
    with pytest.raises(SpecError, match="no questions"):
        evaluate_retrieval(store, "index:x@1", {"a": lambda _: []}, [], snapshot="dataset:x@1")
