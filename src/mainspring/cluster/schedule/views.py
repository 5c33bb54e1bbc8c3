"""What people see of the scheduler's state: who waits in which order, what runs where, who holds how much of what."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from mainspring.cluster.schedule.quota import ENDLESS, ROOT, divide, unit
from mainspring.cluster.schedule.state import Entry, State, priority_now
from mainspring.spec import WHOLE, NodeUse, QueueShare, Request, Waiting


def waiting_in(state: State) -> tuple[Waiting, ...]:
    """Everybody who waits, queue by queue, each in the order of its turns."""
    entries = [entry for entry in state.entries.values() if entry.place is None]
    entries.sort(key=lambda entry: (entry.leaf, -priority_now(state, entry), entry.number))
    found: list[Waiting] = []
    for _, ordered in groupby(entries, key=lambda entry: entry.leaf):
        found += [_waiting(entry, position) for position, entry in enumerate(ordered, start=1)]
    return tuple(found)


def nodes_in(state: State, domains: Mapping[str, tuple[str, ...]]) -> tuple[NodeUse, ...]:
    """Every node in the order of the network, with who is on which of its devices; `domains` are where nodes hang."""
    fleet, topology = state.fleet, state.topology
    on: dict[int, list[tuple[str, int]]] = {}
    for entry in state.running():
        assert entry.place is not None
        for n, bits in zip(entry.place.nodes, entry.place.devices, strict=True):
            on.setdefault(int(n), []).append((entry.gang.id, int(bits)))
    found: list[NodeUse] = []
    for n in map(int, topology.order):
        here, size = on.get(n, []), int(fleet.total.size[n])
        cpu = sum(state.entries[name].gang.request.cpu_milli for name, _ in here)
        memory = sum(state.entries[name].gang.request.memory_mib for name, _ in here)
        total, free = fleet.total.devices[n, :size], fleet.free.devices[n, :size]
        found.append(
            NodeUse(
                name=fleet.names[n],
                domain=domains.get(fleet.names[n], ()),
                model=fleet.models[fleet.total.model[n]] if size else "",
                open=n not in state.closed,
                cpu_milli=int(fleet.total.cpu[n]),
                cpu_held_milli=cpu,
                memory_mib=int(fleet.total.memory[n]),
                memory_held_mib=memory,
                held=tuple(int(milli) for milli in total - free),
                sick=tuple(number for number in range(size) if total[number] < WHOLE),
                holders=tuple(_unique(name for name, bits in here if bits >> number & 1) for number in range(size)),
                gangs=_unique(name for name, _ in here),
            )
        )
    return tuple(found)


def shares_in(state: State) -> tuple[QueueShare, ...]:
    """Every queue with every resource it has a limit of, asks for, or that the cluster has; parents before children."""
    tree, total = state.tree, state.total
    shares = divide(tree, total, state.asked)
    waiting = _asked_by_waiting(state)
    found: list[QueueShare] = []
    for at in depth_first(tree.branches[ROOT].children, [branch.children for branch in tree.branches]):
        branch = tree.branches[at]
        for r, resource in enumerate(tree.resources):
            limited = branch.floor[r] or branch.ceiling[r] < ENDLESS
            if limited or state.used[at][r] or waiting[at][r] or (total[r] and "/" not in resource):
                one = unit(resource)
                found.append(
                    QueueShare(
                        queue=branch.name,
                        depth=len(tree.path(at)) - 2,
                        weight=branch.weight,
                        resource=resource,
                        min=branch.floor[r] / one,
                        share=shares[at][r] / one,
                        max=branch.ceiling[r] / one if branch.ceiling[r] < ENDLESS else None,
                        jobs=not branch.children,
                        used=state.used[at][r] / one,
                        waiting=waiting[at][r] / one,
                    )
                )
    return tuple(found)


def depth_first(heads: Sequence[int], children: Sequence[Sequence[int]]) -> list[int]:
    """Positions of a tree, each before what hangs under it."""
    return [each for head in heads for each in (head, *depth_first(children[head], children))]


def asks(ranks: int, request: Request) -> str:
    """What a gang asks for, as a person says it: `4 ranks of 8 H100 + 32 cpu`."""
    parts: list[str] = []
    if request.devices:
        share = f"{request.milli / WHOLE:g}" if request.milli < WHOLE else f"{request.devices}"
        kind = " or ".join(request.models) or f"device{'s' * (request.devices > 1)}"
        parts.append(f"{share} {kind}")
    if request.cpu_milli or not request.devices:
        parts.append(f"{request.cpu_milli / 1000:g} cpu")
    if request.memory_mib:
        parts.append(f"{request.memory_mib / 1024:.3g} GiB")
    return f"{ranks} rank{'s' * (ranks != 1)} of {' + '.join(parts)}"


def _waiting(entry: Entry, position: int) -> Waiting:
    gang = entry.gang
    return Waiting(
        gang=gang.id,
        queue=gang.queue,
        position=position,
        priority=gang.priority,
        ranks=gang.ranks,
        asks=asks(gang.ranks, gang.request),
        reason=entry.reason or "others of its queue come first",
    )


def _asked_by_waiting(state: State) -> list[list[int]]:
    """What those ask for that wait, by branch."""
    found = [[0] * len(state.tree.resources) for _ in state.tree.branches]
    for entry in state.entries.values():
        if entry.place is None:
            for at in state.tree.path(entry.leaf):
                found[at] = [have + more for have, more in zip(found[at], entry.asked, strict=True)]
    return found


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
