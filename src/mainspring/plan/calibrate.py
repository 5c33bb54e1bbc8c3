"""The cost model's constants for one machine, fitted to what was measured on it.

Every prediction is linear in the reciprocals of a device's rates and of a link's, so that the constants follow from a
fit of relative errors: their absolute values, not their squares, so that a measurement that was disturbed counts no
more than another. None of the constants may be negative, and with four unknowns every set that could be zero is tried.
The fit asks the cost model itself what each constant contributes, so the two can never speak of different
formulas.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mainspring.plan import blocks, network
from mainspring.plan.blocks import Cut, Rank
from mainspring.plan.estimate import ADAM_TRAFFIC_BYTES
from mainspring.plan.network import COLLECTIVE_S, Fabric, Ring
from mainspring.plan.stack import TORCH, Stack
from mainspring.spec import Device, Link, Mesh, ModelSpec, Operation, Precision, Sample, SpecError

NEVER = 1e30  # a rate at which nothing takes any time
LEAST_SHARE = 1e-12
REWEIGHTED = 30
LEAST_MISS = 0.1  # below it squares count: this much is noise


@dataclass(frozen=True, slots=True)
class Passed:
    """Seconds of forward and backward of `rows` sequences through all of `model` on one rank with the whole device."""

    model: ModelSpec
    rows: int
    precision: Precision
    seconds: float

    @property
    def what(self) -> str:
        """For people."""
        layer = max(self.model.blocks, key=lambda block: block.count)
        width = round(blocks.stream_bytes(self.model) / self.model.element_bytes)
        size = f"{layer.count} layers {width} wide, {self.rows} x {self.model.seq_len} tokens"
        return f"forward and backward, {size}, {self.precision}"


@dataclass(frozen=True, slots=True)
class Updated:
    """Seconds of one update of `params` parameters by Adam."""

    params: int
    seconds: float

    @property
    def what(self) -> str:
        """For people."""
        return f"optimiser, {self.params:,} parameters"


@dataclass(frozen=True, slots=True)
class Exchanged:
    """Seconds of one collective of `payload_bytes` among `ranks` processes of one machine."""

    operation: Operation
    ranks: int
    payload_bytes: int
    seconds: float

    @property
    def what(self) -> str:
        """For people."""
        return f"{self.operation} of {self.payload_bytes:,} bytes among {self.ranks}"


def fit_device(
    device: Device, passed: Sequence[Passed], updated: Sequence[Updated], *, stack: Stack = TORCH
) -> tuple[Device, tuple[Sample, ...]]:
    """`device` with the rates that explain the measurements best, and each measurement beside its prediction.

    A precision that was not measured keeps its peak. Raises `SpecError` when there are too few measurements.
    """
    exact = [each for each in passed if each.precision == "fp32"]
    if len(exact) + len(updated) < 4:
        raise SpecError(f"{len(exact) + len(updated)} measurements in fp32 are too few to fit 4 figures")
    rows = [([_pass_s(unit, each, stack) for unit in _UNITS], each.seconds) for each in exact]
    rows += [([0.0, 0.0, ADAM_TRAFFIC_BYTES * each.params, 0.0], each.seconds) for each in updated]
    product, attention, byte, overhead = _nonnegative(rows)
    peak = max(device.fp32_flops_per_s, 1 / product if product else 0.0)
    found = replace(
        device,
        fp32_flops_per_s=peak,
        matmul_share=min(1.0, 1 / (product * peak)) if product else 1.0,
        attention_share=min(1.0, 1 / (attention * peak)) if attention else 1.0,
        memory_bytes_per_s=1 / byte if byte else device.memory_bytes_per_s,
        block_overhead_s=max(overhead, 1 / NEVER),
    )
    found = replace(found, bf16_flops_per_s=_narrow_peak(found, passed, stack))
    samples = [_sample(each, _pass_s(found, each, stack)) for each in passed]
    samples += [_sample(each, ADAM_TRAFFIC_BYTES * each.params / found.memory_bytes_per_s) for each in updated]
    return found, tuple(samples)


def fit_link(exchanged: Sequence[Exchanged], *, name: str) -> tuple[Link, tuple[Sample, ...]]:
    """The link that explains the measurements best, and each measurement beside its prediction.

    Its rate is that of all processes together: each of n that share it is counted on an n-th.
    """
    rows = [
        ([_exchange_s(each, 1.0, NEVER), _exchange_s(each, 0.0, 1.0)], each.seconds - _fixed_s(each))
        for each in exchanged
    ]
    if len(rows) < 2:
        raise SpecError(f"{len(rows)} measurements are too few to fit a link")
    weights = [each.seconds for each in exchanged]
    latency, byte = _nonnegative(rows, weights)
    if not byte:
        raise SpecError("the measured exchanges do not grow with their size, so no rate follows from them")
    samples = [_sample(each, _predicted_s(each, latency, 1 / byte)) for each in exchanged]
    ranks = max(each.ranks for each in exchanged)
    return Link(name=name, bytes_per_s=ranks / byte, latency_s=latency), tuple(samples)


def _sample(each: Passed | Updated | Exchanged, predicted_s: float) -> Sample:
    return Sample(what=each.what, measured_s=each.seconds, predicted_s=predicted_s)


def _narrow_peak(device: Device, passed: Sequence[Passed], stack: Stack) -> float:
    """The bf16 peak at which products explain the measurements in bf16, all else as fitted."""
    narrow = [each for each in passed if each.precision == "bf16"]
    if not narrow:
        return device.bf16_flops_per_s
    fast, unit = replace(device, bf16_flops_per_s=NEVER), replace(device, bf16_flops_per_s=1.0)
    rows: list[tuple[list[float], float]] = []
    for each in narrow:
        rest = _pass_s(fast, each, stack)
        rows.append(([_pass_s(unit, each, stack) - rest], each.seconds - rest))
    (reciprocal,) = _nonnegative(rows, [each.seconds for each in narrow])
    return 1 / reciprocal if reciprocal else NEVER


_NOTHING = Device(
    vendor="unit",
    name="unit",
    memory_bytes=1,
    memory_bytes_per_s=NEVER,
    fp32_flops_per_s=NEVER,
    bf16_flops_per_s=NEVER,
    int8_ops_per_s=0.0,
    power_watts=0.0,
    matmul_share=1.0,
    attention_share=1.0,
    block_overhead_s=1 / NEVER,
)
"""A device on which nothing takes any time."""
_PEAK = 1 / LEAST_SHARE
_UNITS = (
    replace(_NOTHING, fp32_flops_per_s=_PEAK, matmul_share=LEAST_SHARE),
    replace(_NOTHING, fp32_flops_per_s=_PEAK, attention_share=LEAST_SHARE),
    replace(_NOTHING, memory_bytes_per_s=1.0),
    replace(_NOTHING, block_overhead_s=1.0),
)


def _pass_s(device: Device, each: Passed, stack: Stack) -> float:
    """Seconds of forward and backward on all of `device`."""
    cut = Cut(rows=each.rows, seq_len=each.model.seq_len, precision=each.precision, recompute="none")
    rank = Rank(device=device, share=1.0, memory_bytes=device.memory_bytes)
    link = Link(name="none", bytes_per_s=NEVER, latency_s=0.0)
    rings = blocks.inner_rings(Fabric(per_node=1, inner=link, outer=link), Mesh())
    total = 0.0
    for block in each.model.blocks:
        spent = blocks.passes(each.model, block, cut, rank=rank, rings=rings, stack=stack)
        total += block.count * (spent.forward_s + spent.backward_s)
    return total


def _exchange_s(each: Exchanged, latency_s: float, bytes_per_s: float) -> float:
    """What latency and rate contribute to one collective."""
    return _predicted_s(each, latency_s, bytes_per_s) - _fixed_s(each)


def _fixed_s(each: Exchanged) -> float:
    return 0.0 if each.operation == "send" else COLLECTIVE_S * (2 if each.operation == "all_reduce" else 1)


def _predicted_s(each: Exchanged, latency_s: float, bytes_per_s: float) -> float:
    link = Link(name="fitted", bytes_per_s=bytes_per_s, latency_s=latency_s)
    ring = Ring(ranks=each.ranks, per_node=each.ranks, nodes=1, inner=link, outer=None)
    if each.operation == "send":
        return network.send_s(link, each.payload_bytes)
    run: Callable[[Ring, float], float] = network.gather_s
    if each.operation == "all_reduce":
        run = network.reduce_s
    elif each.operation == "all_to_all":
        run = network.exchange_s
    return run(ring, each.payload_bytes)


def _nonnegative(rows: Sequence[tuple[list[float], float]], weights: Sequence[float] = ()) -> list[float]:
    """The factors, none negative, whose sums come nearest to the right sides in relative terms.

    `weights` are what an error is relative to, the right sides if not given. Least absolute errors by least squares
    that are weighed anew by what they left over (Schlossmacher 1973).
    """
    scales = list(weights) or [right for _, right in rows]
    scaled = [([value / s for value in left], right / s) for (left, right), s in zip(rows, scales, strict=True)]
    factors, trust = [0.0] * len(rows[0][0]), [1.0] * len(rows)
    for _ in range(REWEIGHTED):
        factors = _least_squares(
            [([value * t for value in left], right * t) for (left, right), t in zip(scaled, trust, strict=True)]
        )
        misses = [math.fsum(a * x for a, x in zip(left, factors, strict=True)) - right for left, right in scaled]
        trust = [1 / math.sqrt(max(abs(miss), LEAST_MISS)) for miss in misses]
    return factors


def _least_squares(rows: Sequence[tuple[list[float], float]]) -> list[float]:
    """Every subset of factors that could be above zero is solved for; the best that is feasible is the optimum."""
    count = len(rows[0][0])
    best, least = [0.0] * count, sum(right * right for _, right in rows)
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            solved = _solve(rows, chosen)
            if solved is None or min(solved) < 0:
                continue
            factors = [0.0] * count
            for place, value in zip(chosen, solved, strict=True):
                factors[place] = value
            miss = sum((math.fsum(a * x for a, x in zip(left, factors, strict=True)) - b) ** 2 for left, b in rows)
            if miss < least:
                best, least = factors, miss
    return best


def _solve(rows: Sequence[tuple[list[float], float]], chosen: Sequence[int]) -> list[float] | None:
    """Least squares by the normal equations in the `chosen` factors, scaled to one; None when they are singular."""
    norms = [math.sqrt(math.fsum(left[i] ** 2 for left, _ in rows)) for i in chosen]
    if not all(norms):
        return None
    columns = [[left[i] / norm for left, _ in rows] for i, norm in zip(chosen, norms, strict=True)]
    rights = [right for _, right in rows]
    matrix = [
        [*(math.fsum(map(float.__mul__, a, b)) for b in columns), math.fsum(map(float.__mul__, a, rights))]
        for a in columns
    ]
    size = len(chosen)
    for at in range(size):
        pivot = max(range(at, size), key=lambda row: abs(matrix[row][at]))
        if abs(matrix[pivot][at]) < 1e-12:
            return None
        matrix[at], matrix[pivot] = matrix[pivot], matrix[at]
        for row in range(size):
            if row != at:
                factor = matrix[row][at] / matrix[at][at]
                matrix[row] = [x - factor * y for x, y in zip(matrix[row], matrix[at], strict=True)]
    return [matrix[at][size] / matrix[at][at] / norm for at, norm in enumerate(norms)]
