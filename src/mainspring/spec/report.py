"""Evaluation nouns: scores, reports and the gate's decision."""

from typing import Literal

from mainspring.spec._spec import spec


@spec
class Score:
    """One measured number with its 95 % interval, and the baseline it is held against where there is one."""

    name: str
    value: float
    unit: str
    higher_is_better: bool
    low: float | None = None
    high: float | None = None
    samples: int = 0
    baseline: float | None = None
    baseline_name: str = ""


@spec
class Criterion:
    """One rule of a gate: the score `name` must be `at_least` / `at_most` the limit."""

    name: str
    at_least: float | None = None
    at_most: float | None = None


@spec
class Report:
    """The evaluation of one artifact on one snapshot."""

    subject: str
    snapshot: str
    scores: tuple[Score, ...]
    notes: tuple[str, ...] = ()

    def score(self, name: str) -> Score | None:
        """The score called `name`, or None when it was not measured."""
        return next((score for score in self.scores if score.name == name), None)


@spec
class GateDecision:
    """Whether something may be published, rule by rule. A score that was not measured fails its rule."""

    verdict: Literal["pass", "fail"]
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every criterion was met."""
        return self.verdict == "pass"


@spec
class Check:
    """One thing `mainspring doctor` looked at; `detail` says what to do when it is bad."""

    name: str
    state: Literal["ok", "bad"]
    detail: str
