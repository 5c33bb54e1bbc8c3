"""How many gangs a second does the scheduler start on Ray, and does every job end once when nodes are shot?

Gangs: of four ranks, decided by the core, written into the store, and set aside by Ray as a placement group whose
bundles are pinned to the chosen nodes; started when Ray has them and the store says so. `four nodes` are four raylets
of this machine with a bundle each, `one node` takes the whole gang in one bundle, and `Ray alone` are groups of four
pinned bundles on one node without decision or store. Ranks are not started here: a Python process for each would
measure nothing else.

Jobs: short ones on three raylets of this machine, each a process that leaves a trace. While they run one node is shot
with SIGKILL, another joins, and the head's raylet is shot too.

Ceiling: Ray's control process answers some 600 groups of one bundle a second, four messages each.

Run: python benchmarks/scheduler_ray.py [--quick] [--gangs 150] [--jobs 200] [--rounds 5]
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mainspring.cluster.engine import Engine, connect
from mainspring.cluster.gang import Gang
from mainspring.cluster.queue import QueueState, admit
from mainspring.cluster.reconcile import group_name
from mainspring.spec import TERMINAL, Job, Settings
from mainspring.store import Store
from mainspring.testing.processes import eventually
from mainspring.testing.ray_nodes import RayNodes, running_nodes
from measure import Findings, parse_options, publish, spread, take_turns

RANKS, MANY = 4, 4000
FOUR, ONE, BARE = "four nodes", "one node", "Ray alone"
SCHEDULE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from mainspring.cli import main; main()"


def trace(_task, payload):
    """What a job of the second part does: say that it began, take a little, say that it ended."""
    with Path(payload["trace"]).open("a") as file:
        print("began", file=file, flush=True)
        time.sleep(payload["seconds"])
        print("ended", file=file)


def starting(store: Store, engine: Engine, *, nodes: int, gangs: int, folder: Path) -> Callable[[int], float]:
    """An arm that starts gangs on the first `nodes` of the cluster: gangs a second."""
    members = {member.capacity.node: member for member in engine.members()[:nodes]}
    cluster, driver = engine.cluster_id(), f"bench-{nodes}"
    total = tuple(member.capacity for member in members.values())
    store.join(driver, cluster)

    def start(number: int) -> float:
        jobs = [Job(id=f"{nodes}-{number}-{n}", name="gang", entry="m:f", ranks=RANKS) for n in range(gangs)]
        for job in jobs:
            store.enqueue(job, address=engine.address, cluster=cluster, driver=driver)
        started_s = time.perf_counter()
        placed = admit(QueueState(total=total, free=total), jobs).placed
        assert len(placed) == gangs
        if nodes > 1:  # the core packs a gang where it fits on one node; here it shall be spread
            names = tuple(members)
            placed = tuple(replace(each, nodes=names) for each in placed)
        assert store.assign(cluster, placed, driver=driver, beside=())
        records = [store.job(each.job_id) for each in placed]
        found = [
            Gang(record.job, record.placement, members, run_dir=folder, name=group_name(store.id, record))
            for record in records
            if record.placement
        ]
        for gang in found:
            gang.reserve()
        for gang, record in zip(found, records, strict=True):
            while not gang.reserved():
                pass
            assert store.advance(record, "PLACED")
        seconds = time.perf_counter() - started_s
        for gang, record in zip(found, records, strict=True):
            assert store.advance(record, "SUCCEEDED")
            gang.release()
        assert eventually(lambda: not engine.groups(), within_s=60)
        return gangs / seconds

    return start


def bare(engine: Engine, *, gangs: int) -> Callable[[int], float]:
    """An arm of Ray alone: groups of four bundles pinned to one node, a second."""
    from ray.util.placement_group import placement_group, remove_placement_group

    pinned = [{"ray.io/node-id": engine.members()[0].id}] * RANKS

    def start(number: int) -> float:  # noqa: ARG001 every round is alike
        started_s = time.perf_counter()
        groups = [placement_group([{"CPU": 1.0}] * RANKS, bundle_label_selector=pinned) for _ in range(gangs)]
        for group in groups:
            while not group.wait(timeout_seconds=1.0):
                pass
        seconds = time.perf_counter() - started_s
        for group in groups:
            remove_placement_group(group)
        assert eventually(lambda: not engine.groups(), within_s=60)
        return gangs / seconds

    return start


def measure_gangs(*, gangs: int, rounds: int) -> dict[str, list[float]]:
    """Gangs a second of every arm, round by round."""
    with tempfile.TemporaryDirectory() as home, running_nodes(*[MANY] * RANKS) as ray:
        engine = connect(ray.address)
        with Store.open(Settings(home=home)) as store:
            arms = {
                FOUR: starting(store, engine, nodes=RANKS, gangs=gangs, folder=Path(home)),
                ONE: starting(store, engine, nodes=1, gangs=gangs, folder=Path(home)),
                BARE: bare(engine, gangs=gangs),
            }
            for arm in arms.values():
                arm(-1)  # compiles, and connects raylets with one another
            found = take_turns(arms, rounds=rounds)
        engine.close()
    return found


def shoot_nodes(jobs: int) -> dict[str, float]:
    """Run jobs to their ends while nodes are shot; how long, and what happened to them."""
    shots = {jobs // 8: "kill 2", jobs // 4: "add 2", jobs // 3: "kill 0"}
    with (
        tempfile.TemporaryDirectory() as home,
        running_nodes(2, 2, 2) as ray,
        Store.open(Settings(home=home)) as store,
    ):
        names = [f"j{n}" for n in range(jobs)]
        for name in names:
            job = Job(
                id=name,
                name=name,
                entry=f"{Path(__file__).stem}:trace",
                payload_json=json.dumps({"trace": f"{home}/{name}", "seconds": 0.1}),
                starts=10,
                folder=home,
                imports=(str(Path(__file__).parent),),
            )
            store.enqueue(job, address=ray.address)
        started_s = time.perf_counter()
        running = _scheduler(home, ray)

        def all_ended() -> bool:
            ended = sum(record.state in TERMINAL for record in store.jobs(limit=jobs))
            for after in [after for after in shots if ended >= after]:
                ray.tell(shots.pop(after))
            return ended == jobs

        try:
            assert eventually(all_ended, within_s=1200)
            seconds = time.perf_counter() - started_s
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(60)
        told = store.events(kind="job.state", limit=1_000_000)
        states = [(event.subject, json.loads(event.data_json)["state"]) for event in told]
        ends = Counter(name for name, state in states if state in TERMINAL)
        traces = [Path(home, name).read_text().split() for name in names]
        return {
            "seconds": seconds,
            "succeeded": sum(record.state == "SUCCEEDED" for record in store.jobs(limit=jobs)),
            "ended_once": sum(count == 1 for count in ends.values()),
            "started_again": sum(record.attempt > 1 for record in store.jobs(limit=jobs)),
            "finished_twice": sum(each.count("ended") > 1 for each in traces),
        }


def _scheduler(home: str, ray: RayNodes) -> "subprocess.Popen[bytes]":
    source = str(Path(__file__).resolve().parents[1] / "src")
    order = [sys.executable, "-c", SCHEDULE, source, "--home", home, "--address", ray.address, "schedule"]
    return subprocess.Popen(order, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": source})


def main() -> None:
    options = parse_options(__doc__, gangs=150, jobs=200, rounds=5)
    gangs, jobs, rounds = (10, 9, 1) if options.quick else (options.gangs, options.jobs, options.rounds)
    samples = measure_gangs(gangs=gangs, rounds=rounds)
    spreads = {name: spread(values) for name, values in samples.items()}
    fate = shoot_nodes(jobs)
    publish(
        Findings(
            benchmark="scheduler_ray",
            headline=f"{spreads[FOUR].median:,.0f} gangs of four pinned bundles a second; with two nodes shot, "
            f"{fate['ended_once']:.0f} of {jobs} jobs ended once",
            columns=("what", "unit", "median (quartiles)"),
            rows=(
                *((f"gangs, {name}", "a second", f"{found}") for name, found in spreads.items()),
                (f"{jobs} jobs while two nodes are shot", "s", f"{fate['seconds']:.0f}"),
                ("of these succeeded", "jobs", f"{fate['succeeded']:.0f}"),
                ("of these ended exactly once", "jobs", f"{fate['ended_once']:.0f}"),
                ("of these were started again", "jobs", f"{fate['started_again']:.0f}"),
                ("of these came to their end twice", "jobs", f"{fate['finished_twice']:.0f}"),
            ),
            numbers={"gangs_per_s": spreads[FOUR].median, **fate},
            spec={"gangs": gangs, "jobs": jobs, "rounds": rounds, "ranks": RANKS},
            samples=samples,
        ),
        packages=("ray", "sqlalchemy"),
    )


if __name__ == "__main__":
    main()
