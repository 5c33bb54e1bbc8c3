"""The fusion is its formula, and its weight follows what the questions say, in doubt the vectors."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.apps.rag.fusion import LEAST_QUESTIONS, TEXT_WEIGHT, WEIGHTS, Candidate, choose_weight, fuse
from mainspring.spec import Chunk

NAMES = st.sampled_from("abcdefgh")
SCORES = st.floats(0, 1, allow_nan=False)


def candidate(name: str, text: float, cosine: float, coverage: float = 1.0) -> Candidate:
    chunk = Chunk(id=name, document=name.upper(), source=name, path=(), text=name, start=0, end=1)
    return Candidate(chunk=chunk, text=text, cosine=cosine, coverage=coverage)


CANDIDATES = st.lists(st.builds(candidate, NAMES, SCORES, SCORES, SCORES), max_size=8)


def test_the_score_is_the_formula() -> None:
    found = fuse([candidate("a", 4.0, 0.5, 0.5), candidate("b", 2.0, 0.9), candidate("c", 0.0, -0.4)], 0.6)
    assert [(one.chunk.id, score) for one, score in found] == [
        ("b", pytest.approx(0.6 * 0.5 + 0.4 * 0.9)),
        ("a", pytest.approx(0.6 * 0.5 + 0.4 * 0.5)),
        ("c", 0.0),
    ]
    assert fuse([], 0.5) == []


def test_without_a_word_in_common_the_vectors_rank_alone() -> None:
    assert [found.chunk.id for found, _ in fuse([candidate("a", 0.0, 0.1), candidate("b", 0.0, 0.7)], 0.9)] == [
        "b",
        "a",
    ]


@given(CANDIDATES, st.sampled_from(WEIGHTS), st.randoms(use_true_random=False))
def test_the_order_is_by_score_then_id_whatever_order_the_searches_gave(
    found: list[Candidate], weight: float, draw: random.Random
) -> None:
    distinct = list({one.chunk.id: one for one in found}.values())
    shuffled = draw.sample(distinct, len(distinct))
    assert fuse(shuffled, weight) == fuse(distinct, weight)
    scores = [score for _, score in fuse(distinct, weight)]
    assert scores == sorted(scores, reverse=True)


def asked(right: str, count: int) -> list[tuple[list[Candidate], str]]:
    """Questions whose document one of the searches puts first: `t` is the words' choice and `v` the vectors'."""
    return [([candidate("t", 1.0, 0.2), candidate("v", 0.4, 0.8)], right.upper())] * count


def test_the_weight_goes_to_the_search_that_finds_the_documents() -> None:
    questions = [*asked("t", 60), *asked("v", 3)]
    assert choose_weight(questions) >= 0.6
    assert choose_weight([*asked("v", 60), *asked("t", 3)]) == WEIGHTS[0]


def test_in_doubt_the_vectors_get_the_benefit() -> None:
    assert choose_weight([*asked("t", 30), *asked("v", 30)]) == WEIGHTS[0]
    assert choose_weight(asked("nowhere", 40)) == WEIGHTS[0]


def test_too_few_questions_leave_the_weight_where_it_was() -> None:
    assert choose_weight(asked("t", LEAST_QUESTIONS - 1)) == TEXT_WEIGHT
    assert choose_weight([]) == TEXT_WEIGHT
