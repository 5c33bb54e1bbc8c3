"""This process's connection to Ray.

Ray allows one connection per process, so engines are shared: the last user disconnects. The connection is made and
held by a thread of its own, because the processes of a local Ray carry PR_SET_PDEATHSIG and would die with a
shorter-lived thread that happened to submit the first job. A guard process removes what a local Ray leaves behind,
its folder included, however the driver ends.

A local Ray counts `LOCAL_CPUS_PER_CORE` cpus per core and at least `LOCAL_CPUS_MIN`. On a single machine cpus are
shares of time and not places: a two-rank gang must run on one core, and beside a server that waits for requests.
"""

import ctypes
import logging
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import mainspring
from mainspring.cluster.guard import open_guard
from mainspring.cluster.placement import Capacity
from mainspring.cluster.reach import sees
from mainspring.hardware import limits
from mainspring.hardware.census import Census, take_census
from mainspring.spec import SpecError, Unavailable, spec
from mainspring.spec.settings import quiet_third_parties, variable

LOCAL_CPUS_PER_CORE = 2
LOCAL_CPUS_MIN = 4
ACCELERATORS = ("GPU", "NPU", "HPU", "TPU")
NAMESPACE = "mainspring"
_START_S = 90.0
_REACH_S = 5.0
_JOIN_ATTEMPTS = 3
# How Ray says that the process it started for a client has ended before it served: when it looks for it it may be gone.
_ENDED_AT_ONCE = "Starting Ray client server failed", "psutil.ZombieProcess", "psutil.NoSuchProcess"
_OBJECT_STORE_BYTES = 80 << 20
_SIGACTION_BYTES = 256  # more than `struct sigaction` takes anywhere

log = logging.getLogger(__name__)


@spec
class Member:
    """One live Ray node: its Ray id, its address, what it has, and Ray's name for its accelerators."""

    id: str
    address: str
    capacity: Capacity
    accelerator: str = ""


