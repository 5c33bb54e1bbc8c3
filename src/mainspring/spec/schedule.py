"""Scheduling nouns: `Machine`, `Request`, `Gang`, what happens to them, and what is decided.

Quantities are integers so that sums are exact: thousandths of a cpu or of a device, MiB, milliseconds.
"""

import math
from typing import Literal

from mainspring.spec._spec import spec

Binding = Literal["preferred", "required"]
Layout = Literal["pack", "spread"]
PolicyName = Literal["plain", "tuned"]
GangState = Literal["running", "waiting", "refused"]
DecisionKind = Literal["start", "evict", "wait", "refuse"]
Aim = Literal["goodput", "cost", "energy"]
WHOLE = 1000
MOST_DEVICES = 62  # of one node; sets of them travel as the bits of one integer


@spec
class Machine:
    """A node as the scheduler sees it. `domain` names what it hangs under, outermost first: block, rack, ...

    `sick` holds the numbers of devices that are there and must not be used.
    """

    name: str
    cpu_milli: int
    memory_mib: int
    devices: int = 0
    model: str = ""
    domain: tuple[str, ...] = ()
    sick: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.cpu_milli < 0 or self.memory_mib < 0:
            raise ValueError(f"node {self.name} has {self.cpu_milli} cpu_milli and {self.memory_mib} memory_mib")
        if not 0 <= self.devices <= MOST_DEVICES:
            raise ValueError(f"node {self.name} has {self.devices} devices; 0 to {MOST_DEVICES} are possible")
        if self.devices and not self.model:
            raise ValueError(f"node {self.name} has {self.devices} devices of no model")
        if any(not 0 <= number < self.devices for number in self.sick):
            raise ValueError(
                f"node {self.name} has {self.devices} devices, and of these {self.sick} are said to be sick"
            )


@spec
class Request:
    """What one rank needs: whole devices, or `milli` thousandths of each; `models` are the only ones allowed."""

    cpu_milli: int = 0
    memory_mib: int = 0
    devices: int = 0
    milli: int = WHOLE
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.cpu_milli < 0 or self.memory_mib < 0 or self.devices < 0:
            raise ValueError(f"a request cannot be negative: {self.cpu_milli}, {self.memory_mib}, {self.devices}")
        if self.devices and not 1 <= self.milli <= WHOLE:
            raise ValueError(f"a share of a device is 1 to {WHOLE} thousandths, got {self.milli}")

    @classmethod
    def of(cls, *, cpus: float = 0.0, devices: float = 0.0, models: tuple[str, ...] = ()) -> "Request":
        """A request in a person's units: cores, and devices or a share of one. `ValueError` for one and a half."""
        if not (0 <= cpus < float("inf") and 0 <= devices < float("inf")):
            raise ValueError(f"cores and devices are numbers from 0, got {cpus:g} and {devices:g}")
        if devices > 1 and devices != int(devices):
            raise ValueError(f"a rank takes a share of one device, or whole devices, not {devices:g} of them")
        share = round(WHOLE * devices) if 0 < devices < 1 else WHOLE
        return cls(cpu_milli=round(1000 * cpus), devices=math.ceil(devices), milli=share, models=models)

    @property
    def device_milli(self) -> int:
        """Thousandths of devices in all."""
        return self.devices * self.milli


@spec
class LoadPoint:
    """What a cluster looked like once arrivals had asked for `load` times its devices.

    `waste_percent` is the capacity that is free and that a typical task could not use.
    """

    load: float
    allocation_percent: float
    cpu_percent: float
    memory_percent: float
    waste_percent: float
    placed: int
    turned_away: int


@spec
class Offer:
    """One way to run a gang: so many ranks of this, at a speed in whatever unit all offers of the gang share.

    `plan` is what the shell needs to run it so; `watts` and `milli_usd_per_hour` are those of all ranks together.
    """

    request: Request
    ranks: int
    speed: int
    plan: str = ""
    watts: int = 0
    milli_usd_per_hour: int = 0

    def __post_init__(self) -> None:
        if min(self.ranks, self.speed) < 1 or min(self.watts, self.milli_usd_per_hour) < 0:
            raise ValueError(f"an offer of {self.ranks} ranks at speed {self.speed}: both are at least 1")


