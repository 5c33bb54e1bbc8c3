"""The compressor and the n-gram model: proper probabilities and the right bytes in the denominator."""

import math
import random
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.evaluate.baselines import NGram, ngram_bits_per_byte, training_bytes, xz_bits_per_byte
from mainspring.spec import SpecError

WORDS = ["the", "path", "of", "a", "file", "is", "joined", "with", "another", "and", "returned", "as", "text"]


def prose(seed: int, count: int = 400) -> bytes:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(count)).encode()


def distribution(model: NGram, context: bytes) -> np.ndarray:
    window = (b"\xff" * model.order + context)[-(model.order - 1) :] if model.order > 1 else b""
    codes = [int.from_bytes(window + bytes([symbol]), "big") for symbol in range(256)]
    return model.probability(np.array(codes, dtype=np.uint64))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=5).filter(any),
    st.binary(max_size=10),
    st.integers(1, 8),
)
def test_ngram_probabilities_sum_to_one_in_any_context(docs: list[bytes], context: bytes, order: int) -> None:
    model = NGram(docs, order=order)
    p = distribution(model, context)
    assert p.min() > 0
    assert math.isclose(p.sum(), 1.0, rel_tol=1e-9)
    assert math.isclose(distribution(model, docs[0][:3]).sum(), 1.0, rel_tol=1e-9)


def test_kneser_ney_agrees_with_a_hand_computed_bigram() -> None:
    # "ab" between end marks E: bigrams Ea ab bE, each once, so each discount is n1/(n1+2*n2) = 1 -> capped at 0.95.
    # Unigram continuation counts are 1 for a, b, E. p1(b) = (1 - .95)/3 + .95 * 3/3 * 1/256.
    # p(b|a) = (1 - .95)/1 + .95 * 1/1 * p1(b).
    unigram = 0.05 / 3 + 0.95 / 256
    assert distribution(NGram([b"ab"], order=2), b"a")[ord("b")] == pytest.approx(0.05 + 0.95 * unigram)


def test_an_ngram_of_the_same_text_beats_one_of_other_text_and_longer_orders_help() -> None:
    train, held = [prose(seed) for seed in range(20)], [prose(99)]
    random_bytes = [random.Random(1).randbytes(20_000)]
    assert ngram_bits_per_byte(held, train) < 1.5 < ngram_bits_per_byte(held, random_bytes)
    assert ngram_bits_per_byte(held, train, order=6) < ngram_bits_per_byte(held, train, order=2)


def test_the_model_code_length_is_what_an_arithmetic_coder_would_need() -> None:
    model = NGram([prose(1)], order=4)
    text = prose(2, 30)
    chained = 1.0
    for at in range(len(text)):
        chained *= distribution(model, text[:at])[text[at]]
    assert model.bits(text) == pytest.approx(-math.log2(chained))


def test_xz_is_charged_for_the_held_out_text_alone() -> None:
    held = [random.Random(3).randbytes(4000)]
    assert xz_bits_per_byte(held) == pytest.approx(8.0, rel=0.02)
    assert xz_bits_per_byte(held, held) < 0.2, "already seen in training"
    text = [prose(5)]
    assert xz_bits_per_byte(text, [prose(6, 5000)]) < xz_bits_per_byte(text)
    assert xz_bits_per_byte(text) < 8 * len(zlib.compress(text[0], 9)) / len(text[0]) * 1.1


def test_non_english_text_is_counted_in_bytes() -> None:
    text = ["连接两个路径。" * 50]
    assert 0 < xz_bits_per_byte(training_bytes(text)) < 1
    assert training_bytes(text, limit=10) == [text[0].encode()[:10]]


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(SpecError, match="no held-out"):
        xz_bits_per_byte([b""])
    with pytest.raises(SpecError, match="at least one byte"):
        NGram([b""])
    with pytest.raises(SpecError, match="9"):
        NGram([b"a"], order=9)
