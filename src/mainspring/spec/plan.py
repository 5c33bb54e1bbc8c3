"""The `Plan`: how a model will run on a cluster, and what it is expected to cost. Versioned JSON on disk.

Mesh axes are the field's: `dp` replicates, `fsdp` shards parameters, gradients and optimiser state, `tp` splits
matrices, `pp` splits layers, `cp` splits the sequence, `ep` splits experts. The batch is shared over `dp`, `fsdp` and
`ep`; to the dense parts of a model `ep` is one more data axis. Ranks count row-major over `AXES`. A plan is exact
enough to execute: `train` reads nothing else to decide how to build process groups.
"""

import itertools
from collections.abc import Mapping
from typing import Any, Literal

from mainspring.spec._spec import spec
from mainspring.spec.hardware import Operation

Precision = Literal["fp32", "bf16"]
Recompute = Literal["none", "selective", "full"]
Schedule = Literal["1f1b", "gpipe", "interleaved", "zero_bubble", "zbv", "dualpipev"]
Zero = Literal[0, 1, 2, 3]
Objective = Literal["time", "cost", "energy"]
AXES = ("pp", "dp", "fsdp", "cp", "ep", "tp")
FORMAT = 2
V_SHAPED: frozenset[Schedule] = frozenset({"zbv", "dualpipev"})


