"""A node agent with real processes and without Ray: exact exits, no survivors."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mainspring.cluster.agent import NodeAgent, Order, rank_environment
from mainspring.cluster.gang import secrets_of
from mainspring.cluster.hold import take_hold
from mainspring.cluster.verdict import RankEnd
from mainspring.hardware.share import Bounds
from mainspring.spec import Job, Resources, SpecError, Task
from mainspring.store.parse import read_json, to_json
from mainspring.testing.processes import eventually, marked

ENTRIES = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from mainspring.spec import Unavailable

def good(task, payload):
    print("rank", task.rank, "of", task.world, "has", payload["word"], os.environ["MASTER_ADDR"])
    (Path(task.run_dir) / f"result-{task.rank}.txt").write_text(payload["word"])

def raises(task, payload):
    raise ValueError("two\\nlines")

def unavailable(task, payload):
    raise Unavailable("disk full: 3 GiB needed, 1 GiB free", hint="make room")

def parses(task, payload):
    import json
    json.loads("?")

def leaves(task, payload):
    sys.exit(7)

def dies(task, payload):
    os.kill(os.getpid(), signal.SIGSEGV)

def sleeps(task, payload):
    print("asleep", flush=True)
    try:
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

def saves(task, payload):
    from mainspring.cluster import notice
    asked = notice.heed()
    print("asleep", flush=True)
    asked.wait(60)
    print("saved", flush=True)
    if payload.get("done"):
        return
    if payload.get("deaf"):
        time.sleep(60)
    notice.leave()

def stubborn(task, payload):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("asleep", flush=True)
    time.sleep(60)

def parent(task, payload):
    subprocess.Popen(["sleep", "60"])
    print("asleep", flush=True)
    time.sleep(payload.get("seconds", 60))

def tells(task, payload):
    import json
    (Path(task.run_dir) / "told.json").write_text(json.dumps(payload))

def bounded(task, payload):
    import os
    told = {"cores": len(os.sched_getaffinity(0)), "shown": os.environ.get("CUDA_VISIBLE_DEVICES")}
    try:
        bytearray(1 << 30)
    except MemoryError:
        told["refused"] = True
    tells(task, told)

def shy(task, payload):
    (Path(task.run_dir) / f"rank-{task.rank}.log").unlink()

def stuck_thread(task, payload):
    threading.Thread(target=time.sleep, args=(60,)).start()
    raise KeyError("main thread is done for")
"""


NOT_JSON = "Expecting value: line 1 column 1 (char 0)"


def place(function: str, words: str) -> str:
    """Where `words` stand in the entries' file, as a reason tells it: the user's line, not the library's below it."""
    (line,) = (number for number, text in enumerate(ENTRIES.splitlines(), 1) if words in text)
    return f"agent_entries.py, line {line}, in {function}"


@pytest.fixture
def start(tmp_path):
    """Start a gang on an agent of this process; whatever is left at the end is killed."""
    (tmp_path / "agent_entries.py").write_text(ENTRIES)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    marker = run_dir / ".shared"
    marker.touch()
    agents: list[NodeAgent] = []

    def begin(entry: str, *, ranks: int = 1, payload: object = None, **fields: object) -> NodeAgent:
        agent = NodeAgent()
        agents.append(agent)
        agent.prepare(str(marker), "", "")
        agent.start(order(tmp_path, entry, ranks=ranks, payload=payload or {}, **fields))
        return agent

    yield begin
    for agent in agents:
        agent.stop("test over", 0.0)
        finish(agent, 0)


def order(folder: Path, entry: str, *, ranks: int = 1, payload: object, **fields: object) -> Order:
    job = Job(
        id="j",
        name="j",
        entry=f"agent_entries:{entry}",
        payload_json=json.dumps(payload),
        ranks=ranks,
        env=(("CLUSTER_TEST", str(folder)),),
        **fields,  # pyright: ignore[reportArgumentType]
    )
    tasks = tuple(
        Task(job_id="j", rank=rank, world=ranks, local_rank=rank, local_world=ranks, run_dir=str(folder / "run"),
             master="127.0.0.1:1")
        for rank in range(ranks)
    )  # fmt: skip
    return Order(job=job, node="here", tasks=tasks, imports=(str(folder),), folder=str(folder))


