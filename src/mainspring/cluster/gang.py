"""One gang on Ray: a placement group pinned to the chosen nodes, and a node agent in each of its bundles.

Mainspring decides where, Ray only carries it out: every bundle names its node by id. Nothing here waits for long:
the attempt's thread calls these methods in turn, and cancellation is looked at in between. Group and agents of a
lasting job are detached and named, so each step finds what an earlier driver has done and only does the rest.
"""

import logging
import os
import re
import sys
import sysconfig
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mainspring.cluster.agent import LEASE_S, NodeAgent, Order, Poll
from mainspring.cluster.engine import NAMESPACE, Member
from mainspring.cluster.mirror import TAIL_BYTES, Chunk, Cursor, Mirror, followed, read_piece
from mainspring.cluster.verdict import RankEnd
from mainspring.spec import Job, Placement, RankExit, SpecError, Task, Unavailable, WorkerLost
from mainspring.spec.settings import process_environment
from mainspring.store.parse import read_json

ANSWER_S = 30.0
RESERVE_S = 0.5
START_S = 120.0  # a cold worker on a busy node, which may have to fetch the driver's source first

log = logging.getLogger(__name__)


class Post:
    """One node's share of a gang: its ranks, its agent, and the copy of its files (None: the folder is shared)."""

    def __init__(self, member: Member, ranks: tuple[int, ...]) -> None:
        self.member = member
        self.ranks = ranks
        self.agent: Any = None
        self.mirror: Mirror | None = None
        self.run_dir = ""
        self.lost = ""

    @property
    def node(self) -> str:
        """The node's name."""
        return self.member.capacity.node

    def hand_back(self, folder: Path) -> None:
        """Give this node what earlier attempts wrote, so that logs and other followed files go on where they were."""
        import ray

        others = re.compile(r"rank-(?!(" + "|".join(map(str, self.ranks)) + r")\.)\d+\.log")
        for name in followed(folder) if self.mirror else ():
            offset, tail = 0, b""
            inode: Any = 0
            while not others.fullmatch(name) and (chunk := read_piece(folder, name, offset=offset)).data:
                inode = ray.get(self.agent.restore.remote(chunk), timeout=ANSWER_S)
                offset += len(chunk.data)
                tail = (tail + chunk.data)[-TAIL_BYTES:]
            if self.mirror and offset:
                self.mirror.cursors[name] = Cursor(inode=inode, offset=offset, tail=tail)

    def collect(self) -> None:
        """Bring the copy of this node's files up to date, whole files included."""
        import ray

        if self.mirror is None:
            return
        poll: Any = None
        while poll is None or poll.chunks:
            poll = ray.get(self.agent.poll.remote(self.mirror.cursors), timeout=ANSWER_S)
            self.mirror.apply(poll.chunks)
        self.mirror.copy(ray.get(self.agent.files.remote(), timeout=ANSWER_S), self._read)

    def _read(self, name: str, offset: int) -> Chunk:
        import ray

        return ray.get(self.agent.read.remote(name, offset), timeout=ANSWER_S)


