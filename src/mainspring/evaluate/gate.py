"""May it be published: every criterion against the report, with the two numbers.

Pure and strict: a score that was not measured, or is not a number, fails its criterion; a gate without criteria is
a mistake, not a pass. Perplexity alone cannot gate a compressed model (a damaged one can score better by chance),
so `FIDELITY` asks for the KL divergence and top-1 agreement with the original as well.
"""

from collections.abc import Sequence
from math import isfinite

from mainspring.spec import Criterion, GateDecision, Report, SpecError

GENERATOR = (
    Criterion(name="bits_per_byte_minus_ngram", at_most=0.0),
    Criterion(name="bits_per_byte", at_most=1.2),
)
"""An assistant may let this model write: it must beat an n-gram model of the same training text, and predict held-out
text about as well as models whose sentences make sense do (GPT-2 reads web text at about one bit per byte)."""

RETRIEVAL = (Criterion(name="recall@5", at_least=0.6), Criterion(name="mrr", at_least=0.4))
"""An index finds what its own documents say."""

FIDELITY = (
    Criterion(name="kl_mean", at_most=0.02),
    Criterion(name="top1_agreement", at_least=0.95),
    Criterion(name="bits_per_byte_minus_original", at_most=0.02),
)
"""A compressed model may stand in for its original."""


def criteria_for(report: Report) -> tuple[Criterion, ...]:
    """What the report's subject is judged by: an index, a model, and a model that was measured beside its original."""
    if report.subject.startswith("index:"):
        return RETRIEVAL
    return GENERATOR + FIDELITY if report.score("kl_mean") else GENERATOR


def decide(report: Report, criteria: Sequence[Criterion]) -> GateDecision:
    """Judge `report` by `criteria`; `reasons` has one line per criterion, in order, met or not."""
    if not criteria:
        raise SpecError("a gate needs at least one criterion", hint="name a score and at_least or at_most")
    for criterion in criteria:
        if criterion.at_least is None and criterion.at_most is None:
            raise SpecError(f"criterion {criterion.name!r} has no limit", hint="give at_least or at_most")
    judged = [_judge(report, criterion) for criterion in criteria]
    verdict = "pass" if all(met for met, _ in judged) else "fail"
    return GateDecision(verdict=verdict, reasons=tuple(reason for _, reason in judged))


def _judge(report: Report, criterion: Criterion) -> tuple[bool, str]:
    score = report.score(criterion.name)
    if score is None:
        measured = ", ".join(found.name for found in report.scores) or "nothing"
        return False, f"{criterion.name}: not measured (measured: {measured})"
    if not isfinite(score.value):
        return False, f"{criterion.name}: {score.value} is not a number that can be judged"
    low = criterion.at_least is None or score.value >= criterion.at_least
    high = criterion.at_most is None or score.value <= criterion.at_most
    asked = " and ".join(
        f"{words} {limit:.4g}"
        for words, limit in (("at least", criterion.at_least), ("at most", criterion.at_most))
        if limit is not None
    )
    met = low and high
    return met, f"{criterion.name}: {score.value:.4g}, asked {asked}: {'met' if met else 'not met'}"