def finish(agent, ranks, within_s=10.0):
    assert eventually(lambda: len(agent.poll(None).ends) >= ranks, within_s=within_s)
    return sorted(agent.poll(None).ends, key=lambda end: end.exit.rank)


def says(folder, text, rank=0):
    log = folder / "run" / f"rank-{rank}.log"
    return lambda: log.exists() and text in log.read_text()


def test_every_rank_gets_its_task_and_payload_and_leaves_its_words_in_its_log(start, tmp_path):
    ends = finish(start("good", ranks=2, payload={"word": "spring"}), 2)
    assert [(end.exit.rank, end.exit.code, end.exit.reason) for end in ends] == [(0, 0, ""), (1, 0, "")]
    assert (tmp_path / "run/rank-1.log").read_text() == "rank 1 of 2 has spring 127.0.0.1\n"
    assert (tmp_path / "run/result-0.txt").read_text() == "spring"


@pytest.mark.parametrize(
    ("entry", "code", "by", "reason"),
    [
        ("raises", 1, "", f"ValueError: two\nlines ({place('raises', 'raise ValueError')})"),
        ("unavailable", 75, "", "Unavailable: disk full: 3 GiB needed, 1 GiB free (hint: make room)"),
        ("leaves", 7, "", f"SystemExit: 7 ({place('leaves', 'sys.exit')})"),
        ("parses", 1, "", f"JSONDecodeError: {NOT_JSON} ({place('parses', 'json.loads')})"),
        ("dies", None, "SIGSEGV", "killed by SIGSEGV"),
        ("missing", 2, "", "SpecError: module 'agent_entries' has no 'missing'"),
    ],
)
def test_an_exit_says_exactly_how_and_why(start, entry, code, by, reason):
    (end,) = finish(start(entry), 1)
    assert (end.exit.code, end.exit.signal, end.exit.reason) == (code, by, reason)
    assert end.failed


def test_the_log_tail_carries_the_traceback(start):
    (end,) = finish(start("raises"), 1)
    assert "Traceback" in end.exit.log_tail
    assert "agent_entries.py" in end.exit.log_tail


def test_stopping_runs_finally_blocks_and_the_exit_says_who_asked(start, tmp_path):
    agent = start("sleeps")
    assert eventually(says(tmp_path, "asleep"), within_s=10)
    agent.stop("cancelled", 5.0)
    (end,) = finish(agent, 1)
    assert end.stopped == "cancelled"
    assert end.exit.reason == "stopped (cancelled): exited with code 143"
    assert says(tmp_path, "cleaned up")()


def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace(start, tmp_path):
    agent = start("stubborn")
    assert eventually(says(tmp_path, "asleep"), within_s=10)
    asked_s = time.monotonic()
    agent.stop("cancelled", 0.5)
    (end,) = finish(agent, 1)
    assert end.exit.signal == "SIGKILL"
    assert not end.failed
    assert 0.4 < time.monotonic() - asked_s < 3.0


def test_a_rank_asked_gently_saves_and_leaves(start, tmp_path):
    agent = start("saves")
    assert eventually(says(tmp_path, "asleep"), within_s=10)
    agent.stop("makes room", 20.0, gently=True)
    (end,) = finish(agent, 1)
    assert (end.stopped, end.exit.code, says(tmp_path, "saved")()) == ("makes room", 143, True)


def test_a_rank_that_heeds_is_not_ended_by_a_notice_that_comes_before_it_does(start, tmp_path):
    agent = start("saves", heeds=True)
    agent.stop("makes room", 20.0, gently=True)
    (end,) = finish(agent, 1)
    assert (end.stopped, end.exit.code, says(tmp_path, "saved")()) == ("makes room", 143, True)