@spec
class Gang:
    """Ranks that start together or not at all, as the scheduler sees a job.

    `level` names the part of the network (`rack`, `block`, ...) that the gang should stay in, or must when `binding`
    is `required`. `segment` ranks each must not be divided below `segment_level`. `runtime_ms` is an estimate, 0 when
    there is none. `nodes` are the only ones that may be; any when empty. With a `menu` the scheduler chooses one of its
    offers, and others later, at checkpoints; `request` and `ranks` are those of the offer that it runs or waits with.
    Work that is not `preemptible` stays within the min of its queue; what is not `stoppable` may hold more than that,
    and is left to its end once it runs.
    """

    id: str
    queue: str
    request: Request
    ranks: int = 1
    priority: int = 0
    preemptible: bool = True
    stoppable: bool = True
    level: str = ""
    binding: Binding = "preferred"
    segment: int = 0
    segment_level: str = ""
    layout: Layout = "pack"
    runtime_ms: int = 0
    nodes: tuple[str, ...] = ()
    menu: tuple[Offer, ...] = ()

    @property
    def plan(self) -> str:
        """The plan of the offer that it runs or waits with; empty without a menu."""
        return next((each.plan for each in self.menu if (each.request, each.ranks) == (self.request, self.ranks)), "")

    def __post_init__(self) -> None:
        if self.menu and self.segment:
            raise ValueError(f"gang {self.id} has a menu, whose offers have no segments")
        if self.ranks < 1:
            raise ValueError(f"gang {self.id} has {self.ranks} ranks; at least 1")
        if self.segment and (self.ranks % self.segment or not self.segment_level):
            raise ValueError(f"gang {self.id} of {self.ranks} ranks cannot be cut into segments of {self.segment}")
        if self.runtime_ms < 0:
            raise ValueError(f"gang {self.id} has a runtime of {self.runtime_ms} ms")


@spec
class Rules:
    """How patient the scheduler is.

    `shield_ms` is how long a gang runs before it may be stopped for others, `ageing_ms` of waiting count as one step of
    priority (0: never), `restart_ms` is what a restart costs. A gang that has waited for room for `patience_ms`, and
    can be promised no time for it, is not overtaken in its queue any more.
    """

    shield_ms: int = 60_000
    ageing_ms: int = 600_000
    restart_ms: int = 60_000
    patience_ms: int = 600_000
    aim: Aim = "goodput"


@spec
class Submitted:
    """A gang waits from now on."""

    gang: Gang


@spec
class Ended:
    """A gang has ended, or is no longer wanted."""

    gang: str


@spec
class Saved:
    """A running gang has written a checkpoint: less is lost when it is stopped."""

    gang: str


@spec
class NodeChanged:
    """A node may no longer be used (`open` false) or may again; `sick` are its unhealthy devices."""

    node: str
    open: bool = True
    sick: tuple[int, ...] = ()


@spec
class Gathered:
    """The quotas under `queue` are pooled for one gang, which starts at once, until it ends or `until_ms`."""

    queue: str
    gang: Gang
    until_ms: int


@spec
class Pool:
    """A gang that the quotas under `queue` are pooled for, for `left_ms` more."""

    gang: str
    queue: str
    left_ms: int


Happening = Submitted | Ended | Saved | NodeChanged | Gathered
"""What the scheduler is told. Time comes with it; nothing else does."""


@spec
class Decision:
    """What the scheduler wants about one gang, and why.

    `start` names the node of each rank and the bits of its devices; `evict` frees them again, and `lost_ms` is the
    work since the last checkpoint, and `room_for` the gang that gets its place; `plan` is the chosen offer's; `wait`
    says in `hint` what would unblock it; `refuse` is for ever.
    """

    kind: DecisionKind
    gang: str
    reason: str
    hint: str = ""
    nodes: tuple[str, ...] = ()
    devices: tuple[int, ...] = ()
    lost_ms: int = 0
    plan: str = ""
    room_for: str = ""


@spec
class Knob:
    """One weight of a placement policy."""

    name: str
    value: float


@spec
class LoadResult:
    """`LoadPoint` over several seeds: means, and what each seed allocated."""

    load: float
    allocation_percent: float
    deviation: float
    cpu_percent: float
    memory_percent: float
    waste_percent: float
    placed: float
    turned_away: float
    by_seed: tuple[float, ...]


@spec
class Simulation:
    """How a policy filled a cluster with a task list, at the `loads` asked for and along the way to the highest.

    `impossible` tasks fit on no node even when it is empty; `unknown` are models that tasks name and no node has.
    """

    policy: PolicyName
    nodes: int
    devices: int
    tasks: int
    classes: int
    impossible: int
    knobs: tuple[Knob, ...]
    loads: tuple[LoadResult, ...]
    curve: tuple[LoadResult, ...]
    unknown: tuple[str, ...] = ()


@spec
class Victim:
    """A gang that a plan would stop, or move to other nodes, and the work that is lost since its checkpoint."""

    gang: str
    queue: str
    ranks: int
    lost_ms: int
    lost_device_hours: float
    moved_to: tuple[str, ...] = ()


@spec
class GatherPlan:
    """What pooling the quotas under `queue` for one gang would do. `nodes` are those of its ranks."""

    queue: str
    gang: str
    until_ms: int
    victims: tuple[Victim, ...]
    nodes: tuple[str, ...]
    model: str
    lost_device_hours: float
    starts_in_ms: int
