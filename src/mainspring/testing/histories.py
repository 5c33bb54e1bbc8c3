"""Random histories of a shared cluster, and what must be true after every decision.

One draw gives a quota tree of up to three levels, a cluster, and events: gangs that come, end and save, nodes that
fail and return, quotas that are gathered. `check` raises `AssertionError` with the rule that was broken.
"""

from collections.abc import Iterator, Sequence
from random import Random

from mainspring.cluster.schedule.decide import Outcome, decide
from mainspring.cluster.schedule.gang import find_place, usable_nodes
from mainspring.cluster.schedule.kernels import WHOLE
from mainspring.cluster.schedule.limits import models_for, over_limit
from mainspring.cluster.schedule.quota import ROOT, Vector, divide
from mainspring.cluster.schedule.reclaim import firm_wishes, may_stop, within_share
from mainspring.cluster.schedule.state import Entry, State, build_state
from mainspring.spec import (
    Ended,
    Gang,
    Gathered,
    Happening,
    Machine,
    NodeChanged,
    Queue,
    Quota,
    Request,
    Rules,
    Saved,
    Submitted,
)

DEVICES = 8
MODELS = ("A100", "T4")
RULES = Rules(shield_ms=0, ageing_ms=0, restart_ms=1000, patience_ms=1 << 60)


def draw_cluster(draw: Random, *, nodes: int) -> tuple[Machine, ...]:
    """Nodes of eight devices in racks of two; some racks of another model."""
    mixed = draw.random() < 0.3
    return tuple(
        Machine(
            name=f"n{number}",
            cpu_milli=64_000,
            memory_mib=64_000,
            devices=DEVICES,
            model=MODELS[mixed and number % 4 > 1],
            domain=(f"r{number // 2}",),
        )
        for number in range(nodes)
    )


def draw_queues(draw: Random, *, devices: int) -> tuple[Queue, ...]:
    """A tree whose minima fit into each other and into `devices`."""
    queues: list[Queue] = []

    def grow(parent: str, least: int, depth: int) -> None:
        left = least
        for number in range(draw.randint(1, 3)):
            name = f"{parent}{'.' if parent else ''}{number}"
            own = draw.randint(0, left)
            left -= own
            most = draw.choice((None, None, own + draw.randint(0, devices)))
            borrow = draw.choice((None, None, draw.randint(0, devices)))
            lend = draw.choice((None, None, draw.randint(0, own)))
            quota = Quota(resource="devices", min=own, max=most, borrow=borrow, lend=lend)
            queues.append(Queue(name=name, parent=parent, weight=draw.randint(1, 4), quotas=(quota,)))
            if depth < 2 and draw.random() < 0.4:
                grow(name, own, depth + 1)

    grow("", devices, 0)
    return tuple(queues)


def draw_state(draw: Random, *, nodes: int = 1) -> State:
    """An idle cluster with a quota tree, where nobody is shielded and nobody ages."""
    machines = draw_cluster(draw, nodes=nodes)
    queues = draw_queues(draw, devices=nodes * DEVICES)
    return build_state(machines, queues, levels=("rack",), rules=RULES)


def draw_gang(draw: Random, state: State, name: str, *, simple: bool) -> Gang:
    """A gang for some leaf, a quarter of them not preemptible; shares of devices only where shape may matter."""
    number, models = draw.choice((1, 1, 1, 2, 4)), draw.choice(((), (), (), ("A100",), MODELS))
    return Gang(
        id=name,
        queue=draw.choice(state.planted.leaves),
        ranks=draw.choice((1, 1, 2, 3)),
        request=Request(
            cpu_milli=100,
            devices=number,
            milli=draw.choice((1000, 1000, 500)) if number == 1 and not simple else 1000,
            models=models,
        ),
        priority=draw.choice((0, 0, 0, 5)),
        preemptible=draw.random() < 0.75,
        level=draw.choice(("", "", "rack")),
        binding=draw.choice(("preferred", "required")),
    )


def draw_events(draw: Random, state: State, *, steps: int, simple: bool) -> Iterator[tuple[list[Happening], Outcome]]:
    """Events one after the other, each with what was decided; in `simple` histories no node fails."""
    for step in range(steps):
        known = sorted(state.entries)
        roll = draw.random()
        event: Happening
        if roll < 0.55 or not known:
            event = Submitted(gang=draw_gang(draw, state, f"g{step}", simple=simple))
        elif roll < 0.85:
            event = Ended(gang=draw.choice(known))
        elif roll < 0.9:
            event = Saved(gang=draw.choice(known))
        elif roll < 0.95 and not simple:
            sick = tuple(sorted(draw.sample(range(DEVICES), draw.randint(0, 3))))
            event = NodeChanged(node=draw.choice(state.fleet.names), open=draw.random() < 0.6, sick=sick)
        else:
            queue = draw.choice(sorted(name for name in state.planted.position if name))
            event = Gathered(
                queue=queue, gang=draw_gang(draw, state, f"g{step}", simple=simple), until_ms=(step + 4) * 1000
            )
        outcome = decide(state, [event], now_ms=step * 1000)
        yield [event], outcome
        state = outcome.state


def check_replay(before: State, events: Sequence[Happening], outcome: Outcome) -> None:
    """The same events on the same state give the same decisions."""
    replayed = decide(before, events, now_ms=outcome.state.now_ms)
    assert replayed.decisions == outcome.decisions, "the same events give other decisions"


