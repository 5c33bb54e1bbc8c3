"""Join what BM25 and the vectors found by score, with one weight that the corpus itself sets.

    score = w * (BM25 / best BM25) * coverage + (1 - w) * cosine

A convex combination of scores ranks better than reciprocal rank fusion and needs few questions to set its weight
(Bruch, Gai & Ingber 2023, doi:10.1145/3596512). Coverage is the share of the question's information that the passage
holds, which keeps one rare word from outweighing all others.

Questions made by rules share words with their document and so flatter BM25. `choose_weight` therefore takes the
smallest weight of text that is not significantly worse than the best.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mainspring.spec import Chunk

WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What the weight of text is chosen from; never all or nothing, since questions differ more than corpora do."""
TEXT_WEIGHT = 0.5
"""Where the corpus gives fewer than `LEAST_QUESTIONS` questions to choose by."""
LEAST_QUESTIONS = 20
_SIGNIFICANT = 1.96  # standard errors of a paired difference: the 5 % level


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk that either search found: its BM25 (0 when only the vectors did), cosine and coverage."""

    chunk: Chunk
    text: float
    cosine: float
    coverage: float


def fuse(candidates: Sequence[Candidate], weight: float) -> list[tuple[Candidate, float]]:
    """Candidates with their joint score, best first; ties go to the smaller chunk id."""
    most = max((found.text for found in candidates), default=0.0) or 1.0
    scored = [
        (found, weight * found.text / most * found.coverage + (1 - weight) * max(found.cosine, 0.0))
        for found in candidates
    ]
    return sorted(scored, key=lambda pair: (-pair[1], pair[0].chunk.id))


def choose_weight(asked: Sequence[tuple[Sequence[Candidate], str]]) -> float:
    """The weight of text that finds the documents best: for each question its candidates and its document's id."""
    if len(asked) < LEAST_QUESTIONS:
        return TEXT_WEIGHT
    found = np.array([[_reciprocal_rank(fuse(given, w), document) for w in WEIGHTS] for given, document in asked])
    return WEIGHTS[_first_as_good_as_the_best(found)]


def _reciprocal_rank(ranked: Sequence[tuple[Candidate, float]], document: str) -> float:
    order = list(dict.fromkeys(found.chunk.document for found, _ in ranked))
    return 1 / (order.index(document) + 1) if document in order else 0.0


def _first_as_good_as_the_best(found: NDArray[np.float64]) -> int:
    """The first column that is not significantly behind the column of the best mean, question by question."""
    behind = found[:, [int(found.mean(axis=0).argmax())]] - found
    error = behind.std(axis=0, ddof=1) / np.sqrt(len(found))
    return int(np.flatnonzero(behind.mean(axis=0) <= _SIGNIFICANT * error)[0])
