"""Gangs on a real local Ray: what is asked for happens, what fails says why, and nothing is left behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from itertools import groupby
from pathlib import Path

import cluster_entries
import pytest

from mainspring.cluster import Launcher, require_success
from mainspring.cluster.engine import LOCAL_CPUS_MIN, LOCAL_CPUS_PER_CORE
from mainspring.hardware import limits
from mainspring.spec import DoesNotFit, Job, Resources, Settings, SpecError, Unavailable, WorkerLost
from mainspring.store import Store
from mainspring.testing.processes import eventually, marked


def job(name: str, entry: str, *, payload: object = None, **fields) -> Job:
    return Job(id=name, name=name, entry=f"cluster_entries:{entry}", payload_json=json.dumps(payload or {}), **fields)


def ranks_alive(name: str) -> dict[int, str]:
    return marked("CLUSTER_TEST_JOB", name)


def tagged(name: str, entry: str, **fields) -> Job:
    return job(name, entry, env=(("CLUSTER_TEST_JOB", name),), **fields)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    with (
        Store.open(Settings(home=str(tmp_path_factory.mktemp("home")))) as store,
        Launcher(store, address="local") as opened,
    ):
        yield opened


def test_a_gang_runs_and_its_files_are_in_the_runs_folder(launcher):
    seen: list[str] = []
    handle = launcher.submit(job("greet", "greet", ranks=2), on_state=lambda state, reason: seen.append(state))
    result = require_success(handle.wait(60))
    assert [end.code for end in result.exits] == [0, 0]
    in_order = [state for state, _ in groupby(seen)]  # a state is told again with another reason
    assert in_order == ["PENDING", "ADMITTED", "PLACED", "RUNNING", "SUCCEEDED"]
    assert handle.logs(1) == "rank 1 of 2, 1 of 2 here\n"
    assert (handle.run_dir / "out/weights-1.bin").stat().st_size == 5_000_000


def test_ranks_have_the_priority_of_their_driver(launcher):
    handle = launcher.submit(job("priority", "priority"))
    require_success(handle.wait(60))
    assert handle.logs(0) == f"nice {os.nice(0)}\n"


def test_a_gang_can_reduce_over_the_master_it_was_given(launcher):
    handle = launcher.submit(job("reduce", "reduce", ranks=2))
    require_success(handle.wait(90))
    assert "sum 3.0" in handle.logs(0)


def test_a_recipe_that_raises_on_one_rank_is_blamed_and_its_peer_is_not(launcher):
    handle = launcher.submit(job("blame", "reduce", ranks=2, payload={"raise_on": 1}))
    result = handle.wait(90)
    assert result.state == "FAILED"
    blamed, _, place = result.reason.partition(" (")
    assert blamed == f"rank 1 on {socket.gethostname()}: ValueError: bad batch 17"
    assert re.fullmatch(r"cluster_entries\.py, line \d+, in reduce\)", place)
    assert "bad batch 17" in result.exits[1].log_tail
    assert result.exits[0].code != 0


def test_kill_9_of_a_rank_names_rank_node_and_signal_and_ends_its_peer(launcher):
    handle = launcher.submit(tagged("shot", "linger", ranks=2))
    assert eventually(lambda: handle.logs(0) + handle.logs(1) == "ready\nready\n", within_s=60)
    victim = next(pid for pid in marked("RANK", "1") if "cluster.rank" in ranks_alive("shot").get(pid, ""))
    shot_s = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    result = handle.wait(30)
    assert time.monotonic() - shot_s < 5
    assert result.reason == f"WorkerLost: rank 1 on {socket.gethostname()} was killed by SIGKILL"
    assert result.exits[0].reason.startswith("stopped (rank 1 on")
    assert not ranks_alive("shot")
    with pytest.raises(WorkerLost):
        require_success(result)


def test_losing_the_node_agent_ends_the_ranks_and_is_reported(launcher):
    handle = launcher.submit(tagged("headless", "kill_own_agent"))
    result = handle.wait(60)
    assert result.state == "FAILED"
    assert "node agent" in result.reason
    assert eventually(lambda: not ranks_alive("headless"), within_s=3)


def test_cancelling_a_deaf_gang_leaves_nothing(launcher):
    handle = launcher.submit(tagged("deaf", "linger", ranks=2, payload={"deaf": True}))
    assert eventually(lambda: handle.logs(0) + handle.logs(1) == "ready\nready\n", within_s=60)
    assert len(ranks_alive("deaf")) == 4
    handle.cancel("not needed any more")
    result = handle.wait(30)
    assert (result.state, result.reason) == ("CANCELLED", "not needed any more")
    assert not ranks_alive("deaf")


def test_a_time_limit_is_kept_and_is_the_reason(launcher):
    result = launcher.submit(tagged("limited", "linger", ranks=2, time_limit_s=1.0)).wait(60)
    assert (result.state, result.reason) == ("FAILED", "time limit of 1 s reached")
    assert 1.0 <= result.seconds < 5.0
    assert not ranks_alive("limited")


def test_jobs_wait_their_turn_and_a_waiting_one_can_be_cancelled(launcher):
    cpus = max(LOCAL_CPUS_MIN, LOCAL_CPUS_PER_CORE * limits.cores())
    everything = Resources(cpus=cpus)
    first = launcher.submit(job("first", "linger", resources=everything))
    second = launcher.submit(job("second", "greet", resources=everything))
    third = launcher.submit(job("third", "greet", resources=everything))
    assert eventually(lambda: first.state == "RUNNING", within_s=60)
    assert eventually(lambda: "behind job second" in third.reason, within_s=5)
    assert second.state == third.state == "PENDING"
    assert f"1 rank of {cpus} cpu at once, 0 would fit now" in second.reason
    third.cancel()
    assert third.wait(5).state == "CANCELLED"
    first.cancel()
    assert second.wait(60).state == "SUCCEEDED"


def test_many_threads_may_submit_at_once(launcher):
    handles = []

    def send(number: int) -> None:
        handles.append(launcher.submit(job(f"burst-{number}", "greet", resources=Resources(cpus=2.0))))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [handle.wait(60).state for handle in handles] == ["SUCCEEDED"] * 4


def test_bad_requests_are_refused_before_anything_starts(launcher):
    with pytest.raises(DoesNotFit, match=r"needs 1000 ranks of 1 cpu, the whole cluster \(1 node\) has room for"):
        launcher.submit(job("huge", "greet", ranks=1000))
    with pytest.raises(SpecError, match="not JSON"):
        launcher.submit(Job(id="json", name="json", entry="m:f", payload_json="{"))
    for name in ("", "..", "../elsewhere", "a/b", "a\nb"):
        with pytest.raises(SpecError, match="cannot be the id of a job"):
            launcher.submit(job(name, "greet"))
    launcher.run_root.joinpath("taken").write_text("a file where the folder should be")
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"cannot make .*taken"):
            launcher.submit(job("taken", "greet"))
    running = launcher.submit(job("twice", "linger"))
    with pytest.raises(SpecError, match="a job with the id 'twice' is"):
        launcher.submit(job("twice", "linger"))
    running.cancel()
    running.wait(30)
    with pytest.raises(SpecError, match="cannot also use"), Launcher(launcher.store, address="auto") as other:
        other.submit(job("elsewhere", "greet"))


def test_a_finished_job_can_be_run_again_and_its_log_goes_on(launcher):
    for _ in range(2):
        handle = launcher.submit(job("again", "greet"))
        require_success(handle.wait(30))
    assert handle.logs() == "rank 0 of 1, 0 of 1 here\n" * 2


def test_a_listener_that_raises_does_not_lose_the_job(launcher):
    def broken(state: str, reason: str) -> None:
        raise RuntimeError("listener bug")

    assert launcher.submit(job("listener", "greet"), on_state=broken).wait(30).state == "SUCCEEDED"


DRIVER = """
    import signal, sys
    from pathlib import Path
    from mainspring.cluster import Launcher
    from mainspring.spec import Job, Settings
    from mainspring.store import Store
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
    sys.path.insert(0, {entries!r})
    with Launcher(Store.open(Settings(home={root!r})), run_root=Path({root!r})) as launcher:
        handle = launcher.submit(Job(id="j", name="j", entry="cluster_entries:linger", ranks=2))
        handle.wait()
