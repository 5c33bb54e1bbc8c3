"""The cost model's constants for one machine, fitted to what was measured on it.

Of a host ranks have a share each, and are measured as they train: all at once, with the threads they have then. Every
prediction is linear in the reciprocals of a device's rates and of a link's, so that the constants follow from a
fit of relative errors: their absolute values, not their squares, so that a measurement that was disturbed counts no
more than another. None of the constants may be negative, and with five unknowns every set that could be zero is tried.
The fit asks the cost model itself what each constant contributes, so the two can never speak of different
formulas.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mainspring.plan import blocks, network
from mainspring.plan.blocks import Cut, Rank
from mainspring.plan.estimate import Choice, Estimator
from mainspring.plan.network import COLLECTIVE_S, Fabric, Ring
from mainspring.plan.offers import Offer, Seat, kinds
from mainspring.plan.slices import ADAM_TRAFFIC_BYTES
from mainspring.plan.stack import TORCH, Stack
from mainspring.spec import (
    Cluster,
    Device,
    Link,
    Mesh,
    ModelSpec,
    Node,
    Operation,
    OperationCost,
    Plan,
    Precision,
    Sample,
    SpecError,
)

NEVER = 1e30  # a rate at which nothing takes any time
LEAST_SHARE = 1e-12
REWEIGHTED = 30
HOST_FIGURES = ("message_s", "unit_s", "handover_s")
LEAST_MISS = 0.1  # below it squares count: this much is noise


@dataclass(frozen=True, slots=True)
class Passed:
    """Seconds of forward and backward of `rows` sequences through `model` on a rank with `share` of the device."""

    model: ModelSpec
    rows: int
    precision: Precision
    seconds: float
    share: float = 1.0

    @property
    def what(self) -> str:
        """For people."""
        layer = max(self.model.blocks, key=lambda block: block.count)
        width = round(blocks.stream_bytes(self.model) / self.model.element_bytes)
        size = f"{layer.count} layers {width} wide, {self.rows} x {self.model.seq_len} tokens"
        return f"forward and backward, {size}, {self.precision}"


@dataclass(frozen=True, slots=True)
class Updated:
    """Seconds of one update of `params` parameters by Adam on a rank with `share` of the device."""

    params: int
    seconds: float
    share: float = 1.0

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


@dataclass(frozen=True, slots=True)
class Stepped:
    """Seconds that a rank of `plan` on one host computes and exchanges in a step, on average over the ranks."""

    model: ModelSpec
    plan: Plan
    seconds: float

    @property
    def what(self) -> str:
        """For people."""
        count = max(self.plan.microbatches)
        along = ", along the sequence" if self.plan.sequence_parallel else ""
        return f"a step of {self.plan.mesh.label} ({self.plan.sharding}{along}), {count} micro-batches"

    def predicted_s(self, device: Device, link: Link, *, cores: int) -> float:
        """The same for ranks that share `device`."""
        plan = self.plan
        node = Node(name="host", devices=(device,), link=link, cpu_cores=cores, memory_bytes=device.memory_bytes)
        cluster = Cluster(name="host", nodes=(node,), link=link)
        offer = Offer(seats=(Seat(kinds(cluster)[0], plan.mesh.world),), replicas=(plan.mesh.replicas,))
        ends = (stage.first + stage.blocks for stage in plan.stages)
        cut = Cut(
            rows=plan.microbatch,
            seq_len=plan.seq_len,
            precision=plan.precision,
            recompute=plan.stages[0].recompute,
            tp=plan.mesh.tp,
            sequence_parallel=plan.sequence_parallel,
            cp=plan.mesh.cp,
            ep=plan.mesh.ep,
        )
        choice = Choice(mesh=plan.mesh, cut=cut, zero=plan.zero, schedule=plan.schedule, cuts=(0, *ends))
        found = Estimator(self.model, global_batch=plan.global_batch)(choice, offer.layout(cluster, plan.mesh.pp))
        assert found is not None, "a plan that was run can be run"
        return found.time.compute_s + found.time.communication_s


def fit_device(
    device: Device, passed: Sequence[Passed], updated: Sequence[Updated], *, stack: Stack = TORCH
) -> tuple[Device, tuple[Sample, ...]]:
    """`device` with the rates that explain the measurements best, and each measurement beside its prediction.

    A precision that was not measured keeps its peak. Raises `SpecError` when there are too few measurements.
    """
    exact = [each for each in passed if each.precision == "fp32"]
    if len(exact) + len(updated) < 5:
        raise SpecError(f"{len(exact) + len(updated)} measurements in fp32 are too few to fit 5 figures")
    rows: list[tuple[list[float], float]] = []
    for each in exact:
        product, attention, moved, activation, overhead = (_pass_s(unit, each, stack) for unit in _UNITS)
        rows.append(([product, attention, moved - activation, activation, overhead], each.seconds))
    rows += [([0.0, 0.0, ADAM_TRAFFIC_BYTES * each.params / each.share, 0.0, 0.0], each.seconds) for each in updated]
    product, attention, byte, activation, overhead = _nonnegative(rows)
    peak = max(device.fp32_flops_per_s, 1 / product if product else 0.0)
    width = 1 / byte if byte else device.memory_bytes_per_s
    found = replace(
        device,
        fp32_flops_per_s=peak,
        matmul_share=min(1.0, 1 / (product * peak)) if product else 1.0,
        attention_share=min(1.0, 1 / (attention * peak)) if attention else 1.0,
        memory_bytes_per_s=width,
        activation_share=min(1.0, 1 / (activation * width)) if activation else 1.0,
        block_overhead_s=max(overhead, 1 / NEVER),
    )
    found = replace(found, bf16_flops_per_s=_narrow_peak(found, passed, stack))
    samples = [_sample(each, _pass_s(found, each, stack)) for each in passed]
    samples += [_sample(each, ADAM_TRAFFIC_BYTES * each.params / each.share / width) for each in updated]
    return found, tuple(samples)


def fit_link(exchanged: Sequence[Exchanged], *, name: str) -> tuple[Link, tuple[Sample, ...]]:
    """The link that explains the measurements best, and each measurement beside its prediction.

    Its rates are those of all processes together: each of n that share it is counted on an n-th. Each operation has its
    own, and where it could not be told the common one counts.
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
    operations = dict.fromkeys(each.operation for each in exchanged)
    costs = [_cost_of([each for each in exchanged if each.operation == operation]) for operation in operations]
    link = Link(name="fitted", bytes_per_s=1 / byte, latency_s=latency, costs=tuple(cost for cost in costs if cost))
    samples = [_sample(each, _predicted_s(each, link)) for each in exchanged]
    ranks = max(each.ranks for each in exchanged)
    shared = tuple(replace(cost, bytes_per_s=ranks * cost.bytes_per_s) for cost in link.costs)
    return Link(name=name, bytes_per_s=ranks / byte, latency_s=latency, costs=shared), tuple(samples)