class Engine:
    """A connection to the Ray cluster at `address`; made with `connect`, given back with `close`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.users = 1
        self._closing = threading.Event()
        self._ready = threading.Event()
        self._problem: BaseException | None = None
        self._connected = False
        self._guard: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._hold, name="ray", daemon=True)
        self._thread.start()
        try:
            came_up = self._ready.wait(_START_S)
        except BaseException:  # Ctrl-C
            self._closing.set()  # should it come up after all, it is let go at once
            raise
        if not came_up:
            self._closing.set()
            raise Unavailable(f"Ray at {address!r} did not answer within {_START_S:g} s", hint=_hint(address))
        if self._problem is not None:
            problem = self._problem
            raise Unavailable(f"cannot use Ray at {address!r}: {problem}", hint=_hint(address)) from problem

    def members(self) -> tuple[Member, ...]:
        """Every live node, ordered by name; nodes of one host are told apart by their Ray id."""
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        return tuple(sorted((member_of(node, among=alive) for node in alive), key=lambda found: found.capacity.node))

    def available(self) -> dict[str, Capacity]:
        """What Ray has not given to anybody, by Ray node id. It lags behind by a fraction of a second."""
        import ray

        if self.address.startswith("ray://"):
            left = ray.get(ray.remote(num_cpus=0)(_available).remote(), timeout=_START_S)
        else:
            left = _available()
        return {node: _capacity(node, resources) for node, resources in left.items()}

    def census(self, members: Sequence[Member]) -> dict[str, Census | None]:
        """What the drivers of these nodes' accelerators say, by Ray node id; see `hardware.census`."""
        import ray
        from ray.exceptions import RayError

        ask = ray.remote(num_cpus=0)(take_census)
        asked = {each.id: ask.options(label_selector={"ray.io/node-id": each.id}).remote() for each in members}
        try:
            return dict(zip(asked, ray.get(list(asked.values()), timeout=_START_S), strict=True))
        except RayError as error:
            raise Unavailable(f"cannot ask the nodes of {self.address!r} what they have: {error}") from error

    def cluster_id(self) -> str:
        """Ray's own id of the cluster: another one after a restart, the same for every driver until then."""
        import ray

        if self.address.startswith("ray://"):
            return ray.get(ray.remote(num_cpus=0)(_cluster_id).remote(), timeout=_START_S)
        return _cluster_id()

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Id and name of every placement group that has not been removed, whoever made it."""
        from ray.util.placement_group import placement_group_table

        found = placement_group_table().values()
        return tuple((group["placement_group_id"], group["name"]) for group in found if group["state"] != "REMOVED")

    def remove_group(self, id: str) -> None:  # noqa: A002 Ray's word for it
        """Remove a placement group, and with it the agents in it and their ranks."""
        from ray import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(id)))

    def seeing(self, paths: Sequence[str], *, run_root: str) -> frozenset[str]:
        """The names of the nodes that see every one of `paths`; see `reach.sees`."""
        import ray
        from ray.exceptions import RayError

        ask, members = ray.remote(num_cpus=0)(sees), self.members()
        try:
            answers = [
                ask.options(label_selector={"ray.io/node-id": member.id}).remote(list(paths), run_root)
                for member in members
            ]
            seen: list[bool] = ray.get(answers, timeout=_START_S)
        except RayError as error:
            raise Unavailable(f"cannot ask the nodes of {self.address!r} what they see: {error}") from error
        return frozenset(member.capacity.node for member, yes in zip(members, seen, strict=True) if yes)

    def close(self) -> None:
        """Give the connection back; the last user disconnects, which ends a local Ray."""
        global _current  # noqa: PLW0603 one connection per process is Ray's rule
        with _lock:
            self.users -= 1
            if self.users:
                return
            _current = None
            self._closing.set()
            self._thread.join(_START_S)

    def _hold(self) -> None:
        with ExitStack() as held:
            try:
                if self.address == "local":
                    held.enter_context(_own_token())
                with _own_sigterm():
                    self._start() if self.address == "local" else self._join()
            except Exception as error:  # noqa: BLE001 the edge of the thread: `connect` raises it as Unavailable
                self._problem = error
            self._wait_and_leave()

    def _wait_and_leave(self) -> None:
        self._ready.set()
        if self._problem is None:
            self._closing.wait()
        if self._connected:
            import ray

            ray.shutdown()
        if self._guard is not None:
            # Returns when nothing is left. The dot, because a forked child of this process may hold the pipe open.
            self._guard.communicate(".\n")

    def _start(self) -> None:
        ray = _import_ray()
        # A socket path is limited to 107 characters, so the folder is in /tmp wherever TMPDIR points.
        folder = tempfile.mkdtemp(prefix="mainspring-ray-", dir="/tmp")
        self._guard = open_guard()
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{folder}\n")
        self._guard.stdin.flush()
        self._connected = True  # from here on there is something to shut down
        ray.init(
            address="local",
            num_cpus=max(LOCAL_CPUS_MIN, LOCAL_CPUS_PER_CORE * limits.cores()),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            namespace=NAMESPACE,
            configure_logging=False,
            log_to_driver=False,
            _temp_dir=folder,
            # Ray's memory monitor would kill the agent, which is small, and with it the whole gang. The kernel's
            # kills the rank that is too large, and the agent lives to say so. Workers, and so the ranks they start,
            # would also be at nice 15, which leaves a rank 3 % of a core beside any other process that is busy.
            _system_config={"memory_monitor_refresh_ms": 0, "worker_niceness": 0},
        )

    def _join(self) -> None:
        _check_reachable(self.address)
        ray = _import_ray()
        package = str(mainspring.__path__[0])  # the nodes run the driver's own source
        self._connected = True  # from here on there is something to shut down
        for attempt in range(1, _JOIN_ATTEMPTS + 1):
            try:
                ray.init(
                    address=self.address,
                    namespace=NAMESPACE,
                    configure_logging=False,
                    log_to_driver=False,
                    runtime_env={"py_modules": [package], "excludes": ["**/__pycache__"]},
                )
            except ConnectionAbortedError as error:
                # Ray starts a process for each client, now and then in vain: the port it chose was taken meanwhile.
                if attempt == _JOIN_ATTEMPTS or not any(sign in str(error) for sign in _ENDED_AT_ONCE):
                    raise
                log.warning("Ray could not start its side of the connection; trying again", extra={"attempt": attempt})
                ray.shutdown()
            else:
                return


@contextmanager
def _own_sigterm() -> Generator[None]:
    """Keep what this process does about SIGTERM, also from a thread, where Python lets nobody set it.

    Connecting, Ray replaces it with abseil's handler of crashes, which prints a C++ trace and aborts the process three
    seconds later, however orderly it is ending by then.
    """
    libc, kept = ctypes.CDLL(None), ctypes.create_string_buffer(_SIGACTION_BYTES)
    libc.sigaction(signal.SIGTERM, None, kept)
    try:
        yield
    finally:
        libc.sigaction(signal.SIGTERM, kept, None)


@contextmanager
def _own_token() -> Generator[None]:
    """A secret for a local Ray, whose ports others on the network can reach, in the environment alone.

    Left to itself Ray writes one to the home folder, readable by everybody, and fails where that is read-only.
    """
    _import_ray()
    from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue] compiled

    with variable("RAY_AUTH_TOKEN", secrets.token_hex(32)):
        AuthenticationTokenLoader.instance().reset_cache()
        yield
    AuthenticationTokenLoader.instance().reset_cache()


_lock = threading.Lock()
_current: Engine | None = None


def connect(address: str) -> Engine:
    """The process's engine for `address`, started or joined if need be.

    Raises `Unavailable` when Ray cannot be started or reached, `SpecError` when this process already uses another
    cluster.
    """
    global _current  # noqa: PLW0603 one connection per process is Ray's rule
    with _lock:
        if _current is None:
            _current = Engine(address)
        elif _current.address == address:
            _current.users += 1
        else:
            raise SpecError(
                f"this process is connected to Ray at {_current.address!r}, it cannot also use {address!r}",
                hint="close the other workspace first, or use another process",
            )
        return _current


def _import_ray() -> Any:
    quiet_third_parties()
    try:
        import ray
    except ImportError as error:
        raise Unavailable(f"Ray is not installed: {error}") from error
    logging.getLogger("ray").setLevel(logging.ERROR)  # importing Ray sets it to INFO
    # Where Lance and LanceDB are loaded they warn of every fork; each of Ray's is followed by an exec.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    warnings.filterwarnings("ignore", message="lancedb fork support is experimental")
    if ray.is_initialized():
        raise Unavailable("this process has called ray.init itself, and Ray allows one connection per process")
    return ray


def _check_reachable(address: str) -> None:
    """Fail within seconds where Ray's own client would retry for minutes."""
    if address == "auto":
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    if not parts.hostname or not parts.port:
        raise Unavailable(f"{address!r} is not an address")
    with socket.create_connection((parts.hostname, parts.port), timeout=_REACH_S):
        return


