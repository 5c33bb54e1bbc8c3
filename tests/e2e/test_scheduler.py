"""Schedulers that are shot at any point, and nodes too: nothing is left behind, nothing runs twice, nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cluster_entries
import pytest

from mainspring.hardware.census import Census, take_census
from mainspring.spec import TERMINAL, Job, JobRecord, Resources, Settings
from mainspring.store import Store
from mainspring.testing.processes import eventually, marked
from mainspring.testing.ray_nodes import RayNodes, running_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ENTRIES = Path(cluster_entries.__file__).parent
BUSY_S = 120  # how long anything may take on a busy machine


# What a scheduler does when it is to die: at the first step of this kind of this job.
SCHEDULER = """
    import os, signal, sys, threading
    from mainspring.cluster import Launcher, attempt
    from mainspring.cluster.gang import Gang
    from mainspring.spec import QueueFile, Rules, Settings
    from mainspring.store import Store

    home, address, job, where, when = sys.argv[1:]
    hasty = QueueFile(queues=(), rules=Rules(shield_ms=1))

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
        with Launcher(store, address=address, quotas=hasty, serves=True) as launcher:
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


def scheduler(
    home: Path, ray: RayNodes, *, job: str = "", where: str = "", when: str = ""
) -> "subprocess.Popen[bytes]":
    order = [sys.executable, "-c", textwrap.dedent(SCHEDULER), str(home), ray.address, job, where, when]
    with (home / "scheduler.log").open("ab") as log:
        return subprocess.Popen(order, env=environment(), stdout=log, stderr=log)