class Gang:
    """The processes of one job."""

    def __init__(
        self,
        job: Job,
        placement: Placement,
        members: Mapping[str, Member],
        *,
        run_dir: Path,
        name: str = "",
        lasting: bool = False,
    ) -> None:
        self.job = job
        self.run_dir = run_dir
        self.placement = placement
        self.posts = [
            Post(members[name], tuple(rank for rank, node in enumerate(placement.nodes) if node == name))
            for name in dict.fromkeys(placement.nodes)
        ]
        self.ends: dict[int, RankEnd] = {}
        self._name, self._lasting = name, lasting
        self._group: Any = None

    @property
    def lost(self) -> bool:
        """Whether a node agent is gone, and with it the end of a rank."""
        return any(post.lost and self.ends[rank].exit.reason == post.lost for post in self.posts for rank in post.ranks)

    def reserve(self, *, existing: bool = False) -> None:
        """Ask Ray for the gang's places, or find those that an earlier driver asked for; see `reserved`."""
        from ray.util.placement_group import get_placement_group, placement_group

        if existing:
            try:
                self._group = get_placement_group(self._name)
                return
            except ValueError:
                log.debug("no group to take over", extra={"group": self._name})
        self._group = placement_group(
            [self._bundle(post) for post in self.posts],
            strategy="PACK",
            name=self._name,
            lifetime="detached" if self._lasting else None,
            bundle_label_selector=[{"ray.io/node-id": post.member.id} for post in self.posts],
        )

    def reserved(self) -> bool:
        """Whether Ray has set the places aside; waits for it a little."""
        return self._group.wait(timeout_seconds=RESERVE_S)

    def prepare(self, *, scratch: str, run_root: str) -> None:
        """Start the agents and agree with each on the folder for the run's files; see `reach` for `run_root`."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        marker = self.run_dir / f".shared-{os.getpid()}-{threading.get_ident()}"
        marker.touch()
        for index, post in enumerate(self.posts):
            lasting = {
                "name": f"{self._name}/{index}",
                "namespace": NAMESPACE,
                "lifetime": "detached",
                "get_if_exists": True,
            }
            # The group holds the resources; the agent takes none, as Ray would refuse it one and a half devices.
            where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
            options = {"num_cpus": 0, "scheduling_strategy": where, **(lasting if self._lasting else {})}
            post.agent = ray.remote(NodeAgent).options(**options).remote()
        try:
            answers = [post.agent.prepare.remote(str(marker), scratch, run_root) for post in self.posts]
            for post, berth in zip(self.posts, self._get(answers, "start", within_s=START_S), strict=True):
                post.run_dir = berth.folder
                post.mirror = None if berth.folder == str(self.run_dir) else Mirror(self.run_dir)
                if not berth.started:
                    post.hand_back(self.run_dir)
        finally:
            marker.unlink(missing_ok=True)

    def start(self) -> None:
        """Start every rank."""
        first = self.posts[0]
        host = "127.0.0.1" if len(self.posts) == 1 else first.member.address
        (port,) = self._get([first.agent.hold_port.remote()], "find a port")
        answers, secrets = [], secrets_of(self.job)
        for post in self.posts:
            tasks = tuple(
                Task(
                    job_id=self.job.id,
                    rank=rank,
                    world=self.job.ranks,
                    local_rank=local_rank,
                    local_world=len(post.ranks),
                    run_dir=post.run_dir,
                    master=f"{host}:{port}",
                )
                for local_rank, rank in enumerate(post.ranks)
            )
            order = Order(
                job=self.job,
                node=post.node,
                tasks=tasks,
                imports=self.job.imports or driver_imports(),
                folder=self.job.folder or str(Path.cwd()),
                address=post.member.address,
                lease_s=self.job.alone_s if self._lasting else LEASE_S,
                secrets=secrets,
                marks=self._marks if post.mirror is None else "",
                accelerator=post.member.accelerator,
                devices=tuple(self.placement.devices[rank] for rank in post.ranks) if self.placement.devices else (),
            )
            answers.append(post.agent.start.remote(order))
        self._get(answers, "start the ranks")

    def poll(self) -> tuple[RankEnd, ...]:
        """Look at every node once: copy what files grew, return the ranks that have ended so far."""
        import ray

        live = [post for post in self.posts if not post.lost]
        asked = [(post, post.agent.poll.remote(post.mirror and post.mirror.cursors)) for post in live]
        ray.wait([ref for _, ref in asked], num_returns=len(asked), timeout=ANSWER_S)
        for post, ref in asked:
            answer = self._answer(post, ref)
            if answer is None:
                continue
            if post.mirror is not None:
                post.mirror.apply(answer.chunks)
            self.ends |= {end.exit.rank: end for end in answer.ends}
        return tuple(self.ends.values())

    def stop(self, reason: str, *, grace_s: float, gently: bool = False) -> None:
        """Ask every node to end its ranks; `gently`, when they have saved what they have."""
        for post in self.posts:
            if not post.lost:
                post.agent.stop.remote(reason, grace_s, gently=gently)

    def collect(self) -> None:
        """Copy what is still missing from nodes that do not share the run's folder."""
        from ray.exceptions import RayError

        for post in self.posts:
            try:
                if not post.lost:
                    post.collect()
            except RayError as error:
                log.warning("files were not copied back", extra={"node": post.node, "error": str(error)})

    def release(self) -> None:
        """End the agents, give the places back, and clear the marks away."""
        import ray
        from ray.exceptions import RayError
        from ray.util.placement_group import remove_placement_group

        for post in self.posts:
            if post.agent is not None:
                try:
                    ray.get(post.agent.close.remote(), timeout=1.0)
                except RayError as error:
                    log.debug("agent did not close", extra={"node": post.node, "error": str(error)})
                ray.kill(post.agent)
        if self._group is not None:
            remove_placement_group(self._group)
        for rank in range(self.job.ranks):
            (self.run_dir / f"{self._marks}{rank}").unlink(missing_ok=True)

    def _bundle(self, post: Post) -> dict[str, float]:
        need, count = self.job.resources, len(post.ranks)
        bundle = {
            "CPU": need.cpus * count,
            post.member.accelerator: need.devices * count,
            "memory": float(need.memory_bytes * count),
        }
        # Ray refuses an empty bundle; a gang that asks for nothing takes a thousandth of a cpu.
        return {name: amount for name, amount in bundle.items() if amount} or {"CPU": 0.001}

    def _answer(self, post: Post, ref: Any) -> Poll | None:
        import ray
        from ray.exceptions import RayError

        try:
            return ray.get(ref, timeout=0.001)
        except RayError as error:
            reason = f"lost: its node agent on {post.node} is gone ({type(error).__name__})"
            log.warning("node agent lost", extra={"node": post.node, "error": str(error)})
            for rank in post.ranks:
                if rank not in self.ends:
                    end = RankExit(rank=rank, node=post.node, code=None, reason=reason)
                    self.ends[rank] = self._marked(rank) or RankEnd(exit=end, at_s=0.0)
            post.lost = reason
            return None

    @property
    def _marks(self) -> str:
        """How the marks of this attempt begin, in the run's folder."""
        return f".end-{self._name.replace('/', '-')}-"

    def _marked(self, rank: int) -> RankEnd | None:
        """How a rank ended whose agent had no time to tell; None if it had not ended."""
        try:
            return read_json((self.run_dir / f"{self._marks}{rank}").read_text("utf-8"), RankEnd)
        except FileNotFoundError:
            return None

    def _get(self, refs: list[Any], what: str, *, within_s: float = ANSWER_S) -> list[Any]:
        import ray
        from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

        try:
            return ray.get(refs, timeout=within_s)
        except GetTimeoutError as error:
            raise Unavailable(f"a node agent of job {self.job.id} did not {what} in {within_s:g} s") from error
        except ActorDiedError as error:
            raise WorkerLost(f"a node agent of job {self.job.id} died: {error}") from error
        except RayError as error:
            raise Unavailable(f"a node agent of job {self.job.id} could not {what}: {error}") from error


def secrets_of(job: Job) -> tuple[tuple[str, str], ...]:
    """The variables that the job asks for, as this process has them. Raises `SpecError` when it does not have one."""
    here = process_environment()
    missing = [name for name in job.secrets if name not in here]
    if missing:
        raise SpecError(
            f"job {job.id} asks for {missing[0]}, which its driver's environment does not have",
            hint=f"start the scheduler with {missing[0]} set",
        )
    return tuple((name, here[name]) for name in job.secrets)


def driver_imports() -> tuple[str, ...]:
    """Where the driver finds modules beyond its Python installation, so that ranks find the same ones."""
    own = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    paths = dict.fromkeys(str(Path(path).absolute()) for path in sys.path)
    return tuple(path for path in paths if not path.startswith(own))