def _available() -> dict[str, dict[str, float]]:
    from ray._private.state import available_resources_per_node

    return available_resources_per_node()


def _cluster_id() -> str:
    from ray._private.worker import global_worker

    return global_worker.gcs_client.cluster_id.hex()  # pyright: ignore[reportAttributeAccessIssue] of its parent


def member_of(node: Mapping[str, Any], *, among: Sequence[Mapping[str, Any]]) -> Member:
    """Ray's description of a node as ours. Where several of the nodes have its host's name it carries its Ray id."""
    host, id = node["NodeManagerHostname"], node["NodeID"]  # noqa: A001 Ray's word for it
    alone = sum(other["NodeManagerHostname"] == host for other in among) == 1
    resources = node["Resources"]
    return Member(
        id=id,
        address=node["NodeManagerAddress"],
        capacity=_capacity(host if alone else f"{host}/{id[:8]}", resources),
        accelerator=next((kind for kind in ACCELERATORS if resources.get(kind)), ""),
    )


def _capacity(node: str, resources: dict[str, float]) -> Capacity:
    return Capacity(
        node=node,
        cpus=resources.get("CPU", 0.0),
        devices=sum(resources.get(kind, 0.0) for kind in ACCELERATORS),
        memory_bytes=int(resources.get("memory", 0)),
    )


def _hint(address: str) -> str:
    if address == "local":
        return "install the train extra (pip install 'mainspring[train]') and see that /tmp has space and is writable"
    return 'write it as "local", "auto" or "ray://host:port", and see that `ray status` works there'
