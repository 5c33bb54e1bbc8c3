"""The `Plan`: how a model will run on a cluster, and what it is expected to cost. Versioned JSON on disk.

Mesh axes are the field's: `dp` replicates, `fsdp` shards parameters, gradients and optimiser state, `tp` splits
matrices, `pp` splits layers, `cp` splits the sequence, `ep` splits experts. The search plans `dp` and `fsdp`, and
`train` refuses a plan that uses another. `recompute` drops the activations of every repeated block in the forward pass
("full") or keeps them all ("none"). A plan is exact enough to execute: `train` reads nothing else to decide how to
build process groups.
"""

from typing import Literal

from mainspring.spec._spec import spec

Precision = Literal["fp32", "bf16"]
Recompute = Literal["none", "full"]
Objective = Literal["time", "cost", "energy"]
AXES = ("pp", "dp", "fsdp", "cp", "ep", "tp")
FORMAT = 1


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
    def label(self) -> str:
        """The axes above 1, e.g. `dp2 x fsdp4`; `single` on one rank."""
        used = [f"{axis}{getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        return " x ".join(used) or "single"


@spec
class Stage:
    """A pipeline stage: how many of the model's blocks it holds and on which ranks.

    `microbatches[r]` is how many micro-batches data replica `r` runs per step: uneven on mixed devices.
    """

    blocks: int
    device: str
    ranks: tuple[int, ...]
    microbatches: tuple[int, ...]


@spec
class MemoryEstimate:
    """Bytes on the fullest rank, by what they hold."""

    params_bytes: int
    grads_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    gathered_bytes: int = 0

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
        )


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
class Plan:
    """One way to train `model` on `cluster`.

    `global_batch` and `microbatch` count sequences of `seq_len` tokens; `reshard_after_forward` is ZeRO-3 (False is
    ZeRO-2); `nodes` names the machine each rank is counted on; `accelerators`
    is how many each rank holds, 0 on host CPUs.
    """

    model: str
    cluster: str
    mesh: Mesh
    stages: tuple[Stage, ...]
    global_batch: int
    microbatch: int
    seq_len: int
    precision: Precision
    recompute: Recompute
    reshard_after_forward: bool
    memory: MemoryEstimate
    device_memory_bytes: int
    time: TimeEstimate
    steps: int
    watts: float
    price_usd_per_hour: float
    mfu: float
    objective: Objective
    rejected: tuple[Rejected, ...] = ()
    nodes: tuple[str, ...] = ()
    accelerators: int = 0
    format: int = FORMAT

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
        if self.mesh.fsdp == 1:
            return "replicated" if self.mesh.dp > 1 else "whole"
        return "ZeRO-3" if self.reshard_after_forward else "ZeRO-2"

    def __str__(self) -> str:
        memory, time = self.memory, self.time
        used = memory.total_bytes / self.device_memory_bytes
        machines = len(set(self.nodes))
        world = self.mesh.world
        where = f"{_count(world, 'rank')} on {_count(machines, 'node')} of {self.stages[0].device}"
        price = f", {self.price_usd:.2f} USD" if self.price_usd_per_hour else ""
        lines = [
            f"plan      {self.model} on {self.cluster}: {self.mesh.label} ({self.sharding}), {self.precision}, "
            f"recompute {self.recompute}, chosen for {self.objective}",
            f"where     {where}",
            f"batch     {self.global_batch} x {self.seq_len} tokens: micro-batches of {self.microbatch}, "
            f"{_shares(self.stages[0].microbatches)}",
            f"memory    {readable_bytes(memory.total_bytes)} of {readable_bytes(self.device_memory_bytes)} a rank "
            f"({used:.0%}): "
            + _parts(
                parameters=memory.params_bytes,
                gradients=memory.grads_bytes,
                optimiser=memory.optimizer_bytes,
                activations=memory.activations_bytes,
                logits=memory.logits_bytes,
                gathered=memory.gathered_bytes,
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


def _duration(seconds: float) -> str:
    """The largest unit that leaves at least two of it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
