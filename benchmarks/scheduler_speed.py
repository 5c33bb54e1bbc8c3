"""How fast does the scheduler decide: single tasks, a gang of 1,024, and a plan to gather 2,048 devices?

Tasks: 10,000 nodes like those of the openb trace, whose task list has 151 classes (`--traces`, as in scheduler_openb),
or made-up ones. They fill the empty cluster to 95 % of its devices; then one ends at random and another starts, again
and again. Gangs: 10,000 nodes of eight devices in blocks of 640 and racks of 20, 80 % of them busy with gangs. One of
1,024 ranks finds its place, and 2,048 devices are gathered for one gang in one block, in a plan that says whom it
stops. Speeds are per second of processor time on one core.

Ceiling: some 30 nodes have changed since a class of tasks last came, each scored in some 0.05 us: 600,000 a second.

Run: python benchmarks/scheduler_speed.py [--quick] [--rounds 5] [--traces traces]
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from mainspring.cluster.schedule.decide import decide
from mainspring.cluster.schedule.fleet import build_fleet
from mainspring.cluster.schedule.gather import plan_gather
from mainspring.cluster.schedule.kernels import Ints
from mainspring.cluster.schedule.placer import PLAIN, Placer
from mainspring.cluster.schedule.state import State, build_state
from mainspring.cluster.schedule.winners import FAILED
from mainspring.cluster.simulate.inflate import arrivals, build_demand, capacity
from mainspring.cluster.simulate.trace import read_machines, read_requests
from mainspring.spec import Gang, Machine, Queue, Quota, Request, Rules, Submitted
from mainspring.testing.traces import build_machines, build_requests
from measure import Findings, parse_options, publish, spread, take_turns

NODE_LIST, TASK_LIST = "openb_node_list_gpu_node.csv", "openb_pod_list_default.csv"
NODES, BLOCK, RACK = 10_000, 640, 20
BUSY = 0.8
FILL, CHURN, GANG, GATHER = "placements", "start-and-stop pairs", "gang of 1,024", "gather 2,048 devices, dry run"
HOUR = 3_600_000


def workload(nodes: int, traces: Path) -> tuple[tuple[Machine, ...], tuple[Request, ...]]:
    """The machines and tasks of the trace, machines repeated; made-up ones where there is no trace."""
    if not (traces / NODE_LIST).exists():
        return build_machines(nodes), build_requests(4 * nodes)
    some = read_machines(traces / NODE_LIST)
    machines = tuple(replace(some[n % len(some)], name=f"n{n}") for n in range(nodes))
    return machines, read_requests(traces / TASK_LIST)


def filling(nodes: int, *, pairs: int, traces: Path) -> Callable[[int], tuple[float, float]]:
    """An arm that fills a cluster and then churns it: placements and pairs per second."""
    machines, tasks = workload(nodes, traces)
    fleet = build_fleet(machines)
    demand = build_demand(tasks, fleet)
    classes = arrivals(demand, until=0.95 * capacity(fleet), seed=1)
    more = np.concatenate([classes, np.random.default_rng(2).choice(demand.tasks, pairs)])

    def fill(number: int) -> tuple[float, float]:  # noqa: ARG001 every filling is alike
        places = np.full(len(more), FAILED), np.zeros(len(more), np.int64)
        started = time.process_time()
        placer = Placer(fleet.copy(), demand.requests, counts=Counter(tasks), policy=PLAIN)
        placer.replay(np.arange(len(classes)), classes=more, nodes=places[0], devices=places[1])
        filled = time.process_time()
        churn = _churn(np.flatnonzero(places[0] != FAILED), first=len(classes), pairs=pairs)
        again = time.process_time()
        placer.replay(churn, classes=more, nodes=places[0], devices=places[1])
        return len(classes) / (filled - started), pairs / (time.process_time() - again)

    return fill


def _churn(live: Ints, *, first: int, pairs: int) -> Ints:
    """Ends of random live tasks, each followed by the start of a new one."""
    draw, live = random.Random(3), list(live)
    ops = []
    for number in range(pairs):
        out = draw.randrange(len(live))
        ops += [-1 - live[out], first + number]
        live[out] = first + number
    return np.array(ops)


def busy_cluster(nodes: int) -> State:
    """Blocks and racks of eight-device nodes, 80 % of them taken by gangs of 1 to 16 nodes of two queues."""
    machines = [
        Machine(
            name=f"n{n:05d}",
            cpu_milli=96_000,
            memory_mib=1 << 20,
            devices=8,
            model="H100",
            domain=(f"b{n // BLOCK}", f"r{n // RACK:04d}"),
        )
        for n in range(nodes)
    ]
    parts = [Queue(name=name, parent="org", quotas=(Quota(resource="devices", min=2 * nodes),)) for name in "ab"]
    org = Queue(name="org", quotas=(Quota(resource="devices", min=8 * nodes),))
    state = build_state(machines, (org, *parts), levels=("block", "rack"), rules=Rules(shield_ms=0))
    draw, taken, gangs = random.Random(1), 0, []
    while taken < BUSY * nodes:
        size = draw.choice((1, 1, 2, 4, 16))
        hosts = tuple(machine.name for machine in draw.sample(machines, 40 + size)) if size == 1 else ()
        gangs.append(_gang(f"g{len(gangs)}", "ab"[len(gangs) % 2], size, nodes=hosts))
        taken += size
    state = decide(state, [Submitted(gang=gang) for gang in gangs], now_ms=0).state
    for name, entry in state.entries.items():
        state.entries[name] = replace(entry, gang=replace(entry.gang, nodes=()))
    return state


def _gang(name: str, queue: str, ranks: int, **wishes: object) -> Gang:
    request = Request(cpu_milli=64_000, memory_mib=1 << 18, devices=8)
    return Gang(id=name, queue=queue, ranks=ranks, request=request, **wishes)


def placing(state: State) -> Callable[[int], float]:
    """An arm that starts a gang of 1,024 ranks of one device each: milliseconds."""
    gang = Gang(id="big", queue="a", ranks=1024, request=Request(cpu_milli=8_000, devices=1), level="block")

    def place(number: int) -> float:  # noqa: ARG001 every decision is alike
        started = time.process_time()
        outcome = decide(state, [Submitted(gang=gang)], now_ms=HOUR)
        spent = time.process_time() - started
        assert [decision.kind for decision in outcome.decisions] == ["start"]
        return 1000 * spent

    return place


def gathering(state: State, ranks: int) -> Callable[[int], float]:
    """An arm that plans a gather for a gang of eight-device ranks inside one block: milliseconds."""
    gang = _gang("whale", "a", ranks, level="block", binding="required")

    def gather(number: int) -> float:  # noqa: ARG001 every plan is alike
        started = time.process_time()
        plan = plan_gather(state, "org", gang, until_ms=9 * HOUR)
        assert len(plan.nodes) == ranks
        return 1000 * (time.process_time() - started)

    return gather


def main() -> None:
    options = parse_options(__doc__, rounds=5, traces="traces")
    nodes, rounds = (1280, 1) if options.quick else (NODES, options.rounds)
    state = busy_cluster(nodes)
    fill = filling(nodes, pairs=10_000 if options.quick else 100_000, traces=Path(options.traces))
    fill(0)  # compiles
    arms = {FILL: fill, GANG: placing(state), GATHER: gathering(state, 256)}
    found = take_turns(arms, rounds=rounds)
    samples = {
        FILL: [pair[0] for pair in found[FILL]],
        CHURN: [pair[1] for pair in found[FILL]],
        GANG: found[GANG],
        GATHER: found[GATHER],
    }
    units = {FILL: "a second", CHURN: "a second", GANG: "ms", GATHER: "ms"}
    asked = {FILL: "at least 50,000", CHURN: "at least 12,000", GANG: "at most 50", GATHER: "at most 200"}
    spreads = {name: spread(values) for name, values in samples.items()}
    publish(
        Findings(
            benchmark="scheduler_speed",
            headline=f"{spreads[FILL].median:,.0f} placements a second on {nodes:,} nodes, a gang of 1,024 in "
            f"{spreads[GANG].median:.0f} ms, a plan to gather 2,048 devices in {spreads[GATHER].median:.0f} ms",
            columns=("decision", "unit", "asked", "median (quartiles)"),
            rows=tuple((name, units[name], asked[name], f"{spreads[name]}") for name in samples),
            numbers={
                "placements_per_s": spreads[FILL].median,
                "pairs_per_s": spreads[CHURN].median,
                "gang_ms": spreads[GANG].median,
                "gather_ms": spreads[GATHER].median,
            },
            spec={"nodes": nodes, "rounds": rounds, "classes": len(set(workload(nodes, Path(options.traces))[1]))},
            samples=samples,
        ),
        packages=("numba", "numpy"),
    )


if __name__ == "__main__":
    main()