def test_a_rank_asked_gently_that_ends_with_0_has_come_to_its_end(start, tmp_path):
    agent = start("saves", payload={"done": True})
    assert eventually(says(tmp_path, "asleep"), within_s=10)
    agent.stop("makes room", 20.0, gently=True)
    (end,) = finish(agent, 1)
    assert (end.stopped, end.exit.code) == ("", 0)


@pytest.mark.parametrize(("entry", "payload"), [("sleeps", {}), ("saves", {"deaf": True})])
def test_a_rank_that_does_not_heed_a_notice_ends_as_if_stopped_and_one_that_hangs_may_be_hurried(
    start, tmp_path, entry, payload
):
    agent = start(entry, payload=payload)
    assert eventually(says(tmp_path, "asleep"), within_s=10)
    agent.stop("makes room", 60.0, gently=True)
    if payload:
        assert eventually(says(tmp_path, "saved"), within_s=10)
        agent.stop("cancelled", 5.0)
    (end,) = finish(agent, 1)
    assert (end.stopped, end.failed) == ("makes room", False)


def test_the_time_limit_ends_the_rank_and_is_the_reason(start):
    (end,) = finish(start("sleeps", time_limit_s=0.5), 1)
    assert end.stopped == "time limit of 0.5 s reached"


def test_a_failed_rank_does_not_linger_in_a_thread_it_left_behind(start):
    (end,) = finish(start("stuck_thread"), 1, within_s=5)
    assert end.exit.reason.startswith("KeyError: 'main thread is done for'")


def test_a_rank_that_removes_its_own_log_still_has_an_end(start, tmp_path):
    (end,) = finish(start("shy"), 1)
    assert (end.exit.code, end.exit.log_tail) == (0, "")


def test_what_a_rank_started_dies_when_it_ends(start, tmp_path):
    (end,) = finish(start("parent", payload={"seconds": 0.2}), 1)
    assert end.exit.code == 0
    assert eventually(lambda: not marked("CLUSTER_TEST", str(tmp_path)), within_s=2)