def groups(ray: RayNodes) -> list[str]:
    order = [sys.executable, "-c", textwrap.dedent(GROUPS), ray.address]
    done = subprocess.run(order, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def submit(
    store: Store,
    name: str,
    home: Path,
    ray: RayNodes,
    *,
    entry: str = "once",
    cpus: float = 1,
    priority: int = 0,
    **payload: object,
) -> JobRecord:
    job = Job(
        id=name,
        name=name,
        entry=f"cluster_entries:{entry}",
        resources=Resources(cpus=cpus),
        payload_json=json.dumps({"trace": str(home / f"{name}.trace"), **payload}),
        imports=(str(ENTRIES),),
        folder=str(home),
        starts=10,
        priority=priority,
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
def one_node() -> Iterator[RayNodes]:
    with running_nodes(4) as nodes:
        yield nodes


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_scheduler_shot_at_any_point_leaks_no_group_runs_no_job_twice_and_loses_none(one_node: RayNodes, home: Path):
    with Store.open(Settings(home=str(home))) as store:
        for number, (where, when) in enumerate(POINTS):
            submit(store, f"j{number}", home, one_node, seconds=1)
            shot = scheduler(home, one_node, job=f"j{number}", where=where, when=when)
            assert shot.wait(BUSY_S) == -9, (where, when, (home / "scheduler.log").read_text()[-4000:])
        last = scheduler(home, one_node)
        try:
            names = [f"j{number}" for number in range(len(POINTS))]
            done = eventually(lambda: all(store.job(name).state in TERMINAL for name in names), within_s=BUSY_S)
            assert done, [(record.job.id, record.state, record.reason) for record in store.jobs()]
            assert eventually(lambda: len(store.events(kind="group.removed")) >= 1, within_s=BUSY_S)
            assert groups(one_node) == []
        finally:
            last.terminate()
            last.wait(BUSY_S)
        for name, point in zip(names, POINTS, strict=True):
            assert store.job(name).state == "SUCCEEDED", (point, store.job(name))
            assert (home / f"{name}.trace").read_text() == "began 0\nended 0\n", point
        assert ends(store) == dict.fromkeys(names, 1)
    assert not marked("SCHEDULER_TEST_JOB", str(home))


def test_a_scheduler_that_is_stopped_lets_go_and_the_next_one_goes_on(one_node: RayNodes, home: Path):
    with Store.open(Settings(home=str(home))) as store:
        submit(store, "running", home, one_node, seconds=8, cpus=4)
        submit(store, "waiting", home, one_node, cpus=4)
        first = scheduler(home, one_node)
        assert eventually((home / "running.trace").exists, within_s=BUSY_S)
        assert eventually(lambda: "fit now" in store.job("waiting").reason, within_s=BUSY_S)
        first.send_signal(signal.SIGINT)
        first.wait(BUSY_S)
        assert [store.job(name).state for name in ("running", "waiting")] == ["RUNNING", "PENDING"]
        second = scheduler(home, one_node)
        try:
            assert eventually(lambda: store.job("waiting").state == "SUCCEEDED", within_s=BUSY_S), store.jobs()
            assert eventually(lambda: groups(one_node) == [], within_s=BUSY_S)  # no other test's scheduler removes it
        finally:
            second.terminate()
            second.wait(BUSY_S)
        assert store.job("running").state == "SUCCEEDED"
        assert (home / "running.trace").read_text() == "began 0\nended 0\n"
        assert [store.job(name).attempt for name in ("running", "waiting")] == [1, 1]


ATTACHED = """
    import json, sys
    from mainspring.cluster import Launcher
    from mainspring.spec import Job, QueueFile, Resources, Rules, Settings
    from mainspring.store import Store

    home, address, name, seconds, cpus, priority = sys.argv[1:]
    hasty = QueueFile(queues=(), rules=Rules(shield_ms=1))
    with Store.open(Settings(home=home)) as store, Launcher(store, address=address, quotas=hasty) as launcher:
        payload = json.dumps({"trace": f"{home}/{name}.trace", "seconds": float(seconds)})
        given = {"payload_json": payload, "resources": Resources(cpus=float(cpus)), "priority": int(priority)}
        job = Job(id=name, name=name, entry="cluster_entries:once", **given)
        print(launcher.submit(job).wait(100).state)
"""


def attached(
    home: Path, ray: RayNodes, name: str, *, seconds: float = 0.0, cpus: int = 4, priority: int = 0
) -> "subprocess.Popen[str]":
    given = [str(home), ray.address, name, str(seconds), str(cpus), str(priority)]
    order = [sys.executable, "-c", textwrap.dedent(ATTACHED), *given]
    return subprocess.Popen(order, env=environment(), stdout=subprocess.PIPE, text=True)


def test_drivers_of_one_store_wait_for_one_another_and_clear_up_after_one_that_is_shot(one_node: RayNodes, home: Path):
    with Store.open(Settings(home=str(home))) as store:
        first = attached(home, one_node, "first", seconds=60, cpus=3)
        assert eventually((home / "first.trace").exists, within_s=BUSY_S)
        second = attached(home, one_node, "second", cpus=3)
        assert eventually(lambda: any(each.job.id == "second" for each in store.jobs()), within_s=BUSY_S)
        assert eventually(lambda: "0 would fit now" in store.job("second").reason, within_s=BUSY_S), store.job("second")
        first.kill()
        first.communicate()
        assert second.communicate(timeout=BUSY_S)[0].split()[-1] == "SUCCEEDED"
        assert (store.job("first").state, store.job("first").reason) == (
            "FAILED",
            "the process that started it is gone",
        )
        assert eventually(lambda: groups(one_node) == [], within_s=BUSY_S)


def reasons(store: Store, name: str) -> list[str]:
    return [json.loads(event.data_json)["reason"] for event in store.events(kind="job.state", subject=name)]


def test_a_job_saves_and_makes_room_for_another_drivers_of_higher_priority_and_goes_on_whoever_is_shot(
    one_node: RayNodes, home: Path
):
    with Store.open(Settings(home=str(home))) as store:
        submit(store, "low", home, one_node, entry="save_when_told", cpus=4)
        shot = scheduler(home, one_node, job="low", where="stop", when="after")  # its ranks are asked, and then...
        assert eventually((home / "low.trace").exists, within_s=BUSY_S)
        urgent = attached(home, one_node, "urgent", seconds=1, priority=1)
        assert shot.wait(BUSY_S) == -9, (home / "scheduler.log").read_text()[-4000:]
        assert (store.job("low").state, store.job("low").evicted) == ("RUNNING", "stops: makes room for urgent")
        assert store.job("urgent").state == "ADMITTED"
        # The one that takes over dies when it is written down that the job waits again, and its group still stands.
        shot = scheduler(home, one_node, job="low", where="_release", when="before")
        assert shot.wait(BUSY_S) == -9, (home / "scheduler.log").read_text()[-4000:]
        assert (store.job("low").state, store.job("low").losses) == ("PENDING", 0)
        assert (home / "low.trace").read_text() == "began\nsaved\n"
        (home / "low.trace.go").touch()
        assert urgent.communicate(timeout=BUSY_S)[0].split()[-1] == "SUCCEEDED"
        last = scheduler(home, one_node)
        try:
            assert eventually(lambda: store.job("low").state == "SUCCEEDED", within_s=BUSY_S), store.jobs()
            assert eventually(lambda: groups(one_node) == [], within_s=BUSY_S)
        finally:
            last.terminate()
            last.wait(BUSY_S)
        assert (home / "low.trace").read_text() == "began\nsaved\nwent on\n"
        assert (home / "urgent.trace").read_text() == "began 0\nended 0\n"
        assert (store.job("low").attempt, store.job("low").losses) == (2, 0)
        assert ends(store) == {"low": 1, "urgent": 1}
        assert "stops: makes room for urgent" in reasons(store, "low")


def command(home: Path, ray: RayNodes, *words: str) -> str:
    """What `mainspring` says, with rules under which whoever has just started may be stopped at once."""
    (home / "quotas.toml").write_text("queues = []\n[rules]\nshield_ms = 1\n")
    given = {"MAINSPRING_HOME": str(home), "MAINSPRING_QUOTAS": str(home / "quotas.toml")}
    order = [sys.executable, "-c", "from mainspring.cli import main; main()", "--address", ray.address, *words]
    done = subprocess.run(order, env=environment() | given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_gathering_stops_whom_its_plan_names_and_gives_all_back_although_its_scheduler_is_shot_in_the_middle(
    one_node: RayNodes, home: Path
):
    with Store.open(Settings(home=str(home))) as store:
        begun = time.monotonic()
        for name in ("a", "b"):
            submit(store, name, home, one_node, entry="save_when_told", cpus=2)
        shot = scheduler(home, one_node, job="big", where="reserve", when="before")
        assert eventually(lambda: all((home / f"{name}.trace").exists() for name in "ab"), within_s=BUSY_S)
        submit(store, "big", home, one_node, cpus=4, seconds=1)
        assert eventually(lambda: "0 would fit now" in store.job("big").reason, within_s=BUSY_S), store.job("big")
        plan = json.loads(command(home, one_node, "gather", "default", "big", "--dry-run", "--json"))
        assert {victim["gang"] for victim in plan["victims"]} == {"a", "b"}
        most_ms = 60_000 + 1000 * (time.monotonic() - begun)  # a restart, and since the start
        assert all(60_000 < victim["lost_ms"] < most_ms for victim in plan["victims"])
        assert "default are pooled for big" in command(home, one_node, "gather", "default", "big")
        assert shot.wait(BUSY_S) == -9, (home / "scheduler.log").read_text()[-4000:]
        assert {name: bool(store.job(name).evicted) for name in ("a", "b", "big")} == {
            "a": True,
            "b": True,
            "big": False,
        }
        last = scheduler(home, one_node)
        try:
            assert eventually(lambda: store.job("big").state == "SUCCEEDED", within_s=BUSY_S), store.jobs()
            assert eventually(lambda: all(store.job(name).state == "RUNNING" for name in "ab"), within_s=BUSY_S), (
                store.jobs()
            )
            assert "gather:big" not in command(home, one_node, "quota")
            for name in "ab":
                (home / f"{name}.trace.go").touch()
            assert eventually(lambda: all(store.job(name).state == "SUCCEEDED" for name in "ab"), within_s=BUSY_S)
            assert eventually(lambda: groups(one_node) == [], within_s=BUSY_S)
        finally:
            last.terminate()
            last.wait(BUSY_S)
        assert (home / "big.trace").read_text() == "began 0\nended 0\n"
        for name in "ab":
            assert (home / f"{name}.trace").read_text() == "began\nsaved\nwent on\n"
            assert (store.job(name).attempt, store.job(name).losses) == (2, 0)
        assert ends(store) == dict.fromkeys(("a", "b", "big"), 1)


def test_any_node_may_be_shot_and_every_job_ends_once(home: Path):
    names = [f"j{number}" for number in range(40)]
    shots = {5: "kill 2", 10: "add 2", 15: "kill 0"}  # the second is the head's, where the driver hangs on, perhaps
    with running_nodes(2, 2, 2) as ray, Store.open(Settings(home=str(home))) as store:
        for name in names:
            submit(store, name, home, ray, seconds=0.2)
        running = scheduler(home, ray)

        def all_ended() -> bool:
            nonlocal running
            ended = sum(ends(store).values())
            for after in [after for after in shots if ended >= after]:
                ray.tell(shots.pop(after))
            if running.poll() is not None:
                running = scheduler(home, ray)
            return ended >= len(names)

        try:
            assert eventually(all_ended, within_s=240), [(each.job.id, each.reason) for each in store.jobs()]
        finally:
            running.terminate()
            running.wait(BUSY_S)
        assert not shots
        assert Counter(store.job(name).state for name in names) == {"SUCCEEDED": len(names)}
        assert ends(store) == dict.fromkeys(names, 1)
        assert max(store.job(name).attempt for name in names) > 1
        for name in names:
            assert (home / f"{name}.trace").read_text().splitlines()[-1] == "ended 0"
    assert not marked("SCHEDULER_TEST_JOB", str(home))


def test_a_drained_node_is_left_by_what_can_start_again_and_given_nothing_new(home: Path):
    settings = Settings(home=str(home))
    with running_nodes(2, 2) as ray, Store.open(settings) as store:
        for name in ("a", "b"):
            submit(store, name, home, ray, entry="save_when_told", cpus=2)
        running = scheduler(home, ray)
        drain = [sys.executable, "-c", "from mainspring.cli import main; main()", "--address", ray.address, "drain"]
        try:
            assert eventually(lambda: all((home / f"{n}.trace").exists() for n in "ab"), within_s=BUSY_S)
            first = {name: place(store, name) for name in "ab"}
            assert len(set(first.values())) == 2
            told = subprocess.Popen(
                [*drain, first["a"], "--reason", "new memory"],
                env={**environment(), "MAINSPRING_HOME": str(home)},
                stdout=subprocess.PIPE,
                text=True,
            )
            assert eventually(lambda: "saved" in (home / "a.trace").read_text(), within_s=BUSY_S)
            assert eventually(lambda: "fit now" in store.job("a").reason, within_s=BUSY_S), store.job("a")
            assert told.communicate(timeout=BUSY_S)[0].splitlines()[-1] == f"{first['a']} is empty"
            assert (home / "b.trace").read_text() == "began\n"
            (home / "b.trace.go").touch()
            assert eventually(lambda: store.job("b").state == "SUCCEEDED", within_s=BUSY_S), store.job("b")
            assert eventually(lambda: place(store, "a") == first["b"], within_s=BUSY_S)
            (home / "a.trace.go").touch()
            assert eventually(lambda: store.job("a").state == "SUCCEEDED", within_s=BUSY_S), store.job("a")
        finally:
            running.terminate()
            running.wait(BUSY_S)
        assert (home / "a.trace").read_text() == "began\nsaved\nwent on\n"
        assert (store.job("a").attempt, store.job("a").losses) == (2, 1)
        lives = [json.loads(event.data_json) for event in store.events(kind="job.state", subject="a")]
        assert f"node {first['a']} is drained: new memory" in [life["reason"] for life in lives]


@pytest.mark.skipif(take_census() != Census(), reason="a machine with accelerators does not lie about having them")
def test_a_node_that_lies_about_its_devices_is_given_no_job_for_them_and_named(home: Path):
    with running_nodes("2+4") as ray, Store.open(Settings(home=str(home))) as store:
        job = submit(store, "plain", home, ray).job
        store.enqueue(replace(job, id="gpu", resources=Resources(devices=1)), address=ray.address)
        running = scheduler(home, ray)
        try:
            assert eventually(lambda: store.job("gpu").state == "FAILED", within_s=BUSY_S), store.job("gpu")
            assert eventually(lambda: store.job("plain").state == "SUCCEEDED", within_s=BUSY_S), store.job("plain")
        finally:
            running.terminate()
            running.wait(BUSY_S)
        assert "needs 1 rank of 1 cpu + 1 device" in store.job("gpu").reason
        assert "promises 4 GPU, and its driver has 0" in store.job("gpu").reason
        assert len(store.events(kind="node.lie")) == 1


def place(store: Store, name: str) -> str:
    found = store.job(name).placement
    return found.nodes[0] if found else ""
