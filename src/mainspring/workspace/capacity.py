"""The verbs about machines: what there is, who may hold how much of it, why work waits, and what work would take.

They change nothing; whoever may read a workspace may ask them.
"""

from collections.abc import Sequence
from pathlib import Path

from mainspring.spec import (
    Cluster,
    ClusterFile,
    GatherPlan,
    PolicyName,
    Queue,
    QueueFile,
    QueueShare,
    Scene,
    Settings,
    Simulation,
    Site,
    Sized,
    Why,
    WorkSize,
)
from mainspring.store import Store, parse
from mainspring.workspace.records import Records


class Capacity(Records):
    """What a workspace knows of machines and of the queues before them."""

    def __init__(self, store: Store, settings: Settings) -> None:
        super().__init__(store)
        self.settings = settings

    def hardware(self, cluster: str | Path = "") -> Cluster:
        """The machines at hand, or those of a cluster file."""
        from mainspring.hardware import topology

        if cluster:
            return topology.build_cluster(parse.load_toml(Path(cluster), ClusterFile))
        if self.settings.address == "local":
            return topology.local_cluster()
        from mainspring.cluster import survey

        return survey(self.settings.address)

    def quotas(self, path: str | Path = "") -> tuple[Queue, ...]:
        """The queues of a quota file, by default the one that jobs are admitted under."""
        return parse.load_toml(Path(path or self.settings.quotas), QueueFile).queues

    def shares(self, path: str | Path = "", *, cluster: str | Path = "") -> tuple[QueueShare, ...]:
        """What each queue of a quota file may hold on a cluster, and its share when everybody asks for everything."""
        from mainspring.cluster.quotas import fair_shares

        return fair_shares(self.quotas(path), self.hardware(cluster))

    def why(self, scene: str | Path, gang: str = "") -> tuple[Why, ...]:
        """Where the gangs of a scene are in life, and what would let those start that wait."""
        from mainspring.cluster.schedule.explain import explain, open_scene

        found = parse.load_toml(Path(scene), Scene)
        outcome = open_scene(found)
        names = [gang] if gang else [each.id for each in found.gangs]
        return tuple(explain(outcome.state, name, outcome.decisions) for name in names)

    def plan_gather(self, scene: str | Path, queue: str, gang: str, *, hours: float = 24.0) -> GatherPlan:
        """What pooling all quotas under `queue` for one gang of a scene would do."""
        from mainspring.cluster.schedule.explain import plan_in_scene

        return plan_in_scene(parse.load_toml(Path(scene), Scene), queue, gang, hours=hours)

    def estimate(
        self, work: WorkSize, *, device: str = "", devices: int = 0, utilisation: float = 0.0, site: Site | None = None
    ) -> tuple[Sized, ...]:
        """What a piece of work takes on one kind of device, or on each in the catalogue, cheapest in energy first."""
        from mainspring.hardware import catalog
        from mainspring.plan.capacity import size_up

        kinds = [catalog.find(device)] if device else list(catalog.devices().values())
        found = [size_up(work, kind, site=site or Site(), devices=devices, utilisation=utilisation) for kind in kinds]
        return tuple(sorted(found, key=lambda sized: (sized.kwh, sized.device)))

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
