"""A quota tree on a real cluster: whether it makes sense there, and what everybody's part is."""

from collections.abc import Sequence

from mainspring.cluster.schedule.quota import ENDLESS, ROOT, Tree, Vector, build_tree, divide, unit
from mainspring.cluster.schedule.views import depth_first
from mainspring.spec import ANY_DEVICE, Cluster, Node, Queue, QueueShare, SpecError

HOST = "cpu"


def fair_shares(queues: Sequence[Queue], cluster: Cluster) -> tuple[QueueShare, ...]:
    """Every queue with every resource that it has a limit of, or that the cluster has; parents before children.

    Raises `SpecError` for a tree that contradicts itself, and when the minima are more than the cluster has.
    """
    models = tuple(sorted({device.name for node in cluster.nodes for device in node.devices if device.vendor != HOST}))
    tree = build_tree(queues, models)
    total = check_minima(tree, cluster)
    asked = [(0,) * len(total) if branch.children else total for branch in tree.branches]
    shares = divide(tree, total, asked)
    found: list[QueueShare] = []
    for at in depth_first(tree.branches[ROOT].children, [branch.children for branch in tree.branches]):
        branch = tree.branches[at]
        for r, resource in enumerate(tree.resources):
            limited = branch.floor[r] or branch.ceiling[r] < ENDLESS
            if limited or (total[r] and "/" not in resource):
                found.append(
                    QueueShare(
                        queue=branch.name,
                        depth=len(tree.path(at)) - 2,
                        weight=branch.weight,
                        resource=resource,
                        min=branch.floor[r] / unit(resource),
                        share=shares[at][r] / unit(resource),
                        max=branch.ceiling[r] / unit(resource) if branch.ceiling[r] < ENDLESS else None,
                        jobs=not branch.children,
                    )
                )
    return tuple(found)


def check_minima(tree: Tree, cluster: Cluster) -> Vector:
    """What the cluster has. Raises `SpecError` when the minima are more than that."""
    total = tuple(sum(_amount(node, resource) for node in cluster.nodes) for resource in tree.resources)
    floors = [sum(tree.branches[child].floor[r] for child in tree.branches[ROOT].children) for r in range(len(total))]
    for resource, floor, have in zip(tree.resources, floors, total, strict=True):
        if floor > have:
            raise SpecError(
                f"the minima of {resource} add up to {floor / unit(resource):g}, "
                f"and {cluster.name} has {have / unit(resource):g}",
                hint="lower some, or they would all be cut in proportion",
            )
    return total


def _amount(node: Node, resource: str) -> int:
    """What a node has of a resource, in integer units."""
    if resource == "cpu":
        return 1000 * node.cpu_cores
    if resource == "memory":
        return node.memory_bytes // 2**20
    model = resource.partition("/")[2]
    mine = [device for device in node.devices if device.vendor != HOST and model in ("", device.name)]
    return unit(ANY_DEVICE) * len(mine)