@spec
class Mesh:
    """Degrees of the mesh axes, outermost first in `AXES`; their product is the number of ranks."""

    pp: int = 1
    dp: int = 1
    fsdp: int = 1
    cp: int = 1
    ep: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        for axis in AXES:
            if getattr(self, axis) < 1:
                raise ValueError(f"mesh axis {axis} must be at least 1, got {getattr(self, axis)}")

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.pp * self.dp * self.fsdp * self.cp * self.ep * self.tp

    @property
    def replicas(self) -> int:
        """Number of data replicas: parts that the global batch is cut into."""
        return self.dp * self.fsdp * self.ep

    @property
    def shards(self) -> int:
        """Number of ranks that ZeRO spreads a replica's state over: `fsdp` and `cp` together."""
        return self.fsdp * self.cp

    @property
    def label(self) -> str:
        """The axes above 1, e.g. `dp2 x fsdp4`; `single` on one rank."""
        used = [f"{axis}{getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        return " x ".join(used) or "single"


@spec
class MemoryEstimate:
    """Bytes on the fullest rank, by what they hold."""

    params_bytes: int
    grads_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    gathered_bytes: int = 0
    runtime_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Sum of all parts."""
        return (
            self.params_bytes
            + self.grads_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.logits_bytes
            + self.gathered_bytes
            + self.runtime_bytes
        )


@spec
class Stage:
    """A virtual pipeline stage: which of the model's blocks it holds, on which ranks, and what it is expected to need.

    `blocks` of them from the `first` on, counting repeats one by one in the model's order. `microbatches[r]` is how
    many micro-batches data replica `r` runs per step: uneven on mixed devices, the same in all stages of a plan.
    `forward_s[r]` and `backward_s[r]` are the seconds of one micro-batch of replica `r`, communication within the
    stage included; a zero-bubble schedule may put `weight_s` of the latter off. `send_s` is that of handing one on,
    and `memory` the fullest rank's part for this stage, whose smallest device has `device_memory_bytes`. Where replicas
    are of several kinds, `devices[r]` is that of replica `r` and `memories_bytes[r]` its memory.
    """

    blocks: int
    device: str
    ranks: tuple[int, ...]
    microbatches: tuple[int, ...]
    first: int = 0
    recompute: Recompute = "none"
    forward_s: tuple[float, ...] = ()
    backward_s: tuple[float, ...] = ()
    weight_s: tuple[float, ...] = ()
    send_s: float = 0.0
    memory: MemoryEstimate | None = None
    device_memory_bytes: int = 0
    devices: tuple[str, ...] = ()
    memories_bytes: tuple[int, ...] = ()

    def on(self, replica: int) -> tuple[str, int]:
        """The device that data replica `replica` runs this stage on, and its bytes of memory."""
        if not self.devices:
            return self.device, self.device_memory_bytes
        return self.devices[replica], self.memories_bytes[replica]


@spec
class Traffic:
    """Collectives of one kind that one rank of stage `stage`, of the slowest replica, takes part in during a step.

    `group_ranks` members, `messages` calls, `payload_bytes` in all calls together: of the whole tensor for a gather,
    of the input for the others. `exposed_s` of the `seconds` are not hidden behind arithmetic.
    """

    stage: int
    axis: str
    operation: Operation
    group_ranks: int
    messages: int
    payload_bytes: int
    seconds: float
    exposed_s: float


@spec
class TimeEstimate:
    """Seconds of one optimiser step, by where they go. Hidden communication is not counted."""

    compute_s: float
    communication_s: float
    bubble_s: float
    optimizer_s: float

    @property
    def step_s(self) -> float:
        """Wall time of one optimiser step."""
        return self.compute_s + self.communication_s + self.bubble_s + self.optimizer_s


@spec
class Rejected:
    """An alternative the search looked at, and why it lost."""

    mesh: Mesh
    reason: str
    step_s: float | None = None


@spec
class Hints:
    """What the user wants of a plan; 0 and None leave a choice to the search.

    `copies` 1 keeps micro-batches whole, 2 cuts each in two. `replicate` and `split` are patterns over block names
    (`*` matches anything): blocks that tensor parallelism must leave whole, and blocks that it must divide whenever
    `tp` is above 1. `memory_share` is how much of a device's memory may be planned for.
    """

    pp: int = 0
    dp: int = 0
    fsdp: int = 0
    cp: int = 0
    ep: int = 0
    tp: int = 0
    chunks: int = 0
    copies: int = 0
    zero: Zero | None = None
    schedule: Schedule | None = None
    recompute: Recompute | None = None
    sequence_parallel: bool | None = None
    replicate: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    memory_share: float = 0.9

    def __post_init__(self) -> None:
        for axis in (*AXES, "chunks", "copies"):
            if getattr(self, axis) < 0:
                raise ValueError(f"{axis} must be at least 1, or 0 for any, got {getattr(self, axis)}")
        if self.copies > 2:
            raise ValueError(f"copies must be 1 or 2, or 0 for any, got {self.copies}")
        if not 0 < self.memory_share <= 1:
            raise ValueError(f"memory_share must be above 0 and at most 1, got {self.memory_share}")


@spec
class Plan:
    """One way to train `model` on `cluster`.

    `global_batch` and `microbatch` count sequences of `seq_len` tokens. `stages` are in the model's order; with more
    of them than `mesh.pp`, each rank holds several (`chunks`): stage `i` is on pipeline rank `i % pp`, or on a V there
    and back where the schedule is `zbv` or `dualpipev`. `zero` says what each rank holds only its part of, spread over
    `mesh.shards` ranks: 1 the optimiser's state; 2 parameters too, gathered once a step, and gradients, which are whole
    while several micro-batches add up; 3 gradients always, and parameters gathered for each pass. `replicate` names the
    blocks that `tp` leaves whole; `sequence_parallel` cuts along the sequence what lies between those that it divides.
    Each micro-batch is cut into `copies`, whose passes take turns so that one computes while the other's sums travel.
    `traffic` is what each stage's ranks send in a step. `nodes` names the machine each rank is counted on;
    `accelerators` is how many each rank holds, 0 on host CPUs; `calibrations` are what its figures were measured by.
    Of `device_memory_bytes` a rank may fill `memory_share`. `time` is that of the rank that the step waits for.
    """

    model: str
    cluster: str
    mesh: Mesh
    stages: tuple[Stage, ...]
    global_batch: int
    microbatch: int
    seq_len: int
    precision: Precision
    memory: MemoryEstimate
    device_memory_bytes: int
    time: TimeEstimate
    steps: int
    watts: float
    price_usd_per_hour: float
    mfu: float
    objective: Objective
    zero: Zero = 0
    schedule: Schedule = "1f1b"
    sequence_parallel: bool = False
    copies: int = 1
    replicate: tuple[str, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    nodes: tuple[str, ...] = ()
    accelerators: int = 0
    calibrations: tuple[str, ...] = ()
    memory_share: float = 0.9
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"the plan has format {self.format}, this version reads {FORMAT}: plan again")
        if (self.mesh.fsdp > 1 and not self.zero) or (self.zero and self.mesh.shards == 1):
            raise ValueError(f"zero {self.zero} does not go with {self.mesh.label}: fsdp says over how many ranks")
        if len(self.stages) % self.mesh.pp:
            raise ValueError(f"{len(self.stages)} stages cannot be shared evenly by {self.mesh.pp} pipeline ranks")

    @staticmethod
    def upgraded(document: Mapping[str, Any]) -> Mapping[str, Any]:
        """`document` as this version writes it: format 1 had one stage and said ZeRO-2 and ZeRO-3 by a flag."""
        if document.get("format") != 1:
            return document
        changed = dict(document)
        regather, recompute = changed.pop("reshard_after_forward"), changed.pop("recompute")
        sharded = changed["mesh"].get("fsdp", 1) > 1
        changed["zero"] = (3 if regather else 2) if sharded else 0
        changed["stages"] = [stage | {"recompute": recompute} for stage in changed["stages"]]
        return changed | {"format": FORMAT}

    @property
    def chunks(self) -> int:
        """How many stages each pipeline rank holds."""
        return len(self.stages) // self.mesh.pp

    @property
    def microbatches(self) -> tuple[int, ...]:
        """Micro-batches of each data replica."""
        return self.stages[0].microbatches

    @property
    def recompute(self) -> str:
        """What is recomputed in backward, or `mixed` where stages differ."""
        kinds = {stage.recompute for stage in self.stages}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    def pipeline_rank(self, stage: int) -> int:
        """Which pipeline rank holds stage number `stage`."""
        turn, place = divmod(stage, self.mesh.pp)
        return self.mesh.pp - 1 - place if turn % 2 and self.schedule in V_SHAPED else place

    @property
    def spare_bytes(self) -> int:
        """What the fullest rank may fill and does not."""
        return int(self.memory_share * self.device_memory_bytes) - self.memory.total_bytes

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of the whole job."""
        return self.global_batch * self.seq_len / self.time.step_s

    @property
    def seconds(self) -> float:
        """Expected wall time of all steps."""
        return self.steps * self.time.step_s

    @property
    def energy_joules(self) -> float:
        """Expected energy of all steps."""
        return self.seconds * self.watts

    @property
    def price_usd(self) -> float:
        """Expected price of all steps."""
        return self.seconds / 3600 * self.price_usd_per_hour

    @property
    def sharding(self) -> str:
        """How the state is spread, in the field's words."""
        if self.zero:
            return f"ZeRO-{self.zero}"
        return "replicated" if self.mesh.replicas > 1 else "whole"

    def _pipeline(self) -> list[str]:
        """How the blocks are spread over stages, when they are."""
        if len(self.stages) == 1:
            return []
        blocks = ", ".join(_runs([stage.blocks for stage in self.stages]))
        return [f"pipeline  {len(self.stages)} stages on {self.mesh.pp} ranks, {self.schedule}: {blocks} blocks"]

    def __str__(self) -> str:
        memory, time = self.memory, self.time
        used = memory.total_bytes / self.device_memory_bytes
        machines = len(set(self.nodes))
        world = self.mesh.world
        kinds = " | ".join(dict.fromkeys(stage.device for stage in self.stages))
        where = f"{_count(world, 'rank')} on {_count(machines, 'node')} of {kinds}"
        price = f", {readable_usd(self.price_usd)}" if self.price_usd_per_hour else ""
        lines = [
            f"plan      {self.model} on {self.cluster}: {self.mesh.label} ({self.sharding}), {self.precision}, "
            f"recompute {self.recompute}, chosen for {self.objective}",
            f"where     {where}" + (f", measured by {', '.join(self.calibrations)}" if self.calibrations else ""),
            f"batch     {self.global_batch} x {self.seq_len} tokens: micro-batches of {self.microbatch}, "
            f"{_shares(self.microbatches)}" + (f", in {self.copies} copies" if self.copies > 1 else ""),
            *self._pipeline(),
            f"memory    {readable_bytes(memory.total_bytes)} of {readable_bytes(self.device_memory_bytes)} a rank "
            f"({used:.0%}): "
            + _parts(
                parameters=memory.params_bytes,
                gradients=memory.grads_bytes,
                optimiser=memory.optimizer_bytes,
                activations=memory.activations_bytes,
                logits=memory.logits_bytes,
                gathered=memory.gathered_bytes,
                runtime=memory.runtime_bytes,
            ),
            f"time      {time.step_s:.3g} s a step: compute {time.compute_s:.3g}, communication "
            f"{time.communication_s:.3g}, waiting {time.bubble_s:.3g}, optimiser {time.optimizer_s:.3g}",
            f"in all    {self.steps} steps in {_duration(self.seconds)}, {self.tokens_per_s:,.0f} tokens/s, "
            f"MFU {self.mfu:.1%}, {self.watts:,.0f} W, {self.energy_joules / 3.6e6:.3g} kWh{price}",
        ]
        lines += [f"not       {other.mesh.label}: {other.reason}" for other in self.rejected]
        return "\n".join(lines)


def readable_bytes(count: float) -> str:
    """`count` in the binary unit that leaves it below 1024, with three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.3g} {unit}" if abs(count) < 999.5 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.3g} TiB" if abs(count) < 999.5 else f"{count:.0f} TiB"


def readable_usd(amount: float) -> str:
    """`amount` in cents, or with two digits where it is less than a few."""
    return f"{amount:.2f} USD" if amount >= 0.1 or not amount else f"{amount:.2g} USD"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _parts(**parts: int) -> str:
    """The parts that are not nothing."""
    return ", ".join(f"{name} {readable_bytes(size)}" for name, size in parts.items() if size)


def _shares(counts: tuple[int, ...]) -> str:
    """`4 a step on each of 8 replicas`, or the groups when devices differ."""
    sizes = sorted(set(counts), reverse=True)
    if len(sizes) == 1:
        return f"{sizes[0]} a step" + (f" on each of {len(counts)} replicas" if len(counts) > 1 else "")
    return " and ".join(f"{size} a step on {counts.count(size)}" for size in sizes) + " replicas"


def _runs(numbers: list[int]) -> list[str]:
    """Equal neighbours together: `3 x 5`, `4`."""
    groups = [(number, len(list(same))) for number, same in itertools.groupby(numbers)]
    return [f"{times} x {number}" if times > 1 else str(number) for number, times in groups]


def _duration(seconds: float) -> str:
    """The largest unit that leaves at least two of it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
