"""What Ray says of a node against what its driver says: nodes that promise more than they have, and sick devices."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mainspring.cluster.engine import Member
from mainspring.hardware.census import Census
from mainspring.spec import NodeNote


def truthful(member: Member, census: Census | None) -> Member:
    """`member` with the devices that are there, and no more than Ray counts. Unchanged where nobody could look."""
    if census is None or not member.accelerator:
        return member
    count = min(member.capacity.devices, float(len(census.models)))
    model = census.models[0] if len(set(census.models)) == 1 else ""
    return replace(member, capacity=replace(member.capacity, devices=count, model=model))


def lie_of(member: Member, census: Census | None) -> str:
    """In which way a node promises more devices than it has; empty when it does not."""
    promised, kind = member.capacity.devices, member.accelerator
    if census is None or promised <= len(census.models):
        return ""
    return f"node {member.capacity.node} promises {promised:g} {kind}, and its driver has {len(census.models)}"


def sick_notes(cluster: str, found: Mapping[str, Census], notes: Sequence[NodeNote]) -> tuple[NodeNote, ...]:
    """What is to be noted anew, for each node whose sick devices are others than its note says."""
    known = {note.node: note for note in notes}
    changed: list[NodeNote] = []
    for node, census in sorted(found.items()):
        note = known.get(node, NodeNote(cluster=cluster, node=node))
        if census.sick != note.sick:
            reasons = dict.fromkeys(reason for number in census.sick for reason in census.health[number].reasons)
            why = note.reason if note.closed else "; ".join(reasons)
            changed.append(replace(note, sick=census.sick, reason=why))
    return tuple(changed)
