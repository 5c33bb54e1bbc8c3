"""The gate: strict, total, and always with the two numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.evaluate.gate import FIDELITY, decide
from mainspring.spec import Criterion, Report, Score, SpecError


def report(**values: float) -> Report:
    scores = [Score(name=name, value=value, unit="", higher_is_better=True) for name, value in values.items()]
    return Report(subject="model:m@1", snapshot="dataset:d@1", scores=tuple(scores))


@given(st.floats(allow_nan=True), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_pass_means_that_the_number_is_inside_its_limits(value: float, low: float, high: float) -> None:
    decision = decide(report(x=value), [Criterion(name="x", at_least=low, at_most=high)])
    assert decision.passed == (low <= value <= high and abs(value) != float("inf"))
    assert len(decision.reasons) == 1


def test_a_score_that_was_not_measured_fails_and_says_what_was() -> None:
    decision = decide(report(mrr=0.9), [Criterion(name="recall@5", at_least=0.1)])
    assert not decision.passed
    assert decision.reasons == ("recall@5: not measured (measured: mrr)",)


def test_one_failing_rule_fails_the_gate_and_every_rule_is_reported() -> None:
    decision = decide(report(kl_mean=0.5, top1_agreement=0.99, bits_per_byte_minus_original=0.0), FIDELITY)
    assert not decision.passed
    assert decision.reasons[0] == "kl_mean: 0.5, asked at most 0.02: not met"
    assert decision.reasons[1] == "top1_agreement: 0.99, asked at least 0.95: met"
    assert len(decision.reasons) == 3


@pytest.mark.parametrize("criteria", [[], [Criterion(name="x")]])
def test_a_gate_that_asks_nothing_is_a_mistake(criteria: list[Criterion]) -> None:
    with pytest.raises(SpecError, match="criterion"):
        decide(report(x=1.0), criteria)
