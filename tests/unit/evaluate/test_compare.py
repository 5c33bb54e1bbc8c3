"""Intervals cover what they should, and paired tests see what unpaired ones miss."""

import numpy as np
import pytest

from mainspring.evaluate.compare import interval, mcnemar, paired


def test_the_interval_covers_the_true_mean_about_95_times_in_100() -> None:
    draw = np.random.default_rng(1)
    samples = [interval(draw.exponential(1.0, size=60)) for _ in range(200)]
    covered = sum(found.low <= 1.0 <= found.high for found in samples)
    assert 176 <= covered <= 200


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios() -> None:
    found = interval([10.0, 1.0], [100.0, 1.0])
    assert found.value == pytest.approx(11 / 101)
    assert found.low <= found.value <= found.high


def test_the_same_scores_give_the_same_interval_every_time() -> None:
    values = np.random.default_rng(2).normal(size=50)
    assert interval(values) == interval(values)


def test_a_small_but_steady_difference_is_seen_only_when_paired() -> None:
    base = np.random.default_rng(3).normal(size=100)
    better = base + 0.05 + np.random.default_rng(4).normal(scale=0.02, size=100)
    assert paired(better, base).excludes_zero
    assert interval(base).high > interval(better).low, "unpaired intervals overlap"


def test_mcnemar_agrees_with_the_binomial_by_hand() -> None:
    ours = [True] * 8 + [False] * 2 + [True] * 5
    theirs = [False] * 8 + [True] * 2 + [True] * 5
    # 10 differ, 2 against us: 2 * (1 + 10 + 45) / 1024
    assert mcnemar(ours, theirs) == pytest.approx(112 / 1024)
    assert mcnemar(ours, ours) == 1.0


def test_unmatched_or_empty_items_are_refused() -> None:
    with pytest.raises(ValueError, match="same items"):
        paired([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="same items"):
        mcnemar([True], [])
    with pytest.raises(ValueError, match="positive weights"):
        interval([])
    with pytest.raises(ValueError, match="positive weights"):
        interval([1.0, 2.0], [1.0, 0.0])
