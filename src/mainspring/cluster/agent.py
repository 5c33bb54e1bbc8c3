"""One node's part of one gang: starts its ranks as processes, watches them, ends them.

Lives in a Ray actor (one per job and node) but knows nothing of Ray, so that it can be tested alone. Each rank is a
process of its own session, hence a user's crash, leak or `os._exit` never reaches the agent, and `killpg` reaches
whatever the rank started. One thread starts and reaps all ranks: PR_SET_PDEATHSIG fires when the *thread* that
forked ends, so it must live as long as the agent. A driver that stops asking for longer than its lease has lost its
claim, and the ranks are ended. Every call may be repeated, by the same driver or by one that takes over.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import psutil

import mainspring
from mainspring.cluster.guard import open_guard
from mainspring.cluster.hold import Hold, take_hold
from mainspring.cluster.mirror import Chunk, Cursor, grown, listing, read_piece, write_piece
from mainspring.cluster.notice import NOTICE, held_back
from mainspring.cluster.reach import own_home, sees
from mainspring.cluster.verdict import RankEnd
from mainspring.hardware import limits
from mainspring.spec import Job, RankExit, Task, spec
from mainspring.spec.settings import process_environment
from mainspring.store.parse import to_json

LEASE_S = 30.0
LAPSED = "the driver has not been heard of"
LIMIT = "time limit of"
GRACE_S = 5.0
TICK_S = 0.02
TAIL_BYTES = 4096

log = logging.getLogger(__name__)


@spec
class Order:
    """What one agent is to start. `imports` and `folder` are the driver's sys.path and working directory.

    `address` is this node's own, under which the others reach it. Ranks end when no driver asks for `lease_s`. `marks`
    begins the names of the files that say how a rank ended to a driver that can no longer ask the agent. `devices` are
    those of each task, as bits, of the node's `accelerator`; `secrets` are added to each rank's environment.
    """

    job: Job
    node: str
    tasks: tuple[Task, ...]
    imports: tuple[str, ...]
    folder: str
    address: str = ""
    lease_s: float = LEASE_S
    marks: str = ""
    accelerator: str = ""
    devices: tuple[int, ...] = ()
    secrets: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@spec
class Berth:
    """Where a run's files are on this node, and whether its ranks have been started."""

    folder: str
    started: bool


@spec
class Poll:
    """What happened on this node: every rank that has ended, and text appended to files."""

    ends: tuple[RankEnd, ...]
    chunks: tuple[Chunk, ...]


@spec
class Report:
    """What a failing rank said on its pipe: why, and when it knew."""

    reason: str = ""
    at_s: float = 0.0


@dataclass(slots=True)
class Running:
    """One live rank process and the pipe on which it says why it fails."""

    task: Task
    process: subprocess.Popen[bytes]
    report_fd: int
    hold: Hold


