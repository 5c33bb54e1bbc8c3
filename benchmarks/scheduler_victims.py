"""Is room for a gang made in one decision, and with as few others stopped or moved as possible?

The situations of three threads of kueue's users, in each of which quota, topology and fragmentation decided one after
the other leave a job waiting: #10815 (what fairness frees lies in several NVLink cliques), #12478 (a required rack is
not cleared by moving others) and #5243 (eight free devices on four nodes). The fewest victims are found by trying every
set of running gangs. `random clusters` are four racks of two hosts, full of gangs of two, four and eight devices, and a
gang of high priority that needs one or two whole hosts, of one rack or of any.

Ceiling: the fewest that exhaustion finds.

Run: python benchmarks/scheduler_victims.py [--quick] [--clusters 300]
"""

import random
from collections.abc import Sequence

from mainspring.cluster.schedule.decide import Outcome, decide
from mainspring.cluster.schedule.state import State, build_state
from mainspring.spec import Gang, Machine, Queue, Request, Rules, Submitted
from mainspring.testing.situations import SITUATIONS, smallest_sets
from measure import Findings, parse_options, publish

HOUR = 3_600_000


def settle(state: State, gang: Gang) -> tuple[Outcome, int]:
    """One decision about `gang`, and how many others left their places in it."""
    outcome = decide(state, [Submitted(gang=gang)], now_ms=HOUR)
    return outcome, sum(decision.kind == "evict" for decision in outcome.decisions)


def draw_cluster(draw: random.Random) -> tuple[State, Gang]:
    """Eight hosts in four racks, full, so that nobody can be moved, and a gang that outranks everybody."""
    machines = [
        Machine(name=f"h{n}", cpu_milli=64_000, memory_mib=1 << 19, devices=8, model="H100", domain=(f"r{n // 2}",))
        for n in range(8)
    ]
    state = build_state(machines, [Queue(name="a")], levels=("rack",), rules=Rules(shield_ms=0))
    left, gangs = 64, []
    while left > 0:
        size = min(left, draw.choice((2, 4, 8)))
        gangs.append(Gang(id=f"g{len(gangs)}", queue="a", request=Request(cpu_milli=100, devices=size)))
        left -= size
    state = decide(state, [Submitted(gang=gang) for gang in gangs], now_ms=0).state
    inside = draw.random() < 0.5
    return state, Gang(
        id="big",
        queue="a",
        ranks=draw.randint(1, 2),
        request=Request(cpu_milli=100, devices=8),
        priority=9,
        level="rack" if inside else "",
        binding="required" if inside else "preferred",
    )


def main() -> None:
    options = parse_options(__doc__, clusters=300)
    count = 5 if options.quick else options.clusters
    rows, numbers, samples = [], {}, {}
    for name, build in SITUATIONS.items():
        state, gang = build()
        outcome, victims = settle(state, gang)
        fewest = len(smallest_sets(state, gang)[0])
        started = outcome.state.entries[gang.id].place is not None
        stopped = sum(outcome.state.entries[d.gang].place is None for d in outcome.decisions if d.kind == "evict")
        assert started, f"{name}: the gang waits"
        assert victims == fewest, f"{name}: {victims} victims, {fewest} would do"
        rows.append((name, "1", f"{victims}", f"{stopped}", f"{fewest}"))
        samples[name] = {"victims": victims, "stopped": stopped, "fewest": fewest}
    ours, fewest = compare(count)
    equal = sum(one == other for one, other in zip(ours, fewest, strict=True))
    rows.append(
        (f"{len(ours)} random clusters", "1", f"{mean(ours):.2f}", "", f"{mean(fewest):.2f}"),
    )
    numbers = {"situations": len(SITUATIONS), "random": len(ours), "random_fewest": equal / max(1, len(ours))}
    publish(
        Findings(
            benchmark="scheduler_victims",
            headline=f"{len(SITUATIONS)} of {len(SITUATIONS)} situations are solved in one decision with the fewest "
            f"victims, and {equal} of {len(ours)} random ones",
            columns=("situation", "decisions", "stopped or moved", "stopped for good", "fewest possible"),
            rows=tuple(rows),
            numbers=numbers,
            spec={"clusters": count},
            samples=samples | {"random": {"ours": ours, "fewest": fewest}},
        ),
        packages=("numpy",),
    )


def compare(count: int) -> tuple[list[int], list[int]]:
    """Victims on random clusters where the gang pushed in, ours and the fewest."""
    ours, fewest, draw = list[int](), list[int](), random.Random(0)
    for _ in range(count):
        state, gang = draw_cluster(draw)
        outcome, victims = settle(state, gang)
        if victims and outcome.state.entries[gang.id].place is not None:
            ours.append(victims)
            fewest.append(len(smallest_sets(state, gang, most=victims)[0]))
    return ours, fewest


def mean(numbers: Sequence[int]) -> float:
    return sum(numbers) / max(1, len(numbers))


if __name__ == "__main__":
    main()
