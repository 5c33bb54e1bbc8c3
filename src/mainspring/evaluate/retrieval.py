"""Does search find the document that answers: recall at k and mean reciprocal rank.

`search` maps a question to document ids, best first; a document that appears several times (once per chunk) counts
where it appears first. Arms are compared question by question (paired bootstrap, McNemar).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mainspring.evaluate.compare import interval, mcnemar, paired
from mainspring.evaluate.gate import RETRIEVAL, decide
from mainspring.evaluate.perplexity import score_of
from mainspring.evaluate.questions import Question
from mainspring.evaluate.report import Plot, publish_report
from mainspring.spec import Artifact, Progress, Report, Score, SpecError, silent
from mainspring.store import Store

Search = Callable[[str], Sequence[str]]
CUTOFFS = (1, 5, 10)
"""Recall is reported at these ranks; a search that returns fewer documents is judged on what it returns."""


def ranks(search: Search, questions: Sequence[Question], *, progress: Progress = silent) -> NDArray[np.int64]:
    """The rank (from 1) of each question's document among distinct documents; 0 when it was not found."""
    found = np.zeros(len(questions), dtype=np.int64)
    for at, question in enumerate(questions):
        distinct = list(dict.fromkeys(search(question.text)))
        if question.document in distinct:
            found[at] = distinct.index(question.document) + 1
        progress((at + 1) / len(questions), "asking")
    return found


def recall_mrr(search: Search, questions: Sequence[Question], *, progress: Progress = silent) -> tuple[Score, ...]:
    """Recall at 1, 5 and 10 and the mean reciprocal rank, each with its interval over questions."""
    return _scores(ranks(search, questions, progress=progress), prefix="")


def evaluate_retrieval(
    store: Store,
    subject: str,
    arms: Mapping[str, Search],
    questions: Sequence[Question],
    *,
    snapshot: str,
    run: str = "",
    progress: Progress = silent,
) -> tuple[Report, Artifact]:
    """Score the first of `arms` on `questions`, against the others; publishes a report.

    `subject` and `snapshot` are the references the report is about and the questions come from.
    """
    if not questions:
        raise SpecError(f"no questions could be made from {snapshot}", hint="retrieval needs documents with prose")
    found = {}
    for at, (name, search) in enumerate(arms.items()):
        found[name] = ranks(
            search, questions, progress=lambda done, text, at=at: progress((at + done) / len(arms), text)
        )
    first, *others = found
    scores = list(_scores(found[first], prefix=""))
    notes = [f"{len(questions)} questions made by rules from the documents themselves; they share words with them."]
    for other in others:
        scores += _scores(found[other], prefix=f"{other}:")
        difference = paired(_reciprocal(found[first]), _reciprocal(found[other]))
        scores.append(
            score_of(f"mrr_minus_{other}", difference, unit="MRR", samples=len(questions), higher_is_better=True)
        )
        chance = mcnemar(_within(found[first], 5), _within(found[other], 5))
        notes.append(f"{first} against {other}: recall at 5 differs with p = {chance:.2g} (McNemar, exact).")
    report = Report(subject=subject, snapshot=snapshot, scores=tuple(scores), notes=tuple(notes))
    curve = Plot(
        title="Share of questions whose document is among the first k",
        kind="line",
        x="k",
        y="recall",
        rows=tuple((name, float(k), float(_within(found[name], k).mean())) for name in found for k in range(1, 11)),
    )
    return report, publish_report(store, report, plots=(curve,), decision=decide(report, RETRIEVAL), run=run)


def _scores(found: NDArray[np.int64], *, prefix: str) -> tuple[Score, ...]:
    shares = [(f"{prefix}recall@{k}", _within(found, k).astype(float), "share") for k in CUTOFFS]
    named = [*shares, (f"{prefix}mrr", _reciprocal(found), "MRR")]
    return tuple(
        score_of(name, interval(values), unit=unit, samples=len(found), higher_is_better=True)
        for name, values, unit in named
    )


def _within(found: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    return (found > 0) & (found <= k)


def _reciprocal(found: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(found > 0, 1 / np.maximum(found, 1), 0.0)