class NodeAgent:
    """The ranks of one gang on one node."""

    def __init__(self) -> None:
        self._running: list[Running] = []
        self._ends: dict[int, RankEnd] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped, self._grace_s = "", GRACE_S
        self._gently = self._unheard = False
        self._asked_s = time.monotonic()
        self._folder: Path | None = None
        self._scratch: Path | None = None
        self._held: socket.socket | None = None
        self._started = False
        self._marks = ""

    def prepare(self, shared: str, scratch: str, run_root: str) -> Berth:
        """The folder for the run's files on this node: that of `shared` if this node sees it, else a fresh one.

        The driver has put that file there, below `run_root`; seeing it proves a common file system.
        """
        self._asked_s = time.monotonic()
        if self._folder is not None:
            return Berth(folder=str(self._folder), started=self._started)
        if not scratch and sees([shared], run_root):
            self._folder = Path(shared).parent
        else:
            home = own_home()
            parent = scratch or (str(home / "gangs") if home else tempfile.gettempdir())
            Path(parent).mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix="mainspring-run-", dir=parent))
            self._folder = self._scratch
        return Berth(folder=str(self._folder), started=False)

    def hold_port(self) -> int:
        """A TCP port of this node that stays free for the gang's first rank until `close`.

        A socket that is bound and does not listen keeps the system from giving the port away, to a listener or as the
        near end of a connection; a listener that asks for the port by number, as torch's store does, still gets it.
        """
        if self._held is None:
            self._held = socket.socket()
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held.bind(("", 0))
        return self._held.getsockname()[1]

    def start(self, order: Order) -> None:
        """Start every rank of `order`, unless that was done; returns at once."""
        self._asked_s = time.monotonic()
        with self._lock:
            if self._started:
                return
            self._started, self._marks = True, order.marks
        threading.Thread(target=self._supervise, args=(order,), name="supervise", daemon=True).start()

    def poll(self, cursors: Mapping[str, Cursor] | None) -> Poll:
        """Ranks that have ended, and growth of followed files beyond `cursors` (None: the folder is shared)."""
        self._asked_s = time.monotonic()
        with self._lock:
            ends = tuple(self._ends.values())
        chunks = grown(self.folder, cursors) if cursors is not None else ()
        return Poll(ends=ends, chunks=chunks)

    def restore(self, chunk: Chunk) -> int:
        """Put a piece of a file that an earlier attempt has left with the driver back; returns its inode here."""
        write_piece(self.folder, chunk)
        return (self.folder / chunk.path).stat().st_ino

    def files(self) -> tuple[str, ...]:
        """Relative paths of the files that `poll` does not follow."""
        return listing(self.folder)

    def read(self, name: str, offset: int) -> Chunk:
        """A piece of one file from `offset`; empty data at its end."""
        self._asked_s = time.monotonic()
        return read_piece(self.folder, name, offset=offset)

    def stop(self, reason: str, grace_s: float, *, gently: bool = False) -> None:
        """Ask every live rank to stop (SIGTERM), or `gently` to save what it has and leave; kill it after `grace_s`.

        The first reason is kept. Who was asked gently may still be asked to hurry.
        """
        with self._lock:
            if not self._stopped or (self._gently and not gently):
                self._stopped, self._grace_s = self._stopped or reason, grace_s
                self._gently, self._unheard = gently, True
                self._wake.set()

    def close(self) -> None:
        """Remove the node-local copy of the run's files and let go of the port."""
        if self._held is not None:
            self._held.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """The run's folder on this node."""
        assert self._folder is not None, "prepare comes first"
        return self._folder

    def _supervise(self, order: Order) -> None:
        """Run the gang's part to its end; whatever goes wrong here becomes an exit the driver can read."""
        try:
            self._watch(order)
        except Exception as error:
            log.exception("supervision failed")
            self._signal(signal.SIGKILL)
            for task in order.tasks:
                if task.rank not in self._ends:
                    reason = f"node agent failed: {type(error).__name__}: {error}"
                    self._record(RankExit(rank=task.rank, node=order.node, code=126, reason=reason))

    def _watch(self, order: Order) -> None:
        with open_guard() as watch:
            assert watch.stdin is not None
            for task in order.tasks:
                self._running.append(self._spawn(order, task))
                _tell(watch.stdin, f"+{self._running[-1].process.pid}\n")
            started_s = time.monotonic()
            deadline_s = float("inf")
            limit_s = order.job.time_limit_s or float("inf")
            while self._running:
                for rank in [rank for rank in self._running if _has_ended(rank.process.pid)]:
                    self._reap(rank, node=order.node)
                    _tell(watch.stdin, f"-{rank.process.pid}\n")
                now_s = time.monotonic()
                if now_s - started_s > limit_s:
                    self.stop(f"{LIMIT} {limit_s:g} s reached", GRACE_S)
                if now_s - self._asked_s > order.lease_s:
                    self.stop(f"{LAPSED} for {order.lease_s:g} s", GRACE_S)
                if self._unheard:
                    self._unheard, deadline_s = False, now_s + self._grace_s
                    self._ask_to_end()
                if now_s > deadline_s:
                    self._signal(signal.SIGKILL)
                self._wake.wait(TICK_S)
                self._wake.clear()

    def _spawn(self, order: Order, task: Task) -> Running:
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        bits = order.devices[order.tasks.index(task)] if order.devices else 0
        hold = take_hold(
            order.job, rank=task.rank, bits=bits, accelerator=order.accelerator, given=process_environment()
        )
        folder = order.folder if Path(order.folder).is_dir() else task.run_dir
        with tempfile.TemporaryFile() as orders, (Path(task.run_dir) / f"rank-{task.rank}.log").open("ab") as out:
            payload = json.loads(order.job.payload_json) | json.loads(order.job.secret_json)
            told = {"task": asdict(task), "entry": order.job.entry, "payload": payload, "bounds": asdict(hold.bounds)}
            told["heeds"] = order.job.heeds
            orders.write(json.dumps(told).encode())
            orders.seek(0)
            try:
                with held_back():
                    process = subprocess.Popen(
                        [sys.executable, "-m", "mainspring.cluster.rank", str(theirs), str(os.getpid())],
                        stdin=orders,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        pass_fds=(theirs,),
                        cwd=folder,
                        env=rank_environment(order, task) | hold.environment,
                    )
            finally:
                os.close(theirs)
        return Running(task=task, process=process, report_fd=ours, hold=hold)

    def _reap(self, rank: Running, *, node: str) -> None:
        # Kill the group before the leader is reaped: until then its number cannot belong to anybody else.
        _kill_group(rank.process.pid, signal.SIGKILL)
        status = rank.process.wait()
        rank.hold.release()
        self._running.remove(rank)
        said = _read_report(rank.report_fd)
        name = _signal_name(-status) if status < 0 else ""
        reason = said.reason or (f"killed by {name}" if name else "")
        if not reason and status:
            reason = f"exited with code {status}"
        # Who was asked gently and ends with 0 has come to its end; a failure then is that of peers which have left.
        by_itself = status == 0 if self._gently else bool(said.reason)
        stopped = "" if by_itself else self._stopped
        end = RankExit(
            rank=rank.task.rank,
            node=node,
            code=None if name else status,
            signal=name,
            reason=f"stopped ({stopped}): {reason or 'left in order'}" if stopped else reason,
            log_tail=tail_of(self.folder / f"rank-{rank.task.rank}.log", TAIL_BYTES),
        )
        self._record(end, at_s=said.at_s or time.time(), stopped=stopped)

    def _record(self, end: RankExit, *, at_s: float | None = None, stopped: str = "") -> None:
        with self._lock:
            at_s = time.time() if at_s is None else at_s
            self._ends[end.rank] = known = RankEnd(exit=end, at_s=at_s, stopped=stopped)
        if self._marks:
            mark = self.folder / f"{self._marks}{end.rank}"
            with contextlib.suppress(OSError):  # a full disk: then the driver has to hear it from here
                mark.with_name(f"{mark.name}.part").write_text(to_json(known), "utf-8")
                mark.with_name(f"{mark.name}.part").replace(mark)

    def _ask_to_end(self) -> None:
        if not self._gently:
            self._signal(signal.SIGTERM)
            return
        for rank in self._running:  # not what it has started, which does not know this signal
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.process.pid, NOTICE)

    def _signal(self, number: signal.Signals) -> None:
        for rank in self._running:
            _kill_group(rank.process.pid, number)