"""


@pytest.mark.slow
def test_a_home_that_cannot_be_written_and_clusters_one_after_another_are_no_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null/home")
    said = isolated(
        """
        import sys
        from pathlib import Path
        from mainspring.cluster import Launcher
        from mainspring.spec import Job, Settings
        from mainspring.store import Store

        states = []
        for name in ("one", "two"):
            with Launcher(Store.open(Settings(home=sys.argv[1])), address="local") as launcher:
                states.append(launcher.submit(Job(id=name, name=name, entry="cluster_entries:greet")).wait(60).state)
        print(*states)
        """,
        str(tmp_path),
    )
    assert said == "SUCCEEDED SUCCEEDED"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_survives_the_driver(tmp_path, how):
    mark = f"{os.getpid()}-{how.name}"
    program = textwrap.dedent(DRIVER.format(entries=str(Path(cluster_entries.__file__).parent), root=str(tmp_path)))
    environment = {**os.environ, "CLUSTER_TEST_DRIVER": mark}
    driver = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
    logs = [tmp_path / "j" / f"rank-{rank}.log" for rank in (0, 1)]
    try:
        assert eventually(lambda: all(log.exists() and log.read_text() == "ready\n" for log in logs), within_s=60)
        before = marked("CLUSTER_TEST_DRIVER", mark).values()
        assert sum("cluster.rank" in line for line in before) == 2
        assert any("raylet" in line for line in before)
        driver.send_signal(how)
        driver.wait(60)
    finally:
        driver.kill()
        driver.wait()
    gone = eventually(lambda: not marked("CLUSTER_TEST_DRIVER", mark), within_s=60)
    left = marked("CLUSTER_TEST_DRIVER", mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert gone, left


@pytest.mark.slow
def test_a_driver_that_is_told_to_end_ends_in_its_own_time():
    said = isolated(
        """
        import os, signal, threading
        from mainspring.cluster.engine import connect
        told = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: told.set())
        engine = connect("local")
        os.kill(os.getpid(), signal.SIGTERM)
        assert told.wait(5)
        threading.Event().wait(4)  # Ray's own handler aborts after three seconds
        engine.close()
        print("in order")
        """
    )
    assert said == "in order"


def isolated(program: str, *arguments: str, timeout_s: float = 230) -> str:
    """Run `program` in a process of its own, as Ray allows one cluster per process; returns its last line."""
    paths = os.pathsep.join([str(Path(cluster_entries.__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


TWO_NODES = """
    import json, sys, time
    from pathlib import Path
    import ray
    from ray.cluster_utils import Cluster
    from mainspring.cluster import Launcher, survey
    from mainspring.spec import Job, Resources, Settings
    from mainspring.store import Store
    from mainspring.testing.processes import eventually

    root, port = Path(sys.argv[1]), int(sys.argv[2])
    address = f"ray://127.0.0.1:{port}"
    node = dict(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False)
    cluster = Cluster(initialize_head=True, head_node_args={**node, "ray_client_server_port": port})
    cluster.add_node(**node)
    payload = json.dumps({"steps": 15, "pace_s": 0.1})
    store = Store.open(Settings(home=str(root)))
    with Launcher(store, address=address, scratch=str(root / "scratch")) as launcher:
        job = Job(id="wide", name="wide", entry="cluster_entries:greet", ranks=4, payload_json=payload)
        handle = launcher.submit(job)
        followed = root / "runs/wide/metrics-3.jsonl"
        live = eventually(lambda: followed.exists() and followed.stat().st_size > 0, within_s=60)
        while_running = handle.state
        result = handle.wait(60)
        found = survey(address)
        tables = ray.util.placement_group_table().values()
    cluster.shutdown()
    print(json.dumps({
        "state": result.state, "reason": result.reason, "nodes": [end.node for end in result.exits],
        "live": live and while_running, "logs": [handle.logs(rank) for rank in range(4)],
        "bytes": [(root / f"runs/wide/out/weights-{rank}.bin").read_bytes().count(rank) for rank in range(4)],
        "scratch": len(list((root / "scratch").iterdir())),
        "survey": [node.name for node in found.nodes], "link": found.link.bytes_per_s,
        "groups": [table["state"] for table in tables],
    }))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(" " in sys.executable, reason="Ray's client server does not start from a path with a space")
