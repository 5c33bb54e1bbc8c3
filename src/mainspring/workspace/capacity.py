"""The verbs about machines: what there is, who may hold how much of it, why work waits, and what work would take.

They change nothing; whoever may read a workspace may ask them. Those that take a `scene` answer for a cluster that a
TOML file describes, and otherwise for the one at hand.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mainspring.spec import (
    Cluster,
    ClusterFile,
    Gang,
    GatherPlan,
    InstanceFile,
    NodeUse,
    PolicyName,
    Queue,
    QueueFile,
    QueueShare,
    Scene,
    Settings,
    Simulation,
    Site,
    Sized,
    SpecError,
    Target,
    Waiting,
    Why,
    WorkSize,
)
from mainspring.store import Store, parse
from mainspring.workspace.records import Records

ALL = "all"
"""Every instance type of the catalogue."""


class Capacity(Records):
    """What a workspace knows of machines and of the queues before them."""

    def __init__(self, store: Store, settings: Settings) -> None:
        super().__init__(store)
        self.settings = settings

    # -- machines

    def hardware(self, cluster: str | Path = "") -> Cluster:
        """The machines at hand, or those of a cluster file."""
        from mainspring.hardware import topology

        if cluster:
            return topology.build_cluster(parse.load_toml(Path(cluster), ClusterFile))
        if self.settings.address == "local":
            return topology.local_cluster()
        from mainspring.cluster import survey

        return survey(self.settings.address)

    def nodes(self, scene: str | Path = "") -> tuple[NodeUse, ...]:
        """Every node of the cluster, what it has, and who is on which of its devices."""
        from mainspring.cluster.schedule.scene import open_scene
        from mainspring.cluster.schedule.views import nodes_in

        found = self.scene(scene)
        return nodes_in(open_scene(found).state, {machine.name: machine.domain for machine in found.machines})

    # -- queues

    def quotas(self, path: str | Path = "") -> tuple[Queue, ...]:
        """The queues of a quota file, by default the one that jobs are admitted under."""
        if not (path or self.settings.quotas):
            raise SpecError("no quota file is in force", hint="name one, or set MAINSPRING_QUOTAS")
        return parse.load_toml(Path(path or self.settings.quotas), QueueFile).queues

    def quota_file(self) -> QueueFile:
        """What jobs are admitted under; no queue has limits when there is no file."""
        given = self.settings.quotas
        return parse.load_toml(Path(given), QueueFile) if given else QueueFile(queues=())

    def shares(self, path: str | Path = "", *, cluster: str | Path = "") -> tuple[QueueShare, ...]:
        """What each queue of a quota file may hold on a cluster, and its share when everybody asks for everything."""
        from mainspring.cluster.quotas import fair_shares

        return fair_shares(self.quotas(path), self.hardware(cluster))

    def manifest(
        self,
        target: Target,
        *,
        cluster: str | Path = "",
        quotas: str | Path = "",
        image: str = "",
        namespace: str = "default",
    ) -> str:
        """Kubernetes objects in YAML: the quota tree for Kueue, or the cluster for KubeRay with our scheduler in it."""
        from mainspring.cluster.manifests import manifest

        queues = self.quotas(quotas) if target == "kueue" else ()
        return manifest(target, self.hardware(cluster), queues, image=image, namespace=namespace)

    def usage(self, scene: str | Path = "") -> tuple[QueueShare, ...]:
        """What each queue holds, waits for and is entitled to now."""
        from mainspring.cluster.schedule.scene import open_scene
        from mainspring.cluster.schedule.views import shares_in

        return shares_in(open_scene(self.scene(scene)).state)

    def queue(self, scene: str | Path = "") -> tuple[Waiting, ...]:
        """Who waits, queue by queue in the order of turns, and why."""
        from mainspring.cluster.schedule.scene import open_scene
        from mainspring.cluster.schedule.views import waiting_in

        return waiting_in(open_scene(self.scene(scene)).state)

    def why(self, job: str | Gang = "", *, scene: str | Path = "") -> tuple[Why, ...]:
        """Where a job is in life, and what would let it start; of every job by default, or of one that is described."""
        from mainspring.cluster.schedule.explain import explain, try_gang
        from mainspring.cluster.schedule.scene import open_scene

        found = self.scene(scene)
        outcome = open_scene(found)
        if isinstance(job, Gang):
            return (try_gang(outcome.state, job),)
        known = [each.gang.id for each in (*found.running, *found.line)] + [each.id for each in found.gangs]
        return tuple(explain(outcome.state, name, outcome.decisions) for name in ((job,) if job else known))

    def plan_gather(self, queue: str, job: str | Gang, *, hours: float = 24.0, scene: str | Path = "") -> GatherPlan:
        """What pooling all quotas under `queue` for one job would do: one that waits, or one that is described."""
        from mainspring.cluster.schedule.scene import plan_in_scene

        return plan_in_scene(self.scene(scene), queue, job, hours=hours)

    def scene(self, path: str | Path = "") -> Scene:
        """The cluster that a scene file describes, or the one at hand as the books of its drivers have it."""
        from mainspring.cluster.books import scene_at_hand

        if path:
            return parse.load_toml(Path(path), Scene)
        return scene_at_hand(self.store, self.hardware, address=self.settings.address, quotas=self.quota_file())

    # -- on paper

    def estimate(
        self,
        work: WorkSize,
        *,
        device: str = "",
        devices: int = 0,
        utilisation: float = 0.0,
        site: Site | None = None,
        instances: str | Path = "",
    ) -> tuple[Sized, ...]:
        """What a piece of work takes on one kind of device, or on each in the catalogue, least energy for it first.

        `instances` sizes it in whole machines: those of a TOML file, or `all` that the catalogue has.
        """
        from mainspring.hardware import catalog
        from mainspring.plan.capacity import size_up, size_up_instance

        given: Any = {"site": site or Site(), "devices": devices, "utilisation": utilisation}
        wanted = catalog.find(device).name if device else ""
        if instances:
            known = (
                catalog.instances() if instances == ALL else parse.load_toml(Path(instances), InstanceFile).instances
            )
            kinds = [(each, catalog.find(each.device)) for each in known]
            found = [size_up_instance(work, each, kind, **given) for each, kind in kinds if wanted in ("", kind.name)]
        else:
            found = [size_up(work, kind, **given) for name, kind in catalog.devices().items() if wanted in ("", name)]
        return tuple(sorted(found, key=lambda sized: (sized.kwh / sized.flops, sized.device, sized.instance)))

    def simulate(
        self,
        nodes: str | Path,
        pods: str | Path,
        *,
        policy: PolicyName = "plain",
        loads: Sequence[float] = (1.0, 1.3),
        seeds: int = 10,
    ) -> Simulation:
        """How full a placement policy gets the cluster of a node list with the tasks of a task list."""
        from mainspring.cluster.simulate.fill import simulate

        return simulate(nodes, pods, policy=policy, loads=loads, seeds=seeds)
