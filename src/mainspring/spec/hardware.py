"""Hardware nouns: `Device`, `Link`, `Node`, `Cluster`, `Health`, and the cluster file.

Units are in the names: bytes, bytes per second, FLOP per second, watts, US dollars per hour. Peaks are dense
(no sparsity) vendor figures; the cost model multiplies them by measured efficiencies.
"""

from typing import Literal

from mainspring.spec._spec import spec

HealthState = Literal["healthy", "degraded", "unhealthy"]
Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]


@spec
class Device:
    """One accelerator (or the whole of a host's CPU) as the cost model sees it.

    Large matrix products reach `matmul_share` of the peak, fused attention `attention_share`; activations pass through
    memory at `activation_share` of its rate. A block of a model costs `block_overhead_s` whatever its size. On a host,
    whose cores also do what an accelerator's host does beside it, training takes `message_s` more for each collective,
    `unit_s` for each sharded unit whose gradients are scattered, and `handover_s` for each micro-batch in a pipeline's
    stage. These seconds are 0 where they were not measured on the device itself.
    """

    vendor: str
    name: str
    memory_bytes: int
    memory_bytes_per_s: float
    fp32_flops_per_s: float
    bf16_flops_per_s: float
    int8_ops_per_s: float
    power_watts: float
    price_usd_per_hour: float = 0.0
    matmul_share: float = 0.8
    attention_share: float = 0.5
    activation_share: float = 1.0
    block_overhead_s: float = 0.0
    message_s: float = 0.0
    unit_s: float = 0.0
    handover_s: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        for field in ("matmul_share", "attention_share", "activation_share"):
            if not 0 < getattr(self, field) <= 1:
                raise ValueError(f"{field} of {self.name} must be above 0 and at most 1, got {getattr(self, field)}")
        for field in ("memory_bytes", "memory_bytes_per_s", "fp32_flops_per_s", "bf16_flops_per_s"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} of {self.name} must be positive, got {getattr(self, field)}")
        costs = ("block_overhead_s", "message_s", "unit_s", "handover_s", "price_usd_per_hour")
        for field in ("int8_ops_per_s", "power_watts", *costs):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{field} of {self.name} must be at least 0, got {getattr(self, field)}")

    @property
    def ridge_flops_per_byte(self) -> float:
        """Arithmetic intensity above which this device is compute-bound (bf16)."""
        return self.bf16_flops_per_s / self.memory_bytes_per_s


@spec
class OperationCost:
    """What one kind of collective was measured to take: the fixed cost of a message to each other rank, and the rate.

    The rate counts the bytes that a rank must send at the least: (n - 1) / n of the whole among n, twice that to reduce
    it for all.
    """

    operation: Operation
    bytes_per_s: float
    latency_s: float


@spec
class Link:
    """A connection: bandwidth of one direction per device and the fixed cost of a message.

    `costs` are those of single operations, where they were measured.
    """

    name: str
    bytes_per_s: float
    latency_s: float
    costs: tuple[OperationCost, ...] = ()


@spec
class Health:
    """What a probe saw of one device; `reasons` is empty when it is healthy."""

    device: str
    state: HealthState
    reasons: tuple[str, ...] = ()
    temperature_celsius: float | None = None
    used_bytes: int = 0


@spec
class Node:
    """A machine: its devices, the link among them, and what the host offers.

    `isolation` says, a sentence each, what keeps ranks apart that share it, and what does not.
    """

    name: str
    devices: tuple[Device, ...]
    link: Link
    cpu_cores: int
    memory_bytes: int
    address: str = "127.0.0.1"
    health: tuple[Health, ...] = ()
    isolation: tuple[str, ...] = ()


@spec
class Cluster:
    """Nodes and the link between them."""

    name: str
    nodes: tuple[Node, ...]
    link: Link

    @property
    def device_count(self) -> int:
        """How many devices there are on all nodes."""
        return sum(len(node.devices) for node in self.nodes)


@spec
class Sample:
    """One measurement: what was timed, how long it took, and what the fitted figures say it takes."""

    what: str
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Of the prediction, relative: 0.05 is 5 % too much."""
        return self.predicted_s / self.measured_s - 1


@spec
class Calibration:
    """Figures of one machine, fitted to what was measured on it; plans for this machine use them.

    `probed` is the device as it was known before, by which it is recognised; `device` has the fitted figures. `link` is
    what collectives of `ranks` processes reach together, None where one rank is all there is room for.
    """

    machine: str
    probed: str
    device: Device
    ranks: int
    link: Link | None = None
    samples: tuple[Sample, ...] = ()

    @property
    def mean_error(self) -> float:
        """Mean absolute relative error over the samples."""
        return sum(abs(sample.error) for sample in self.samples) / max(1, len(self.samples))


@spec
class LinkEntry:
    """A `[link]` table of a cluster file."""

    gigabytes_per_s: float
    microseconds: float = 10.0


@spec
class NodeEntry:
    """A `[[nodes]]` table of a cluster file: `count` machines with `devices` of one catalogue type each.

    Give `device` a catalogue name, or describe an unlisted one by measured figures in `measured`. The price is for
    one device.
    """

    device: str
    devices: int
    count: int = 1
    cpu_cores: int = 64
    memory_gib: float = 512.0
    link: LinkEntry | None = None
    measured: Device | None = None
    price_usd_per_hour: float | None = None

    def __post_init__(self) -> None:
        if self.price_usd_per_hour is not None and not self.price_usd_per_hour >= 0:
            raise ValueError(f"price_usd_per_hour of {self.device} must be at least 0, got {self.price_usd_per_hour}")
        if self.measured is not None and not self.measured.power_watts:  # 0 is what a probe says that cannot know it
            raise ValueError(f"power_watts of {self.device} must be positive, got {self.measured.power_watts}")


@spec
class ClusterFile:
    """A cluster described in TOML, for planning on machines one does not have."""

    name: str
    nodes: tuple[NodeEntry, ...]
    link: LinkEntry
