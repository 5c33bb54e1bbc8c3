"""Queue nouns: a tree of queues and what each may have.

A quota is stated per resource, in the units people use: `cpu` in cores, `memory` in GiB, `devices` of any model, and
`devices/MODEL` of one. "10 of any type, of which 4 A100" is a quota of 10 `devices` and one of 4 `devices/A100`.
"""

from mainspring.spec._spec import spec
from mainspring.spec.schedule import Rules

ANY_DEVICE = "devices"


@spec
class Quota:
    """What a queue has of one resource.

    `min` is its own whenever it asks, and the most that its jobs may hold without being preemptible. Above `min` it
    has a share by weight, up to `max` and at most `borrow` more than `min`. Of an idle `min`, siblings may use `lend`.
    None is no limit.
    """

    resource: str
    min: float = 0.0
    max: float | None = None
    borrow: float | None = None
    lend: float | None = None

    def __post_init__(self) -> None:
        for name in ("min", "max", "borrow", "lend"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} of {self.resource} must be a number from 0, got {value}")
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max of {self.resource} is {self.max:g}, below its min of {self.min:g}")


@spec
class Queue:
    """A node of the tree; jobs wait in its leaves. A queue without `parent` hangs under the cluster itself."""

    name: str
    parent: str = ""
    weight: int = 1
    quotas: tuple[Quota, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a queue needs a name")
        if self.weight < 1:
            raise ValueError(f"weight of queue {self.name} must be at least 1, got {self.weight}")
        resources = [quota.resource for quota in self.quotas]
        if len(set(resources)) < len(resources):
            raise ValueError(f"queue {self.name} states a resource twice: {', '.join(sorted(resources))}")


@spec
class QueueFile:
    """A quota tree in TOML: `[[queues]]` tables, in any order; `[rules]` says how patient the scheduler is."""

    queues: tuple[Queue, ...]
    rules: Rules = Rules()


@spec
class QueueShare:
    """What a queue may hold of one resource, in the resource's own unit; `max` of None is no limit.

    `share` is its part of the cluster, given what its own jobs and those of the other queues ask for, running and
    waiting together; of a quota file, when every queue asks for all it may have. `used` is what its jobs hold and
    `waiting` what those ask for that wait. `depth` is 0 for a queue under the cluster itself.
    """

    queue: str
    depth: int
    weight: int
    resource: str
    min: float
    share: float
    max: float | None
    jobs: bool
    used: float = 0.0
    waiting: float = 0.0
