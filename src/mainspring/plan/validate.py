"""How far the cost model is off: predictions against published runs, by row, by source and overall.

Three questions: how large the error is; whether memory is ever underestimated, which would end a job; and whether of
several published ways to do one job the fastest is ranked first. The held-out error answers a fourth, whether the
constants were fitted to noise: for each source the one constant that scales compute is fitted on all other sources.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from mainspring.plan.published import Machine, Run, Unmodelled, run_of
from mainspring.spec import SpecError, spec

COLUMNS = [
    "id",
    "source",
    "model",
    "L",
    "h",
    "heads",
    "kv",
    "ffn",
    "gated",
    "vocab",
    "seq",
    "gpu",
    "n_gpus",
    "tp",
    "pp",
    "vpp",
    "cp",
    "ep",
    "zero",
    "mbs",
    "gbs",
    "recompute",
    "sp",
    "flash",
    "dtype",
    "iter_s",
    "note",
]
FAIR_TIE = 0.01  # published times that differ by less are no ranking
SCALES = tuple(0.7 + 0.01 * step for step in range(61))


@spec
class RowError:
    """One row's prediction. Errors are relative: 0.05 is 5 % too much; memory is None where none was published."""

    id: str
    source: str
    stack: str
    measured_s: float
    predicted_s: float
    error: float
    compute_s: float
    communication_s: float
    bubble_s: float
    memory_error: float | None = None


@spec
class SourceError:
    """Errors of one source; `held_out` is the mean absolute error with constants that have not seen it."""

    source: str
    rows: int
    mean_absolute: float
    bias: float
    largest: float
    held_out: float


@spec
class Ranking:
    """Published alternatives for one job, fastest first, and the one predicted to be fastest."""

    ids: tuple[str, ...]
    predicted: str
    right: bool


@spec
class Excluded:
    """Rows left out for one reason."""

    reason: str
    ids: tuple[str, ...]


@spec
class Validation:
    """Everything `mainspring plan validate` found."""

    rows: tuple[RowError, ...]
    sources: tuple[SourceError, ...]
    rankings: tuple[Ranking, ...]
    excluded: tuple[Excluded, ...]
    mean_absolute: float
    median_absolute: float
    held_out: float
    rank_correlation: float
    worst_memory_underestimate: float
    ranked_right: float


def validate(rows: Sequence[Mapping[str, str]], machine: Machine) -> Validation:
    """Predictions for `rows` against what was measured; `machine` finds a device and its link by a row's name for it.

    Raises `SpecError` when a column is missing or no row can be modelled.
    """
    for name in COLUMNS:
        if rows and name not in rows[0]:
            raise SpecError(f"the table has no column {name}", hint="needed: " + " ".join(COLUMNS))
    runs, excluded = _read(rows, machine)
    if not runs:
        raise SpecError("no row of the table can be modelled", hint="; ".join(e.reason for e in excluded))
    errors = [_row_error(run) for run in runs]
    held_out = _held_out(runs, errors)
    sources = tuple(
        _source_error(source, [e for e in errors if e.source == source], held_out[source])
        for source in dict.fromkeys(e.source for e in errors)
    )
    rankings = tuple(_rankings(runs, errors))
    absolute = [abs(e.error) for e in errors]
    memory = [e.memory_error for e in errors if e.memory_error is not None]
    return Validation(
        rows=tuple(errors),
        sources=sources,
        rankings=rankings,
        excluded=excluded,
        mean_absolute=statistics.mean(absolute),
        median_absolute=statistics.median(absolute),
        held_out=sum(s.held_out * s.rows for s in sources) / len(errors),
        rank_correlation=rank_correlation([e.measured_s for e in errors], [e.predicted_s for e in errors]),
        worst_memory_underestimate=max(0.0, -min(memory, default=0.0)),
        ranked_right=statistics.mean(r.right for r in rankings) if rankings else 1.0,
    )


def _read(rows: Iterable[Mapping[str, str]], machine: Machine) -> tuple[list[Run], tuple[Excluded, ...]]:
    runs: list[Run] = []
    reasons: dict[str, list[str]] = {}
    for row in rows:
        try:
            runs.append(run_of(row, machine))
        except SpecError as error:
            reasons.setdefault(str(error) if isinstance(error, Unmodelled) else f"{error}", []).append(row["id"])
    return runs, tuple(Excluded(reason=reason, ids=tuple(ids)) for reason, ids in reasons.items())


