"""Is the difference real: intervals and paired tests over documents or questions.

Two systems scored on the same items must be compared item by item; unpaired intervals hide real differences. The
bootstrap (Efron 1979, percentile) resamples items, so tokens of one document stay together; McNemar's test (1947,
exact binomial) is for yes/no outcomes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
_BATCH = 64  # resamples drawn at once: bounds memory at 64 x items


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the difference is significant at 5 %."""
        return self.low > 0 or self.high < 0


def interval(values: Sequence[float] | NDArray, weights: Sequence[float] | NDArray | None = None) -> Interval:
    """The ratio `sum(values) / sum(weights)` (the mean without weights) with its interval over items.

    Deterministic: the same input gives the same interval. Needs at least one item of positive weight.
    """
    numerator = np.asarray(values, dtype=np.float64)
    denominator = np.ones_like(numerator) if weights is None else np.asarray(weights, dtype=np.float64)
    if numerator.size == 0 or numerator.shape != denominator.shape or not (denominator > 0).all():
        raise ValueError(f"{numerator.size} values need as many positive weights, got {denominator.size}")
    estimate = numerator.sum() / denominator.sum()
    draw = np.random.default_rng(0)
    ratios = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, _BATCH):
        picks = draw.integers(0, numerator.size, size=(min(_BATCH, RESAMPLES - start), numerator.size))
        ratios[start : start + len(picks)] = numerator[picks].sum(axis=1) / denominator[picks].sum(axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Interval(float(estimate), float(low), float(high))


def paired(
    ours: Sequence[float] | NDArray, theirs: Sequence[float] | NDArray, weights: NDArray | None = None
) -> Interval:
    """`ours - theirs` item by item, as a (weighted) mean with its interval."""
    left, right = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"paired scores need the same items, got {left.size} and {right.size}")
    return interval(left - right, weights)


def mcnemar(ours: Sequence[bool] | NDArray, theirs: Sequence[bool] | NDArray) -> float:
    """Exact two-sided p-value that both are right equally often; 1 when they never differ."""
    left, right = np.asarray(ours, dtype=bool), np.asarray(theirs, dtype=bool)
    if left.shape != right.shape:
        raise ValueError(f"paired outcomes need the same items, got {left.size} and {right.size}")
    only_ours, only_theirs = int((left & ~right).sum()), int((~left & right).sum())
    differing = only_ours + only_theirs
    tail = sum(comb(differing, k) for k in range(min(only_ours, only_theirs) + 1))
    return min(1.0, 2 * tail / 2**differing)
