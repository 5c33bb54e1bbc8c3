"""Deduplication: what goes is like what stays, by a measure this test computes on its own."""

import random
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.data.dedup import SIMILARITY, dedup, exact_keepers, near_keepers
from mainspring.data.documents import make_document, to_table
from mainspring.spec import SpecError

WORDS = [f"{a}{b}{c}" for a in ("ba", "ke", "lo", "mi", "ru", "sa") for b in "dfgnst" for c in ("a", "en", "or", "ul")]


def table_of(texts: list[str]) -> pa.Table:
    return to_table(make_document(f"doc{i}", text, title="t", kind="text") for i, text in enumerate(texts))


def column(texts: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def jaccard(one: str, other: str) -> float:
    """Similarity of the sets of word 5-grams, lower case and without punctuation."""

    def grams(text: str) -> set[str]:
        words = re.sub(r"[^\w\s]", "", text.lower()).split()
        return {" ".join(words[i : i + 5]) for i in range(len(words) - 4)}

    mine, theirs = grams(one), grams(other)
    return len(mine & theirs) / len(mine | theirs)


def essay(rng: random.Random, words: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(words)]


def edited(text: list[str], share: float, rng: random.Random) -> list[str]:
    return [rng.choice(WORDS) if rng.random() < share else word for word in text]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab \n.A"), max_size=12), min_size=1, max_size=20), st.integers(2, 4))
def test_exact_copies_always_collapse_to_one(texts: list[str], times: int) -> None:
    distinct = list({" ".join(text.casefold().split()): text for text in texts}.values())
    kept, counts = dedup(table_of(distinct * times))
    assert kept["source"].to_pylist() == [f"doc{i}" for i in range(len(distinct))]  # too short to be near copies
    assert counts[0].dropped == len(distinct) * (times - 1)
    assert counts[1].dropped == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(sorted(SIMILARITY)), st.integers(2, 60))
def test_whatever_goes_is_similar_to_a_document_that_stays(seed: int, policy: str, n: int) -> None:
    rng = random.Random(seed)
    documents: list[list[str]] = []
    for _ in range(n):  # chains of edits of edits, where union-find would drift
        base = rng.choice(documents) if documents and rng.random() < 0.7 else essay(rng, rng.randint(1, 120))
        documents.append(edited(base, rng.choice([0.0, 0.01, 0.05, 0.1]), rng))
    texts = [" ".join(words) for words in documents]
    keepers = near_keepers(column(texts), threshold=SIMILARITY[policy])
    for removed in np.flatnonzero(keepers != np.arange(n)):
        keeper = keepers[removed]
        assert keepers[keeper] == keeper
        assert keeper < removed
        assert jaccard(texts[removed], texts[keeper]) >= SIMILARITY[policy]
    table = table_of(texts)
    kept, counts = dedup(table, policy=policy)
    assert kept.num_rows + sum(count.dropped for count in counts) == n
    assert dedup(table, policy=policy)[0].equals(kept)


def test_lightly_edited_copies_are_found() -> None:
    rng = random.Random(7)
    originals = [essay(rng, 300) for _ in range(150)]
    copies = [edited(text, 0.03, rng) for text in originals]
    texts = [" ".join(words) for words in originals + copies]
    found = near_keepers(column(texts), threshold=SIMILARITY["aggressive"])
    assert (found[150:] == np.arange(150)).mean() >= 0.98
    assert (found[:150] == np.arange(150)).all()


def test_a_large_group_of_copies_becomes_one() -> None:
    rng = random.Random(3)
    base = essay(rng, 400)
    texts = [" ".join(edited(base, 0.005, rng)) for _ in range(200)]
    keepers = near_keepers(column(texts), threshold=SIMILARITY["balanced"])
    assert (keepers == np.arange(200)).sum() <= 2


def test_documents_of_fewer_than_five_words_never_collide() -> None:
    texts = ["", " ", "...", "!?", "one", "two words", "three little words", "just these four words"]
    keepers = near_keepers(column(texts * 2), threshold=0.5)
    assert (keepers == np.arange(2 * len(texts))).all()


def test_chinese_copies_are_found_although_there_are_no_spaces() -> None:
    text = "\u8fd9\u4e2a\u51fd\u6570\u8fd4\u56de\u4e24\u4e2a\u8def\u5f84\u8fde\u63a5\u4e4b\u540e\u7684\u7ed3\u679c" * 3
    other = (
        "\u4f60\u53ef\u4ee5\u5728\u914d\u7f6e\u6587\u4ef6\u91cc\u8bbe\u7f6e\u6bcf\u4e2a\u7528\u6237\u7684\u6743\u9650"
        * 3
    )
    keepers = near_keepers(column([text, other, text + "\u4e86"]), threshold=0.7)
    assert keepers.tolist() == [0, 1, 0]


def test_case_and_spaces_do_not_hide_an_exact_copy() -> None:
    assert exact_keepers(["The  Cat\nsat", "the cat sat", "the cat sat.", "The cat SAT "]).tolist() == [0, 0, 2, 0]


def test_the_report_names_the_copy_and_its_keeper() -> None:
    _, counts = dedup(table_of(["a text that is here twice", "another text altogether", "a text that is here twice"]))
    assert counts[0].examples == ("doc2: copy of doc0",)


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(SpecError) as caught:
        dedup(table_of(["a"]), policy="lenient")  # pyright: ignore[reportArgumentType]
    assert caught.value.hint == "known: strict, balanced, aggressive"