def test_killing_the_agent_kills_its_ranks_and_what_they_started(tmp_path):
    (tmp_path / "agent_entries.py").write_text(ENTRIES)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.shared").touch()
    program = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_agent import NodeAgent, order
        agent = NodeAgent()
        agent.prepare({str(tmp_path / "run/.shared")!r}, "", "")
        agent.start(order(Path({str(tmp_path)!r}), "parent", ranks=2, payload={{}}))
        time.sleep(60)
    """
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    try:
        both = [says(tmp_path, "asleep", rank) for rank in (0, 1)]
        assert eventually(lambda: all(said() for said in both), within_s=20)
        assert len(marked("CLUSTER_TEST", str(tmp_path))) == 4
    finally:
        holder.kill()
        holder.wait()
    assert eventually(lambda: not marked("CLUSTER_TEST", str(tmp_path)), within_s=2)


def test_files_of_a_node_that_does_not_see_the_run_folder_stay_local_until_closed(tmp_path):
    agent = NodeAgent()
    folder = Path(agent.prepare("/not/on/this/node/.shared", str(tmp_path / "scratch"), "").folder)
    assert folder.parent == tmp_path / "scratch"
    agent.close()
    assert not folder.exists()


def test_a_rank_finds_its_secrets_in_the_payload_and_nobody_else_finds_them(start, tmp_path):
    agent = start("tells", payload={"open": 1}, secret_json=json.dumps({"key": "swordfish"}))
    finish(agent, 1)
    assert (tmp_path / "run" / "told.json").read_text() == '{"open": 1, "key": "swordfish"}'
    (tmp_path / "run" / "told.json").unlink()
    assert "swordfish" not in repr(order(tmp_path, "tells", payload={}, secret_json='{"key": "swordfish"}'))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"swordfish" in path.read_bytes()]


def test_variables_of_the_drivers_environment_reach_ranks_by_name_and_are_in_no_book(tmp_path, monkeypatch):
    asks = Job(id="j", name="j", entry="m:f", secrets=("TEST_API_KEY",))
    with pytest.raises(SpecError, match="asks for TEST_API_KEY, which its driver's environment does not have"):
        secrets_of(asks)
    monkeypatch.setenv("TEST_API_KEY", "swordfish")
    ordered = replace(order(tmp_path, "good", payload={}), secrets=secrets_of(asks))
    assert rank_environment(ordered, ordered.tasks[0])["TEST_API_KEY"] == "swordfish"
    assert "swordfish" not in repr(ordered) + to_json(asks)


def test_a_rank_has_torchs_launcher_variables_its_threads_and_none_of_rays(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    ordered = order(tmp_path, "good", ranks=2, payload={}, resources=Resources(cpus=1.0))
    found = rank_environment(ordered, ordered.tasks[1])
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_PORT"]) == ("1", "2", "1")
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["CLUSTER_TEST"] == str(tmp_path)
    assert str(tmp_path) in found["PYTHONPATH"].split(os.pathsep)
    assert "RAY_ADDRESS" not in found


def test_importing_the_room_imports_no_ray():
    program = "import sys, mainspring.cluster.launcher; print('ray' in sys.modules, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_a_rank_killed_from_outside_is_a_lost_worker(start, tmp_path):
    agent = start("sleeps", ranks=2)
    assert eventually(says(tmp_path, "asleep", 1), within_s=10)
    pids = [pid for pid, line in marked("RANK", "1").items() if pid in marked("CLUSTER_TEST", str(tmp_path))]
    os.kill(pids[0], signal.SIGKILL)
    (end,) = finish(agent, 1)
    assert (end.exit.rank, end.exit.signal, end.exit.code) == (1, "SIGKILL", None)


def test_the_port_of_a_gang_is_held_for_its_first_rank_alone() -> None:
    agent = NodeAgent()
    port = agent.hold_port()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)) as listener, socket.create_connection(("127.0.0.1", port)):
        accepted, _ = listener.accept()
        accepted.close()
    agent.close()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past the connection that has just ended
        other.bind(("127.0.0.1", port))


def test_a_rank_is_held_to_what_it_has_reserved(start, tmp_path):
    limit = Resources(cpus=1, memory_bytes=512 << 20, own_cores=True)
    finish(start("bounded", resources=limit), 1)
    told = json.loads((tmp_path / "run/told.json").read_text())
    assert told == {"cores": 1, "refused": True, "shown": None}


def test_a_rank_is_shown_its_own_devices_and_one_without_any_none(tmp_path):
    need, given = Resources(devices=0.5), {"CUDA_VISIBLE_DEVICES": "3,5"}
    job = Job(id="j", name="j", entry="m:f", resources=need)
    hold = take_hold(job, rank=0, bits=0b10, accelerator="GPU", given=given)
    assert hold.environment["CUDA_VISIBLE_DEVICES"] == "5"
    assert hold.bounds == Bounds(device_share=0.5)
    hold.release()
    none = take_hold(replace(job, resources=Resources()), rank=0, bits=0, accelerator="GPU", given=given)
    assert none.environment["CUDA_VISIBLE_DEVICES"] == ""
    none.release()


def test_how_a_rank_ended_is_left_for_a_driver_that_cannot_ask_any_more(tmp_path):
    (tmp_path / "agent_entries.py").write_text(ENTRIES)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.shared").touch()
    agent = NodeAgent()
    agent.prepare(str(tmp_path / "run/.shared"), "", "")
    agent.start(replace(order(tmp_path, "raises", payload={}), marks=".end-7-1-"))
    (end,) = finish(agent, 1)
    assert eventually((tmp_path / "run/.end-7-1-0").exists, within_s=5)
    assert read_json((tmp_path / "run/.end-7-1-0").read_text(), RankEnd) == end


def test_starting_twice_starts_once(start, tmp_path):
    agent = start("tells", payload={"n": 1})
    agent.start(order(tmp_path, "tells", payload={"n": 2}))
    finish(agent, 1)
    assert json.loads((tmp_path / "run/told.json").read_text()) == {"n": 1}
    assert agent.prepare("anything", "", "").started
