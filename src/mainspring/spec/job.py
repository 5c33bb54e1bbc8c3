"""Job nouns: what to start, on how many ranks, and how each rank ended.

A job is an entry-point string and a JSON document; nothing registers with the cluster room.
"""

from dataclasses import field
from typing import Literal

from mainspring.spec._spec import spec

JobState = Literal["PENDING", "ADMITTED", "PLACED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "PREEMPTED"]
SAVED = "saved.txt"
"""A file in the run's folder that a job writes anew whenever it has saved what it has; what came after is lost."""
TERMINAL: frozenset[JobState] = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
ACTIVE: frozenset[JobState] = frozenset({"ADMITTED", "PLACED", "RUNNING"})
"""The states in which a job holds its places."""


@spec
class Resources:
    """What one rank needs. `devices` counts accelerators, less than 1 is a share of one; a CPU rank has 0.

    A limit of memory is enforced where it is stated. With `own_cores`, whole cpus are cores that nobody else is given
    who asks for such; without, they are what is reserved, and a rank may compute on more.
    """

    cpus: float = 1.0
    devices: float = 0.0
    memory_bytes: int = 0
    own_cores: bool = False

    def __post_init__(self) -> None:
        for name, value in (("cpus", self.cpus), ("devices", self.devices), ("memory_bytes", self.memory_bytes)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number from 0, got {value}")
        if self.devices > 1 and self.devices != int(self.devices):
            raise ValueError(f"a rank takes a share of one device, or whole devices, not {self.devices:g} of them")


@spec
class Shape:
    """One way to run a job: so many ranks of this, at a speed in whatever unit all shapes of the job share.

    `plan` names it; `payload_json` is added to the job's payload. `models` are the only models of device that it runs
    on, any when empty; `watts` and `milli_usd_per_hour` are those of all ranks together.
    """

    ranks: int
    speed: int
    plan: str
    resources: Resources = Resources()
    payload_json: str = "{}"
    models: tuple[str, ...] = ()
    watts: int = 0
    milli_usd_per_hour: int = 0

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.speed < 1 or not self.plan:
            raise ValueError(f"shape {self.plan!r} of {self.ranks} ranks at speed {self.speed}: both are at least 1")


@spec
class MenuFile:
    """The shapes of a job in TOML: `[[menu]]` tables."""

    menu: tuple[Shape, ...]


@spec
class Turn:
    """Where work waits for its places: in which queue, and before whom in it."""

    queue: str = "default"
    priority: int = 0


@spec
class Job:
    """A gang of `ranks` processes that start together or not at all.

    `entry` is `"package.module:function"`, called on each rank as `function(task, payload)` with a `Task` and the
    dict read from `payload_json`. `time_limit_s` of 0 means none. `env` is added to each rank's environment.

    `secret_json` holds those fields of the payload that nobody else may read: a rank finds them in its payload, and
    they are in no `repr`, log, environment or command line. `needs` are files and folders of the driver that a node
    must see to be given ranks; `nodes` are the only nodes that may be, any when empty.

    `starts` is how often it may be started in all, when nodes are lost or taken away under it: more than 1 for a job
    that goes on from what it saved, or that may run twice. Only such a job is stopped for others, within its queue for
    those of higher `priority`; that is no lost start. Its ranks are then asked to save what they have and to leave, and
    killed after `grace_s`; one that `heeds` that by itself does so when it is ready (`cluster.notice`). `folder` and
    `imports` are where ranks work and find modules; the driver's own when empty.

    `secrets` are variables of the environment that its ranks are given as its driver has them, and that nobody writes
    down. A lasting job goes on for `alone_s` when there is no scheduler, until the next one takes it over.

    With a `menu` the scheduler chooses one of its shapes, and another when more is free or others come: ranks are then
    asked to save and to leave, and go on in the other shape. `ranks` and `resources` are those of the smallest.
    """

    id: str
    name: str
    entry: str
    payload_json: str = "{}"
    secret_json: str = field(default="{}", repr=False)
    ranks: int = 1
    resources: Resources = Resources()
    time_limit_s: float = 0.0
    queue: str = "default"
    env: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    starts: int = 1
    priority: int = 0
    grace_s: float = 30.0
    heeds: bool = False
    alone_s: float = 300.0
    folder: str = ""
    imports: tuple[str, ...] = ()
    menu: tuple[Shape, ...] = ()

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ValueError(f"ranks must be at least 1, got {self.ranks}")
        if self.starts < 1:
            raise ValueError(f"starts must be at least 1, got {self.starts}")
        for name, value in (("grace_s", self.grace_s), ("alone_s", self.alone_s)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number from 0, got {value}")
        module, _, function = self.entry.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
            raise ValueError(f"what runs is MODULE:FUNCTION, got {self.entry!r}")
        if len({shape.plan for shape in self.menu}) < len(self.menu):
            raise ValueError(f"two shapes of a menu have one name: {', '.join(shape.plan for shape in self.menu)}")


@spec
class Task:
    """One rank of a running job, as its own process sees it.

    `run_dir` is a folder on this rank's node whose files (`rank-N.log`, `metrics.jsonl`, anything written there)
    are copied back to the run's folder. `master` is `host:port` for `torch.distributed`; every process group must
    use its own `attempt`-prefixed store.
    """

    job_id: str
    rank: int
    world: int
    local_rank: int
    local_world: int
    run_dir: str
    master: str
    attempt: int = 0


@spec
class Placement:
    """Where each rank runs: rank `i` on node `nodes[i]`, with the devices there whose bits `devices[i]` has set.

    `plan` names the shape that was chosen from the job's menu.
    """

    job_id: str
    nodes: tuple[str, ...]
    devices: tuple[int, ...] = ()
    plan: str = ""


@spec
class RankExit:
    """How one rank ended: `code` for an exit, `signal` for a kill, and what it last said."""

    rank: int
    node: str
    code: int | None
    signal: str = ""
    reason: str = ""
    log_tail: str = ""


@spec
class JobResult:
    """How a job ended, rank by rank. `seconds` is wall time from RUNNING to the end."""

    job_id: str
    state: JobState
    reason: str
    exits: tuple[RankExit, ...]
    seconds: float


@spec
class Lease:
    """The quotas under `queue`, pooled for one job until it has ended, and at most until `until_s` (Unix time)."""

    queue: str
    until_s: float


@spec
class JobRecord:
    """A job in the books that drivers of one cluster share. `number` is its order of arrival.

    `address` is the cluster as its submitter names it, `cluster` the one it waits or runs on, by the cluster's own id.
    `driver` is the process that sees to it; a `lasting` job outlives its driver, and has none while it waits for one.
    `attempt` counts its starts, `losses` those that ended because a node was lost. `cancelled` is why it shall stop,
    `evicted` why it must leave its places to others, or had to when it ran last. `started_s` is when it got its places
    and `saved_s` when it last saved what it has, both Unix time of its driver, 0 for not yet. With a `lease` quotas are
    pooled for it.
    """

    number: int
    workspace: str
    job: Job
    address: str
    cluster: str
    driver: str
    lasting: bool
    state: JobState
    reason: str = ""
    attempt: int = 0
    losses: int = 0
    placement: Placement | None = None
    result: JobResult | None = None
    cancelled: str = ""
    evicted: str = ""
    started_s: float = 0.0
    saved_s: float = 0.0
    lease: Lease | None = None


@spec
class Eviction:
    """A running job that has to leave its places, why, and the work since it last saved what it has."""

    record: JobRecord
    reason: str
    lost_ms: int = 0


@spec
class NodeNote:
    """What the drivers of a cluster know of a node beyond its capacity.

    A `closed` node is given nothing new and its jobs move away; `sick` are the numbers of devices not to be used.
    """

    cluster: str
    node: str
    closed: bool = False
    sick: tuple[int, ...] = ()
    reason: str = ""


@spec
class Driver:
    """A process that starts jobs on a cluster. It counts `beat` up; one that stands still has lost its claim."""

    id: str
    cluster: str
    owner_json: str
    beat: int