def _cost_of(exchanged: Sequence[Exchanged]) -> OperationCost | None:
    """Latency and rate of one operation; None when its measurements do not grow with their size."""
    operation = exchanged[0].operation

    def priced(each: Exchanged, latency_s: float, bytes_per_s: float) -> float:
        cost = OperationCost(operation=operation, bytes_per_s=bytes_per_s, latency_s=latency_s)
        return _predicted_s(each, Link(name="fitted", bytes_per_s=NEVER, latency_s=0.0, costs=(cost,)))

    rows = [([priced(each, 1.0, NEVER), priced(each, 0.0, 1.0)], each.seconds) for each in exchanged]
    latency, byte = _nonnegative(rows)
    return OperationCost(operation=operation, bytes_per_s=1 / byte, latency_s=latency) if byte else None


def fit_host(
    device: Device, link: Link, stepped: Sequence[Stepped], *, cores: int
) -> tuple[Device, tuple[Sample, ...]]:
    """`device`, a host of `cores`, with what training takes on it besides arithmetic and messages.

    Everything else is as fitted before: what was measured beyond it is shared among the three.
    """
    bare = replace(device, message_s=1 / NEVER, unit_s=1 / NEVER, handover_s=1 / NEVER)
    units = [replace(bare, **{name: 1.0}) for name in HOST_FIGURES]
    rows: list[tuple[list[float], float]] = []
    for each in stepped:
        least = each.predicted_s(bare, link, cores=cores)
        rows.append(([each.predicted_s(unit, link, cores=cores) - least for unit in units], each.seconds - least))
    found = _nonnegative(rows, [each.seconds for each in stepped])
    fitted = replace(device, **{name: max(s, 1 / NEVER) for name, s in zip(HOST_FIGURES, found, strict=True)})
    return fitted, tuple(_sample(each, each.predicted_s(fitted, link, cores=cores)) for each in stepped)


def _sample(each: Passed | Updated | Exchanged | Stepped, predicted_s: float) -> Sample:
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
    replace(_NOTHING, memory_bytes_per_s=_PEAK, activation_share=LEAST_SHARE),
    replace(_NOTHING, block_overhead_s=1.0),
)


def _pass_s(device: Device, each: Passed, stack: Stack) -> float:
    """Seconds of forward and backward on a share of `device`."""
    cut = Cut(rows=each.rows, seq_len=each.model.seq_len, precision=each.precision, recompute="none")
    rank = Rank(device=device, share=each.share, memory_bytes=device.memory_bytes)
    link = Link(name="none", bytes_per_s=NEVER, latency_s=0.0)
    rings = blocks.inner_rings(Fabric(per_node=1, inner=link, outer=link), Mesh())
    total = 0.0
    for block in each.model.blocks:
        spent = blocks.passes(each.model, block, cut, rank=rank, rings=rings, stack=stack)
        total += block.count * (spent.forward_s + spent.backward_s)
    return total


def _exchange_s(each: Exchanged, latency_s: float, bytes_per_s: float) -> float:
    """What latency and rate of a link contribute to one collective."""
    return _predicted_s(each, Link(name="fitted", bytes_per_s=bytes_per_s, latency_s=latency_s)) - _fixed_s(each)


def _fixed_s(each: Exchanged) -> float:
    return 0.0 if each.operation == "send" else COLLECTIVE_S * (2 if each.operation == "all_reduce" else 1)


def _predicted_s(each: Exchanged, link: Link) -> float:
    if each.operation == "send":
        return network.send_s(link, each.payload_bytes)
    ring = Ring(ranks=each.ranks, per_node=each.ranks, nodes=1, inner=link, outer=None)
    return _COLLECTIVES[each.operation](ring, each.payload_bytes)


_COLLECTIVES: dict[Operation, Callable[[Ring, float], float]] = {
    "all_reduce": network.reduce_s,
    "all_gather": network.gather_s,
    "reduce_scatter": network.scatter_s,
    "all_to_all": network.exchange_s,
}


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
