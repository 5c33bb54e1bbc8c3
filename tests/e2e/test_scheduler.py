"""Schedulers that are shot at any point, and nodes too: nothing is left behind, nothing runs twice, nothing is lost."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cluster_entries
import pytest

from mainspring.spec import TERMINAL, Job, JobRecord, Settings
from mainspring.store import Store
from mainspring.testing.processes import eventually, marked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ENTRIES = Path(cluster_entries.__file__).parent


@dataclass
class Ray:
    """Ray nodes of this machine, in a process of their own."""

    address: str
    process: "subprocess.Popen[str]"

    def tell(self, order: str) -> None:
        """Have a node shot or added."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        json.loads(self.process.stdout.readline())


def ray_nodes(*cpus: int) -> Iterator[Ray]:
    with tempfile.TemporaryDirectory(prefix="ms-", dir="/tmp", ignore_cleanup_errors=True) as temp:
        order = [sys.executable, str(ENTRIES / "ray_nodes.py"), temp, *map(str, cpus)]
        with subprocess.Popen(order, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            address = json.loads(next(line for line in process.stdout if line.startswith("{")))["address"]
            try:
                yield Ray(address, process)
            finally:
                process.communicate(timeout=60)


# What a scheduler does when it is to die: at the first step of this kind of this job.
SCHEDULER = """
    import os, signal, sys, threading
    from mainspring.cluster import Launcher, attempt
    from mainspring.cluster.gang import Gang
    from mainspring.spec import Settings
    from mainspring.store import Store

    home, address, job, where, when = sys.argv[1:]

    def deadly(owner, name):
        real = getattr(owner, name)
        def step(self, *arguments, **named):
            mine = getattr(self, "job", None) or self.handle.job
            if mine.id == job and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = real(self, *arguments, **named)
            if mine.id == job and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return answer
        setattr(owner, name, step)

    if where:
        deadly(attempt.Attempt if where.startswith("_") else Gang, where)
    with Store.open(Settings(home=home)) as store:
        with Launcher(store, address=address, serves=True) as launcher:
            launcher.serve(threading.Event())
"""
GROUPS = """
    import json, sys
    from mainspring.cluster.engine import connect
    engine = connect(sys.argv[1])
    print(json.dumps([name for _, name in engine.groups()]))
    engine.close()
"""
POINTS = [
    ("reserve", "before"),  # the places are written down, and not asked for
    ("reserve", "after"),
    ("prepare", "after"),  # agents wait, and nothing says so
    ("start", "before"),  # RUNNING is written, and nothing runs
    ("start", "after"),
    ("collect", "before"),  # all ranks have ended, and only their agents know
    ("_release", "before"),  # the end is written, and everything still stands
    ("_release", "after"),
]


def environment(mark: str = "") -> dict[str, str]:
    paths = os.pathsep.join([str(ENTRIES), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "SCHEDULER_TEST": mark}


def scheduler(home: Path, ray: Ray, *, job: str = "", where: str = "", when: str = "") -> "subprocess.Popen[bytes]":
    order = [sys.executable, "-c", textwrap.dedent(SCHEDULER), str(home), ray.address, job, where, when]
    with (home / "scheduler.log").open("ab") as log:
        return subprocess.Popen(order, env=environment(), stdout=log, stderr=log)


def groups(ray: Ray) -> list[str]:
    order = [sys.executable, "-c", textwrap.dedent(GROUPS), ray.address]
    done = subprocess.run(order, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def submit(store: Store, name: str, home: Path, ray: Ray, **payload: object) -> JobRecord:
    job = Job(
        id=name,
        name=name,
        entry="cluster_entries:once",
        payload_json=json.dumps({"trace": str(home / f"{name}.trace"), **payload}),
        imports=(str(ENTRIES),),
        folder=str(home),
        starts=10,
        env=(("SCHEDULER_TEST_JOB", str(home)),),
    )
    return store.enqueue(job, address=ray.address)


def ends(store: Store) -> Counter[str]:
    """How often each job was said to have ended."""
    told = [
        (event.subject, json.loads(event.data_json)["state"]) for event in store.events(kind="job.state", limit=10**6)
    ]
    return Counter(subject for subject, state in told if state in TERMINAL)


@pytest.fixture(scope="module")
def one_node() -> Iterator[Ray]:
    yield from ray_nodes(4)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_scheduler_shot_at_any_point_leaks_no_group_runs_no_job_twice_and_loses_none(one_node: Ray, home: Path):
    with Store.open(Settings(home=str(home))) as store:
        for number, (where, when) in enumerate(POINTS):
            submit(store, f"j{number}", home, one_node, seconds=1)
            shot = scheduler(home, one_node, job=f"j{number}", where=where, when=when)
            assert shot.wait(90) == -9, (where, when, (home / "scheduler.log").read_text()[-4000:])
        last = scheduler(home, one_node)
        try:
            names = [f"j{number}" for number in range(len(POINTS))]
            done = eventually(lambda: all(store.job(name).state in TERMINAL for name in names), within_s=60)
            assert done, [(record.job.id, record.state, record.reason) for record in store.jobs()]
            assert eventually(lambda: len(store.events(kind="group.removed")) >= 1, within_s=20)
            assert groups(one_node) == []
        finally:
            last.terminate()
            last.wait(60)
        for name, point in zip(names, POINTS, strict=True):
            assert store.job(name).state == "SUCCEEDED", (point, store.job(name))
            assert (home / f"{name}.trace").read_text() == "began 0\nended 0\n", point
        assert ends(store) == dict.fromkeys(names, 1)
    assert not marked("SCHEDULER_TEST_JOB", str(home))