def test_a_gang_on_a_remote_cluster_spreads_over_its_nodes_and_its_files_come_back_while_it_runs(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = json.loads(isolated(TWO_NODES, str(tmp_path), str(port)))
    assert told["state"] == "SUCCEEDED", told["reason"]
    assert len(set(told["nodes"])) == 2
    assert told["nodes"] == sorted(told["nodes"], key=told["nodes"].index)
    assert told["live"] == "RUNNING"
    assert told["logs"][3] == "rank 3 of 4, 1 of 2 here\n"
    assert told["bytes"] == [5_000_000] * 4
    assert told["scratch"] == 0
    assert sorted(told["survey"]) == sorted(set(told["nodes"]))
    assert told["link"] > 1e6
    assert set(told["groups"]) == {"REMOVED"}


ONE_OF_TWO_DRIVERS = """
    import json, sys
    from pathlib import Path
    from mainspring.cluster import Launcher, require_success
    from mainspring.spec import Job, Settings
    from mainspring.store import Store
    entry, payload = "cluster_entries:occupy", json.dumps({"seconds": 2.0})  # longer than ranks of a gang start apart
    with Launcher(Store.open(Settings(home=sys.argv[2])), address=sys.argv[1]) as launcher:
        jobs = [Job(id=f"j{n}", name="j", entry=entry, ranks=2, payload_json=payload) for n in range(2)]
        for handle in [launcher.submit(job) for job in jobs]:
            require_success(handle.wait(100))
"""
TWO_DRIVERS = """
    import json, socket, subprocess, sys
    from pathlib import Path
    from ray.cluster_utils import Cluster
    from mainspring.testing.processes import eventually

    root, port, driver = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    cluster = Cluster(initialize_head=True, head_node_args=dict(
        num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, ray_client_server_port=port))
    assert eventually(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), within_s=60)
    orders = [[sys.executable, "-c", driver, f"ray://127.0.0.1:{port}", str(root / name)] for name in "ab"]
    drivers = [subprocess.Popen(order) for order in orders]
    codes = [one.wait(150) for one in drivers]
    assert codes == [0, 0]
    cluster.shutdown()
    print(json.dumps([json.loads(path.read_text()) for path in root.glob("*/runs/*/here-*.json")]))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(" " in sys.executable, reason="Ray's client server does not start from a path with a space")
def test_two_drivers_share_a_cluster_without_taking_each_others_places(tmp_path):
    """Two gangs of two ranks each, on two cpus: whole gangs take turns, and none starves or waits half started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stays = json.loads(isolated(TWO_DRIVERS, str(tmp_path), str(port), textwrap.dedent(ONE_OF_TWO_DRIVERS)))
    assert len(stays) == 8
    most = max(sum(began <= moment < ended for began, ended in stays) for moment, _ in stays)
    assert most == 2


def test_a_local_survey_needs_no_ray():
    program = (
        "import sys; from mainspring.cluster import survey; c = survey(); print(len(c.nodes), 'ray' in sys.modules)"
    )
    assert isolated(program) == "1 False"


def test_without_ray_the_launcher_says_what_to_install(tmp_path):
    program = """
        import sys
        sys.modules["ray"] = None
        from mainspring.cluster import Launcher
        from mainspring.spec import Job, Settings, Unavailable
        from mainspring.store import Store
        try:
            Launcher(Store.open(Settings(home=sys.argv[1]))).submit(Job(id="j", name="j", entry="m:f"))
        except Unavailable as error:
            print("not installed" in str(error), "pip install" in error.hint)
    """
    assert isolated(program, str(tmp_path)) == "True True"


@pytest.mark.parametrize("address", ["ray://127.0.0.1:9", "ray://nowhere.invalid:10001", "127.0.0.1:9"])
def test_a_cluster_that_does_not_answer_is_unavailable_within_seconds(address, tmp_path):
    program = """
        import sys, time
        from pathlib import Path
        from mainspring.cluster import Launcher
        from mainspring.spec import Job, Settings, Unavailable
        from mainspring.store import Store
        started_s = time.monotonic()
        try:
            with Launcher(Store.open(Settings(home=sys.argv[2])), address=sys.argv[1]) as launcher:
                launcher.submit(Job(id="j", name="j", entry="m:f"))
        except Unavailable as error:
            print("Unavailable", time.monotonic() - started_s < 20, sys.argv[1] in str(error), bool(error.hint))
    """
    assert isolated(program, address, str(tmp_path)) == "Unavailable True True True"
