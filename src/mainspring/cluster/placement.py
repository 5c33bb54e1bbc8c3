"""What nodes have and have left, as Ray counts it, and how many ranks would fit.

Where ranks go is decided by `schedule`; this is the arithmetic of the shell around it. Quantities are compared in
thousandths, so that three times 0.1 cpu is 0.3 cpu.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from mainspring.spec import Job, Placement, Resources, spec


@spec
class Capacity:
    """What one node has, or has left. `model` is that of its devices, where somebody has looked."""

    node: str
    cpus: float
    devices: float = 0.0
    memory_bytes: int = 0
    model: str = ""


def as_placed(job: Job, placement: Placement) -> Job:
    """`job` in the shape that was chosen for it."""
    shape = next((each for each in job.menu if each.plan == placement.plan), None)
    if shape is None:
        return job
    payload = json.loads(job.payload_json) | json.loads(shape.payload_json)
    return replace(job, ranks=shape.ranks, resources=shape.resources, payload_json=json.dumps(payload))


def allowed(job: Job, nodes: Sequence[Capacity]) -> tuple[Capacity, ...]:
    """Those of `nodes` that `job` may use."""
    return tuple(node for node in nodes if not job.nodes or node.node in job.nodes)


def slots(free: Capacity, need: Resources) -> int:
    """How many ranks that each need `need` fit into `free`."""
    wants = (
        (_milli(free.cpus), _milli(need.cpus)),
        (_milli(free.devices), _milli(need.devices)),
        (free.memory_bytes, need.memory_bytes),
    )
    counts = [have // want for have, want in wants if want > 0]
    return max(0, min(counts)) if counts else _UNBOUNDED


# A rank that asks for nothing fits any number of times; the gang's own size is the only limit.
_UNBOUNDED = 1 << 30


def occupy(free: Sequence[Capacity], placement: Placement, need: Resources) -> tuple[Capacity, ...]:
    """What is left of `free` once the ranks of `placement` have taken `need` each."""
    return tuple(
        replace(
            node,
            cpus=node.cpus - count * need.cpus,
            devices=node.devices - count * need.devices,
            memory_bytes=node.memory_bytes - count * need.memory_bytes,
        )
        if (count := placement.nodes.count(node.node))
        else node
        for node in free
    )


def added(node: Capacity, need: Resources) -> Capacity:
    """What is left of a node once a rank has gone that took `need`."""
    return replace(
        node,
        cpus=node.cpus + need.cpus,
        devices=node.devices + need.devices,
        memory_bytes=node.memory_bytes + need.memory_bytes,
    )


def _milli(amount: float) -> int:
    return round(amount * 1000)
