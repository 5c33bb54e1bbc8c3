"""A cluster to ask about, and the answers: who waits and why, what runs where, who holds how much, what would help.

The same nouns describe the cluster at hand and one in a TOML file, so that every question can be tried on paper.
"""

from typing import Literal

from mainspring.spec._spec import spec
from mainspring.spec.queue import Queue
from mainspring.spec.schedule import Gang, GangState, Machine, Pool, Rules, Victim

Target = Literal["kueue", "kuberay"]
"""Whose Kubernetes objects a tree or a cluster can be written as."""


@spec
class Standing:
    """A gang that runs: the node of each rank, and of each the bits of its devices; the scheduler's choice when empty.

    It started `ran_ms` ago, and `saved_ms` ago it last wrote a checkpoint, or started.
    """

    gang: Gang
    nodes: tuple[str, ...]
    devices: tuple[int, ...] = ()
    ran_ms: int = 0
    saved_ms: int = 0

    def __post_init__(self) -> None:
        if len(self.nodes) != self.gang.ranks:
            raise ValueError(f"gang {self.gang.id} has {self.gang.ranks} ranks and runs on {len(self.nodes)} nodes")
        if self.devices and len(self.devices) != len(self.nodes):
            raise ValueError(f"gang {self.gang.id} has {len(self.nodes)} ranks, and devices for {len(self.devices)}")
        if not 0 <= self.saved_ms <= self.ran_ms:
            raise ValueError(f"gang {self.gang.id} saved {self.saved_ms} ms ago and started {self.ran_ms} ms ago")


@spec
class Lined:
    """A gang that waits, whatever there is room for, until somebody decides about it; and why, if that is known."""

    gang: Gang
    reason: str = ""


@spec
class Scene:
    """A cluster to ask about: its machines, its queues, who runs where, and `gangs` in the order in which they came.

    `levels` name what `Machine.domain` lists. `closed` nodes are given nothing new. Without `queues` every name of a
    queue is good, and has no limit. Gangs start as far as they can when the scene opens, `now_ms` ago; those in `line`
    came later and have not been decided about. `pools` are quotas that are pooled for gangs that run.
    """

    machines: tuple[Machine, ...]
    queues: tuple[Queue, ...] = ()
    levels: tuple[str, ...] = ()
    pools: tuple[Pool, ...] = ()
    running: tuple[Standing, ...] = ()
    gangs: tuple[Gang, ...] = ()
    line: tuple[Lined, ...] = ()
    closed: tuple[str, ...] = ()
    now_ms: int = 86_400_000
    rules: Rules = Rules()


@spec
class Why:
    """Where a gang is in life, the reason, and what would change it; each of `unblocks` was tried and works.

    `victims` are those that its start would stop or move, when it is a gang that was only asked about. `plan` is the
    offer's that it runs with, when it has a menu.
    """

    gang: str
    state: GangState
    reason: str
    nodes: tuple[str, ...] = ()
    ahead: int = 0
    unblocks: tuple[str, ...] = ()
    victims: tuple[Victim, ...] = ()
    plan: str = ""


@spec
class Waiting:
    """A gang that waits: its place in its queue, from 1, what it asks for, and why it does not run."""

    gang: str
    queue: str
    position: int
    priority: int
    ranks: int
    asks: str
    reason: str


@spec
class NodeUse:
    """A node and who is on it. `held` are thousandths of each device in use, `holders` the gangs on each."""

    name: str
    domain: tuple[str, ...]
    model: str
    open: bool
    cpu_milli: int
    cpu_held_milli: int
    memory_mib: int
    memory_held_mib: int
    held: tuple[int, ...]
    sick: tuple[int, ...]
    holders: tuple[tuple[str, ...], ...]
    gangs: tuple[str, ...]
