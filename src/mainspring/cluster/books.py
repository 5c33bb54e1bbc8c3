"""The cluster at hand as a scene: what its nodes have, who runs where, and who waits, as its drivers wrote it down.

Any process that shares the store can read it, and none has to be asked: the books say where every job is, and what a
driver saw of its nodes when it joined.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from mainspring.cluster.queue import gang_of, patient
from mainspring.cluster.reading import pools_of, times_of
from mainspring.spec import (
    ACTIVE,
    Cluster,
    Gang,
    JobRecord,
    Lined,
    Machine,
    Node,
    NodeNote,
    Queue,
    QueueFile,
    Scene,
    Standing,
)
from mainspring.store import Store, parse
from mainspring.store.ledger import certainly_gone

HOST = "cpu"


@dataclass(frozen=True, slots=True)
class Seen:
    """What is written down of one cluster."""

    id: str
    machines: tuple[Machine, ...]
    records: tuple[JobRecord, ...]
    notes: tuple[NodeNote, ...]


def machines_key(cluster: str) -> str:
    """Under which key a driver remembers what the nodes of `cluster` have."""
    return f"cluster:{cluster}"


def write_machines(store: Store, cluster: str, machines: Sequence[Machine]) -> None:
    """Remember what the nodes of a cluster have, for those who cannot ask its Ray."""
    store.remember(machines_key(cluster), {"machines": [parse.to_dict(machine) for machine in machines]})


def scene_at_hand(store: Store, hardware: Callable[[], Cluster], *, address: str, quotas: QueueFile) -> Scene:
    """Every cluster that a living driver of this store is on, as one scene; this machine when there is none.

    Nodes of a second cluster are told apart by its id, and jobs stay on the nodes of their own. What waits at `address`
    for any scheduler to come is in line too.
    """
    living = [driver for driver in store.drivers() if not certainly_gone(driver)]
    seen = [_look(store, cluster) for cluster in dict.fromkeys(driver.cluster for driver in living)]
    seen = [each for each in seen if each.machines]
    if len(seen) > 1:
        seen = [_apart(each) for each in seen]
    running = [standing for each in seen for standing in _standings(store, each)]
    found = [record for each in seen for record in each.records]
    found += [each for each in store.jobs_of("", address=address) if _is_ours(store, each, address=address)]
    waiting = {
        record.number: record
        for record in reversed(found)
        if record.state == "PENDING" or (record.state in ACTIVE and record.evicted and not record.cancelled)
    }
    reason = "no scheduler has looked at it yet" if living else "no scheduler runs; mainspring schedule starts one"
    line = [Lined(gang=_gang(store, record), reason=_reason(record) or reason) for _, record in sorted(waiting.items())]
    return Scene(
        machines=tuple(machine for each in seen for machine in each.machines) or machines_of(hardware()),
        queues=_with_lost_queues(quotas.queues, [each.gang for each in (*running, *line)]),
        pools=pools_of(
            [record for each in seen for record in each.records if _holds(record)],
            lambda record: _gang(store, record).id,
            time.time(),
        ),
        running=tuple(running),
        line=tuple(line),
        closed=tuple(note.node for each in seen for note in each.notes if note.closed),
        rules=patient(quotas.rules),
        now_ms=0,
    )


def machines_of(cluster: Cluster) -> tuple[Machine, ...]:
    """Probed or described nodes as the scheduler counts them: an unhealthy device is there and not used."""
    return tuple(_machine(node) for node in cluster.nodes)


def _machine(node: Node) -> Machine:
    devices = [device for device in node.devices if device.vendor != HOST]
    models = {device.name for device in devices}
    # One model a node: devices of the rarer kinds of a mixed node are not counted.
    model = max(sorted(models), key=lambda name: sum(device.name == name for device in devices), default="")
    unhealthy = {health.device for health in node.health if health.state == "unhealthy"}
    count = sum(device.name == model for device in devices)
    return Machine(
        name=node.name,
        cpu_milli=1000 * node.cpu_cores,
        memory_mib=node.memory_bytes // 2**20,
        devices=count,
        model=model,
        sick=tuple(range(count)) if model in unhealthy else (),
    )


def _look(store: Store, cluster: str) -> Seen:
    notes = store.node_notes(cluster)
    told = store.recall(machines_key(cluster)) or {"machines": []}
    machines = tuple(parse.read_dict(each, Machine) for each in told["machines"])
    sick = {note.node: note.sick for note in notes}
    known = {machine.name for machine in machines}
    return Seen(
        id=cluster,
        machines=tuple(
            replace(machine, sick=tuple(n for n in sick.get(machine.name, machine.sick) if n < machine.devices))
            for machine in machines
        ),
        records=store.jobs_of(cluster, address=""),
        notes=tuple(note for note in notes if note.node in known),
    )


def _apart(seen: Seen) -> Seen:
    """The same with the cluster's id on every node, which its jobs keep to."""

    def told(name: str) -> str:
        return f"{name}@{seen.id[:8]}"

    names = {machine.name for machine in seen.machines}
    return Seen(
        id=seen.id,
        machines=tuple(replace(machine, name=told(machine.name)) for machine in seen.machines),
        records=tuple(_keep_to(record, names, told) for record in seen.records),
        notes=tuple(replace(note, node=told(note.node)) for note in seen.notes),
    )


def _keep_to(record: JobRecord, names: Iterable[str], told: Callable[[str], str]) -> JobRecord:
    placement = record.placement
    if placement is not None:
        placement = replace(placement, nodes=tuple(map(told, placement.nodes)))
    allowed = record.job.nodes or sorted(names)
    return replace(record, placement=placement, job=replace(record.job, nodes=tuple(map(told, allowed))))


def _standings(store: Store, seen: Seen) -> list[Standing]:
    """Who holds places; a job on a node that has gone will be started anew, and holds nothing meanwhile."""
    known, now_s = {machine.name for machine in seen.machines}, time.time()
    return [
        Standing(
            gang=_gang(store, record),
            nodes=record.placement.nodes,
            devices=record.placement.devices,
            **times_of(record, now_s),
        )
        for record in seen.records
        if _holds(record) and record.placement and known.issuperset(record.placement.nodes)
    ]


def _holds(record: JobRecord) -> bool:
    """Whether a job's places are its own; those of one that has been told to leave are its successor's."""
    return record.state in ACTIVE and not record.evicted


def _reason(record: JobRecord) -> str:
    return f"is saving what it has; {record.evicted}" if record.state in ACTIVE else record.reason


def _is_ours(store: Store, record: JobRecord, *, address: str) -> bool:
    return record.workspace == store.workspace and record.address == address


def _gang(store: Store, record: JobRecord) -> Gang:
    """The job as the core sees it, told apart from one of the same id in another workspace."""
    gang = gang_of(record.job, record.placement.plan if record.placement else "")
    theirs = f"{gang.id} of workspace {record.workspace}"
    return gang if record.workspace == store.workspace else replace(gang, id=theirs)


def _with_lost_queues(queues: Sequence[Queue], gangs: Iterable[Gang]) -> tuple[Queue, ...]:
    """The quotas, and a queue without any for each that jobs still name and that they do not."""
    if not queues:
        return ()
    known = {queue.name for queue in queues}
    return (*queues, *(Queue(name=name) for name in sorted({gang.queue for gang in gangs} - known)))
