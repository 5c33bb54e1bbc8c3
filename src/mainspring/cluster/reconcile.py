"""What is written down against what Ray has: which groups nobody wants, which jobs have lost their driver.

Every change is written before it is carried out, so a crash at any point leaves one of two things: a job whose driver
is gone, with or without the group that its attempt is entitled to, or a group that no attempt is entitled to. The first
is taken over, started again or ended; the second is removed. Pure, and repeating a step does no harm.
"""

from collections.abc import Sequence, Set
from typing import Literal

from mainspring.spec import ACTIVE, TERMINAL, JobRecord, NodeNote, spec
from mainspring.store.ledger import GONE

StepKind = Literal["remove", "take", "again", "fail"]


@spec
class Group:
    """A placement group of ours as Ray has it: its id there, and the job and attempt it was made for."""

    id: str
    number: int
    attempt: int


@spec
class Step:
    """One thing to do: remove a group, take a job over as it is, let it wait for its next attempt, or end it."""

    kind: StepKind
    group: str = ""
    record: JobRecord | None = None
    reason: str = ""


def group_name(store_id: str, record: JobRecord) -> str:
    """What the placement group of this attempt is called."""
    return f"mainspring/{store_id}/{record.number}/{record.attempt}"


def group_of(store_id: str, name: str, id: str) -> Group | None:  # noqa: A002 Ray's word for it
    """The group called `name`, if it belongs to this store."""
    prefix, _, rest = name.rpartition(f"mainspring/{store_id}/")
    number, _, attempt = rest.partition("/")
    if prefix or not (number.isdecimal() and attempt.isdecimal()):
        return None
    return Group(id=id, number=int(number), attempt=int(attempt))


def reconcile(
    records: Sequence[JobRecord], groups: Sequence[Group], *, alive: Set[str], cluster: str, serves: str
) -> tuple[Step, ...]:
    """What to do about jobs without a driver and groups without a job.

    `groups` must have been read before `records`. `alive` are the drivers that live, `cluster` is the one at hand, and
    `serves` the address of whose lasting jobs this process takes care, empty for none.
    """
    steps: list[Step] = []
    for record in records:
        if record.driver in alive or not record.driver or record.state in TERMINAL:
            continue
        if not record.lasting:
            steps.append(Step(kind="fail", record=record, reason=GONE))
        elif serves and record.address == serves:
            if record.state in ACTIVE and record.cluster == cluster:
                steps.append(Step(kind="take", record=record))
            else:
                steps.append(Step(kind="again", record=record, reason="its cluster or its scheduler is gone"))
        elif record.evicted and record.state in ACTIVE and record.cluster == cluster:
            # Others wait for its places, and nobody is there to ask it.
            steps.append(Step(kind="again", record=record, reason=record.evicted))
    entitled = {(record.number, record.attempt) for record in records if record.state in ACTIVE}
    entitled -= {(step.record.number, step.record.attempt) for step in steps if step.record and step.kind != "take"}
    steps += [Step(kind="remove", group=group.id) for group in groups if (group.number, group.attempt) not in entitled]
    return tuple(steps)


def displaced(record: JobRecord, notes: Sequence[NodeNote]) -> tuple[str, bool]:
    """Why a job has to leave its places, and whether at once; empty when it may stay.

    A sick device cannot wait; a node that is closed can, until the job has saved what it has.
    """
    placement = record.placement
    if placement is None:
        return "", False
    found = ("", False)
    for note in notes:
        for rank, node in enumerate(placement.nodes):
            if node != note.node:
                continue
            why = f": {note.reason}" if note.reason else ""
            bits = placement.devices[rank] if placement.devices else 0
            ill = [number for number in note.sick if bits >> number & 1]
            if ill:
                return f"device {ill[0]} of node {node} is unhealthy{why}", True
            if note.closed:
                found = (f"node {node} is drained{why}", False)
    return found
