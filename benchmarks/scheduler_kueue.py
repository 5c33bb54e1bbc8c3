"""How long do Kueue's own performance workloads take, in virtual time, when nothing but the scheduler decides?

The generators are those of Kueue's performance tests (kubernetes-sigs/kueue, test/performance/scheduler/configs):
cohorts of queues with a nominal quota of 20 each that may borrow all of their cohort, and three classes of one-pod
workloads that arrive at fixed intervals. Every cohort is played on its own. Kueue's continuous integration reports
351.1 s of wall time for the baseline and 1,179 s for the large one; ours is virtual time, so it has no API server,
and says what the decisions themselves cost in makespan and in processor time.

Ceiling: the work of a cohort over its quota, 66.0 s for the baseline and 3.8 s for the large one.

Run: python benchmarks/scheduler_kueue.py [--quick]
"""

import time
from dataclasses import dataclass

from mainspring.cluster.schedule.state import State, build_state
from mainspring.cluster.simulate.replay import Arrival, Replay, replay
from mainspring.spec import Gang, Machine, Queue, Quota, Request, Rules
from measure import Findings, parse_options, publish

NOMINAL = 20


@dataclass(frozen=True, slots=True)
class Workload:
    """One class of workloads of every queue: how many, how often, and what each is."""

    name: str
    count: int
    interval_ms: int
    runtime_ms: int
    priority: int
    request: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A generator, the wall time that Kueue's tests report for it, and the makespan that is asked of us."""

    cohorts: int
    queues: int
    workloads: tuple[Workload, ...]
    kueue_s: float
    asked_s: float


SCENES = {
    "baseline": Scene(
        5,
        6,
        (
            Workload("small", 350, 100, 200, 50, 1),
            Workload("medium", 100, 500, 500, 100, 5),
            Workload("large", 50, 1200, 1000, 200, 20),
        ),
        351.1,
        67.0,
    ),
    "large scale": Scene(
        10,
        100,
        (
            Workload("small", 35, 60, 150, 50, 1),
            Workload("medium", 11, 300, 350, 100, 5),
            Workload("large", 4, 700, 700, 200, 20),
        ),
        1179.4,
        5.0,
    ),
}


def cohort(scene: Scene) -> tuple[State, list[Arrival]]:
    """One cohort, idle, and what arrives in it."""
    whole = scene.queues * NOMINAL
    machine = Machine(name="cohort", cpu_milli=whole * 1000, memory_mib=1 << 20)
    names = [f"cq-{number}" for number in range(scene.queues)]
    quota = (Quota(resource="cpu", min=NOMINAL, borrow=100),)
    queues = [Queue(name=name, quotas=quota) for name in names]
    arrivals = [
        Arrival(at_ms=number * kind.interval_ms, gang=gang(kind, name, number), work_ms=kind.runtime_ms)
        for name in names
        for kind in scene.workloads
        for number in range(kind.count)
    ]
    return build_state([machine], queues, rules=Rules()), arrivals


def gang(kind: Workload, queue: str, number: int) -> Gang:
    return Gang(
        id=f"{kind.name}-{queue}-{number:04d}",
        queue=queue,
        request=Request(cpu_milli=1000 * kind.request),
        priority=kind.priority,
        runtime_ms=kind.runtime_ms,
    )


def play(scene: Scene, cohorts: int) -> tuple[list[Replay], float]:
    """Play each cohort; also the processor seconds it took."""
    started = time.process_time()
    return [replay(*cohort(scene)) for _ in range(cohorts)], time.process_time() - started


def main() -> None:
    options = parse_options(__doc__)
    rows, numbers, samples = [], {}, {}
    for name, scene in SCENES.items():
        found, cpu_s = play(scene, 1 if options.quick else scene.cohorts)
        makespan_s = max(each.makespan_ms for each in found) / 1000
        workloads = sum(len(each.lives) for each in found)
        use = sum(each.busy for each in found) / (len(found) * scene.queues * NOMINAL * 1000 * makespan_s * 1000)
        waits = [sum(each.wait_ms(kind.name) for each in found) / len(found) / 1000 for kind in scene.workloads]
        stops = sum(life.stops for each in found for life in each.lives.values())
        key = name.replace(" ", "_")
        numbers |= {f"{key}_makespan_s": makespan_s, f"{key}_cpu_s": cpu_s, f"{key}_use": use, f"{key}_stops": stops}
        samples[key] = {"makespans_ms": [each.makespan_ms for each in found], "waits_s": waits}
        rows.append(
            (
                name,
                f"{workloads:,}",
                f"at most {scene.asked_s:.0f} s",
                f"{makespan_s:.1f} s",
                f"{scene.kueue_s:,.0f} s",
                f"{100 * use:.1f} %",
                " / ".join(f"{wait:.1f}" for wait in waits),
                f"{workloads / cpu_s:,.0f}",
            )
        )
    publish(
        Findings(
            benchmark="scheduler_kueue",
            headline=f"Kueue's baseline test in {numbers['baseline_makespan_s']:.1f} s of virtual time, its large "
            f"one in {numbers['large_scale_makespan_s']:.1f} s",
            columns=(
                "test",
                "workloads",
                "asked",
                "makespan",
                "Kueue, wall",
                "in use",
                "wait s/m/l, s",
                "workloads per cpu s",
            ),
            rows=tuple(rows),
            numbers=numbers,
            spec={"nominal": NOMINAL, "quick": options.quick},
            samples=samples,
        ),
        packages=("numba", "numpy"),
    )


if __name__ == "__main__":
    main()