def check(before: State, outcome: Outcome, *, simple: bool) -> None:
    """Every rule. `simple` says that one node holds everything, so that room is never a matter of shape."""
    state = outcome.state
    check_books(state)
    again = decide(state, [], now_ms=state.now_ms)
    moved = [decision for decision in again.decisions if decision.kind != "wait"]
    assert not moved, f"a decision on the same state finds more to do: {moved[0]}"
    if not state.leases:
        assert state.tree == state.planted, "a lease is over and the tree is not as it was planted"
    if simple:
        check_fairness(state)
    else:
        for entry in waiting(state):
            check_room_is_used(state, entry)
    assert before.now_ms <= state.now_ms, "time ran backwards"


def check_books(state: State) -> None:
    """What is free, and what queues hold, is what the running gangs leave and hold; and no limit is broken."""
    tree = state.tree
    total, size = state.total, range(len(tree.resources))
    used = [[0] * len(size) for _ in tree.branches]
    fixed = [[0] * len(size) for _ in tree.branches]
    devices = 0
    for entry in state.running():
        request = entry.gang.request
        devices += request.device_milli * entry.gang.ranks
        for at in tree.path(entry.leaf):
            for r in size:
                used[at][r] += entry.held[r]
                fixed[at][r] += 0 if entry.gang.preemptible else entry.held[r]
    assert used == state.used, "what queues hold is not what their gangs hold"
    assert fixed == state.fixed
    asked = [[0] * len(size) for _ in tree.branches]
    for entry in state.entries.values():
        asked[entry.leaf] = [sum(pair) for pair in zip(asked[entry.leaf], entry.asked, strict=True)]
    assert asked == state.asked, "what queues wish for is not what their gangs ask for"
    free = state.fleet.free.devices
    assert (free >= 0).all(), "a device gave more than it has"
    assert (free <= state.fleet.total.devices).all(), "a device got back more than it gave"
    assert int(state.fleet.total.devices.sum()) - int(free.sum()) == devices
    for at, branch in enumerate(tree.branches):
        for r in size:
            assert used[at][r] <= (total[r] if at == ROOT else branch.ceiling[r]), f"{branch.name} is above its limit"


def check_fairness(state: State) -> None:
    """Guarantees are met when asked for, nothing lies idle that somebody may use, and shares are weighted max-min."""
    shares = divide(state.tree, state.total, state.asked)
    for entry in waiting(state):
        check_room_is_used(state, entry)
        if entry.gang.priority == 0 and entry.gang.preemptible and within_share(state, entry, shares):
            (model,) = models_for(state, entry.gang)
            vector = state.tree.vector(entry.gang.request, ranks=entry.gang.ranks, model=model)
            limit = over_limit(state, entry, vector, state.total)
            stoppable = [each for each in state.running() if each.gang.preemptible and each.leaf != entry.leaf]
            firm = firm_wishes(state, entry)
            above = [
                each
                for each in stoppable
                if may_stop(each, state.claimed[each.leaf], shares[each.leaf], asked=entry.asked, firm=firm)
            ]
            idle = int((state.fleet.free.devices == WHOLE).sum())
            enough = idle + sum(map(_devices, above)) >= _devices(entry)
            assert limit or not above or not enough, f"{entry.gang.id} waits within its share beside {above[0].gang.id}"
    check_max_min(state, shares)


def _devices(entry: Entry) -> int:
    """Whole devices that a gang asks for."""
    return entry.gang.ranks * entry.gang.request.devices


def check_max_min(state: State, shares: Sequence[Vector]) -> None:
    """Nobody could have a unit more without taking it from somebody who has less per weight, beyond what is his own."""
    tree = state.tree
    for r in range(len(tree.resources)):
        wants = [0] * len(tree.branches)
        for at in range(len(tree.branches) - 1, ROOT, -1):
            branch = tree.branches[at]
            below = sum(wants[child] for child in branch.children) if branch.children else state.asked[at][r]
            wants[at] = max(min(below, branch.ceiling[r]), branch.held[r])
        if not any(wants):
            continue
        for at, branch in enumerate(tree.branches):
            inner = branch.children
            have = sum(shares[child][r] for child in inner)
            wanted = sum(wants[child] for child in inner)
            assert not inner or have == min(shares[at][r], wanted), f"{branch.name} divides {have} of {shares[at][r]}"
            own = {child: min(wants[child], tree.branches[child].floor[r]) for child in inner}
            if sum(own.values()) > shares[at][r]:
                continue  # minima beyond what there is, when nodes have failed: they are cut in proportion
            assert all(shares[child][r] >= own[child] for child in inner), f"a part of {branch.name} is below its min"
            weight = {child: tree.branches[child].weight for child in inner}
            high = max(((shares[child][r] - own[child] - 1) / weight[child] for child in inner), default=0)
            low = min(
                (
                    (shares[child][r] - own[child] + 1) / weight[child]
                    for child in inner
                    if shares[child][r] < wants[child]
                ),
                default=high,
            )
            assert low >= high, f"a part of {branch.name} could have more {tree.resources[r]} at a richer one's expense"


def check_room_is_used(state: State, entry: Entry) -> None:
    """Nobody waits who has quota and room."""
    for model in models_for(state, entry.gang):
        vector = state.tree.vector(entry.gang.request, ranks=entry.gang.ranks, model=model)
        if not over_limit(state, entry, vector, state.total):
            usable = usable_nodes(state.fleet, entry.gang, model)
            place = find_place(state.fleet, state.topology, entry.gang, model, usable)
            assert place is None, f"{entry.gang.id} waits although it has quota and room"


def waiting(state: State) -> list[Entry]:
    """Every gang that waits."""
    return [entry for entry in state.entries.values() if entry.place is None]