def _row_error(run: Run) -> RowError:
    found = run.predict()
    time, memory = found.time, found.memory[found.tightest].total_bytes
    return RowError(
        id=run.id,
        source=run.source,
        stack=run.stack.name,
        measured_s=run.measured_s,
        predicted_s=time.step_s,
        error=time.step_s / run.measured_s - 1,
        compute_s=time.compute_s,
        communication_s=time.communication_s,
        bubble_s=time.bubble_s,
        memory_error=memory / run.memory_bytes - 1 if run.memory_bytes else None,
    )


def _source_error(source: str, errors: Sequence[RowError], held_out: float) -> SourceError:
    values = [each.error for each in errors]
    return SourceError(
        source=source,
        rows=len(values),
        mean_absolute=statistics.mean(map(abs, values)),
        bias=statistics.mean(values),
        largest=max(values, key=abs),
        held_out=held_out,
    )


def _held_out(runs: Sequence[Run], errors: Sequence[RowError]) -> dict[str, float]:
    """For each source its error when the share of peak that its devices reach is fitted on the other sources.

    Constants are fitted by family of devices; a family that only one source has keeps the datasheet's typical share.
    """
    found: dict[str, float] = {}
    families = {run.id: family(run) for run in runs}
    for source in dict.fromkeys(error.source for error in errors):
        own = [error for error in errors if error.source == source]
        scales: dict[str, float] = {}
        for name in {families[error.id] for error in own}:
            others = [e for e in errors if e.source != source and families[e.id] == name]
            scales[name] = _fitted(others)
        found[source] = statistics.mean(abs(_scaled(error, scales[families[error.id]])) for error in own)
    return found


def family(run: Run) -> str:
    """The generation of a run's device: `A100`."""
    return run.layout.columns[0].ranks[0].device.name.split("-")[0]


def _fitted(errors: Sequence[RowError]) -> float:
    """The scale of compute that makes the mean error of the sources least, each source counting once."""
    if not errors:
        return 1.0
    by_source: dict[str, list[RowError]] = {}
    for error in errors:
        by_source.setdefault(error.source, []).append(error)

    def badness(scale: float) -> float:
        return statistics.mean(
            statistics.mean(abs(_scaled(error, scale)) for error in each) for each in by_source.values()
        )

    return min(SCALES, key=badness)


def _scaled(error: RowError, scale: float) -> float:
    return (error.predicted_s + (scale - 1) * (error.compute_s + error.bubble_s)) / error.measured_s - 1


def _rankings(runs: Sequence[Run], errors: Sequence[RowError]) -> Iterable[Ranking]:
    """Alternatives: one model trained with the same batch on the same devices by the same source, several ways.

    Times are per sequence, so that batches of different size compare too.
    """
    groups: dict[tuple[object, ...], list[tuple[float, float, str]]] = {}
    for run, error in zip(runs, errors, strict=True):
        device = run.layout.columns[0].ranks[0].device.name
        key = (run.source, run.model.name, run.model.seq_len, device, run.choice.mesh.world)
        each = (error.measured_s / run.global_batch, error.predicted_s / run.global_batch, run.id)
        groups.setdefault(key, []).append(each)
    for members in groups.values():
        members.sort()
        if len(members) < 2 or members[1][0] / members[0][0] < 1 + FAIR_TIE:
            continue
        predicted = min(members, key=lambda each: each[1])[2]
        yield Ranking(ids=tuple(each[2] for each in members), predicted=predicted, right=predicted == members[0][2])


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: 1 when both put the rows in the same order."""
    n = len(first)
    if n < 2:
        return 1.0
    places = [_places(values) for values in (first, second)]
    squares = sum((a - b) ** 2 for a, b in zip(*places, strict=True))
    return 1 - 6 * squares / (n * (n * n - 1))


def _places(values: Sequence[float]) -> list[int]:
    order = sorted(range(len(values)), key=values.__getitem__)
    places = [0] * len(values)
    for place, index in enumerate(order):
        places[index] = place
    return places