def rank_environment(order: Order, task: Task) -> dict[str, str]:
    """The environment of one rank: this process's, the launcher variables of torch, and the job's own last.

    A rank computes with as many threads as it reserved cpus. Ray's variables are removed: a rank is not a Ray
    worker and must not find its cluster by accident.
    """
    inherited = {key: value for key, value in process_environment().items() if not key.startswith("RAY_")}
    host, _, port = task.master.rpartition(":")
    threads = max(1, min(int(order.job.resources.cpus), limits.cores()))
    launch = {
        "RANK": task.rank,
        "WORLD_SIZE": task.world,
        "LOCAL_RANK": task.local_rank,
        "LOCAL_WORLD_SIZE": task.local_world,
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": 1,
    }
    if task.local_world == task.world:
        launch["GLOO_SOCKET_IFNAME"] = "lo"  # one node: no dependence on how its host name resolves
    elif "GLOO_SOCKET_IFNAME" not in inherited and (interface := interface_of(order.address)):
        # Left to itself gloo asks what the host name resolves to, which on Debian is 127.0.1.1.
        launch["GLOO_SOCKET_IFNAME"] = interface
    own = dict(order.job.env) | dict(order.secrets)
    paths = [own.pop("PYTHONPATH", ""), str(Path(mainspring.__path__[0]).parent)]
    paths += [path for path in order.imports if Path(path).exists()]
    paths.append(inherited.get("PYTHONPATH", ""))
    variables = {key: str(value) for key, value in launch.items()}
    unique = dict.fromkeys(part for path in paths for part in path.split(os.pathsep) if part)
    return {**inherited, **variables, **own, "PYTHONPATH": os.pathsep.join(unique)}


def interface_of(address: str) -> str:
    """The network interface of this node that has `address`; empty when none has."""
    found = psutil.net_if_addrs().items()
    return next((name for name, addresses in found if any(one.address == address for one in addresses)), "")


def tail_of(path: Path, size: int) -> str:
    """The last `size` bytes of a log as text; empty when there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read(size).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _tell(pipe: IO[str], line: str) -> None:
    try:
        pipe.write(line)
        pipe.flush()
    except BrokenPipeError:
        log.warning("the guard is gone: ranks still die with this agent, their children may not")


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # real-time signals have no name


def _read_report(fd: int) -> Report:
    try:
        said = os.read(fd, 1 << 16)
    except BlockingIOError:  # a grandchild still holds the other end, and nothing was said
        said = b""
    finally:
        os.close(fd)
    return Report(**json.loads(said)) if said else Report()
