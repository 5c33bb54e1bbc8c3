"""A quota tree and a cluster as Kubernetes objects: Kueue's queues, and KubeRay's cluster with our scheduler beside it.

Kueue (`kueue.x-k8s.io/v1beta2`) counts quota by flavour, which here is a device model, and has no quota of "any model":
such a one is divided among the models in proportion to what the cluster has of each, and the object says so. What a
queue has beyond its parts becomes its nominal quota, what nobody is guaranteed that of a cohort above all; `borrow` and
`max` become borrowing limits, `lend` the lending limit, the weight fair sharing's.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from mainspring.cluster.quotas import check_minima
from mainspring.cluster.schedule.quota import ENDLESS, ROOT, Tree, Vector, build_tree, unit
from mainspring.hardware import catalog
from mainspring.spec import ANY_DEVICE, Cluster, Device, Node, Queue, SpecError, Target

HOST = "cpu"
DEVICE_RESOURCE = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "huawei": "huawei.com/Ascend910"}
# The label that each vendor's feature discovery gives nodes, and what it writes for a blank in a product's name.
MODEL_LABEL = {"nvidia": ("nvidia.com/gpu.product", "-"), "amd": ("amd.com/gpu.product-name", "_")}
HOST_FLAVOUR = "hosts"
ABOVE_ALL = "mainspring"
DIVIDED = "mainspring.dev/divided"
KUEUE, RAY = "kueue.x-k8s.io/v1beta2", "ray.io/v1"
STORE_SECRET = "mainspring-store"
HEAD_CPU, HEAD_MEMORY = "4", "16Gi"
# Of a node, what a pod may have, less one GiB of memory: a pod of the whole node would never start. The rest is the
# kubelet's and the daemons'; GKE keeps 2.6 GiB of 16 and 5.5 of 64 (its documentation, "node allocatable resources").
CPU_SHARE, MEMORY_SHARE = 0.95, 0.9
GIB = 1 << 30

Object = dict[str, Any]


def manifest(target: Target, cluster: Cluster, queues: Sequence[Queue], *, image: str, namespace: str) -> str:
    """Kubernetes objects in YAML: the quota tree for Kueue, or the cluster for KubeRay with our scheduler in it."""
    if target == "kueue":
        return yaml_of(kueue_objects(queues, cluster, namespace=namespace))
    if not image:
        raise SpecError("a Ray cluster on Kubernetes needs an image", hint="one with mainspring in it: --image NAME")
    return yaml_of(kuberay_objects(cluster, image=image, namespace=namespace, ray=version("ray")))


def kueue_objects(queues: Sequence[Queue], cluster: Cluster, *, namespace: str) -> tuple[Object, ...]:
    """Flavours, cohorts, cluster queues and local queues of a quota tree. Raises `SpecError` as `fair_shares` does."""
    models = _models(cluster)
    tree = build_tree(queues, sorted(models))
    total = check_minima(tree, cluster)
    _check_names([ABOVE_ALL, *(branch.name for branch in tree.branches[1:])])
    flavours = [_flavour(device) for device in models.values()]
    flavours.append(_object(KUEUE, "ResourceFlavor", HOST_FLAVOUR))
    have = Counter(device.name for node in cluster.nodes for device in node.devices if device.vendor != HOST)
    parts = _divide(tree, have)
    ours = [_queue(tree, at, parts, models=models, total=total) for at in range(len(tree.branches))]
    local = [
        _object(KUEUE, "LocalQueue", _name(name), namespace=namespace, spec={"clusterQueue": _name(name)})
        for name in tree.leaves
    ]
    return (*flavours, *ours, *local)


def kuberay_objects(cluster: Cluster, *, image: str, namespace: str, ray: str) -> tuple[Object, ...]:
    """A Ray cluster with one group of workers for each kind of node, and our scheduler beside its head.

    Database and object store come from the secret `mainspring-store`, whose keys are our variables.
    """
    kinds = Counter((_kind(node), _per_node(node), node.cpu_cores, node.memory_bytes) for node in cluster.nodes)
    devices = {_kind(node): _device(node) for node in cluster.nodes}
    groups = [
        _workers(devices[kind], count=count, held=held, cores=cores, memory_bytes=memory, image=image)
        for (kind, held, cores, memory), count in sorted(kinds.items())
    ]
    head = {
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
        "template": {
            "spec": {
                "containers": [
                    _container("ray-head", image, {"cpu": HEAD_CPU, "memory": HEAD_MEMORY}),
                    {
                        **_container("scheduler", image, {"cpu": "1", "memory": "2Gi"}),
                        "command": ["mainspring", "--address", "ray://127.0.0.1:10001", "schedule"],
                    },
                ]
            }
        },
    }
    spec = {"rayVersion": ray, "headGroupSpec": head, "workerGroupSpecs": groups}
    return (_object(RAY, "RayCluster", _name(cluster.name), namespace=namespace, spec=spec),)


def yaml_of(objects: Sequence[Object]) -> str:
    """The objects as one YAML stream."""
    return "".join(f"---\n{_block(each, 0)}" for each in objects)


def _models(cluster: Cluster) -> dict[str, Device]:
    return {device.name: device for node in cluster.nodes for device in node.devices if device.vendor != HOST}


def _flavour(device: Device) -> Object:
    labels = _labels(device)
    return _object(KUEUE, "ResourceFlavor", _name(device.name), spec={"nodeLabels": labels} if labels else {})


def _labels(device: Device) -> dict[str, str]:
    """What nodes with this model are labelled with: what its driver reports. Nothing where that is not known."""
    label, blank = MODEL_LABEL.get(device.vendor, ("", ""))
    listed = device.name in catalog.devices()
    names = catalog.find_entry(device.name).matches if listed else (device.name,)
    return {label: names[0].replace(" ", blank)} if label and names else {}


def _divide(tree: Tree, have: Mapping[str, int]) -> tuple[dict[str, int], ...]:
    """Devices of each model for every branch and all below it: those stated for a model, and of those for any a part.

    Parents first, so that what a part has of a model is its parent's. What is stated for any is divided in proportion
    to what the parent has left of each model beside what was stated for it, in whole devices that add up.
    """
    every = range(len(tree.branches))
    typed = [{model: math.floor(_floor(tree, at, f"{ANY_DEVICE}/{model}")) for model in have} for at in every]
    found = [dict(have) for _ in tree.branches]
    for at, branch in enumerate(tree.branches):
        left = dict(found[at])
        for child in branch.children:
            left = {model: left[model] - typed[child][model] for model in have}
        for child in branch.children:
            wanted = math.floor(_floor(tree, child, ANY_DEVICE)) - sum(typed[child].values())
            part = _in_proportion(wanted, left)
            found[child] = {model: typed[child][model] + part[model] for model in have}
            left = {model: left[model] - part[model] for model in have}
    return tuple(found)


def _in_proportion(wanted: int, left: Mapping[str, int]) -> dict[str, int]:
    """`wanted` whole devices, of each model in proportion to what is left of it and never more than that."""
    whole, found, counted, given = max(1, sum(left.values())), dict[str, int](), 0, 0
    for model in sorted(left):
        counted += left[model]
        found[model] = wanted * counted // whole - given
        given += found[model]
    return found


def _floor(tree: Tree, at: int, resource: str) -> float:
    """What a branch is guaranteed, in a person's units; the root nothing."""
    return tree.branches[at].floor[tree.resources.index(resource)] / unit(resource) if at != ROOT else 0.0


def _queue(
    tree: Tree, at: int, parts: Sequence[Mapping[str, int]], *, models: Mapping[str, Device], total: Vector
) -> Object:
    """A branch of the tree; the root is the cohort above all, which has what nobody is guaranteed."""
    branch = tree.branches[at]
    hosts = [_host_amount(tree, at, name, total=total) for name in ("cpu", "memory")]
    flavours = [{"name": HOST_FLAVOUR, "resources": hosts}]
    groups: list[Object] = [{"coveredResources": ["cpu", "memory"], "flavors": flavours}]
    for resource in sorted({_resource(device) for device in models.values()}):
        mine = [
            {"name": _name(model), "resources": [{"name": resource, **_device_amount(tree, at, model, parts)}]}
            for model, device in sorted(models.items())
            if _resource(device) == resource
        ]
        groups.append({"coveredResources": [resource], "flavors": mine})
    leaf = at != ROOT and not branch.children
    spec: Object = {}
    if at != ROOT:
        spec["cohortName" if leaf else "parentName"] = _name(tree.branches[branch.parent].name or ABOVE_ALL)
    if leaf:
        preemption = {"reclaimWithinCohort": "Any", "withinClusterQueue": "LowerPriority"}
        spec |= {"namespaceSelector": {}, "preemption": preemption}
    spec |= {"resourceGroups": groups, "fairSharing": {"weight": str(branch.weight)}}
    divided = len(models) > 1 and at != ROOT and (_floor(tree, at, ANY_DEVICE) or _limit(tree, at, ANY_DEVICE))
    notes = {DIVIDED: "a quota of any device is divided among the models"} if divided else {}
    return _object(KUEUE, "ClusterQueue" if leaf else "Cohort", _name(branch.name or ABOVE_ALL), spec=spec, notes=notes)


def _host_amount(tree: Tree, at: int, resource: str, *, total: Vector) -> Object:
    """Cores or memory, which every pod asks for."""
    r = tree.resources.index(resource)
    whole = total[r] / unit(resource) if at == ROOT else _floor(tree, at, resource)
    own = whole - sum(_floor(tree, child, resource) for child in tree.branches[at].children)
    ceiling, lend = _limit(tree, at, resource), _lent(tree, at, resource)
    suffix = "Gi" * (resource == "memory")
    found = _amount(own, None if ceiling is None else ceiling - whole, lend, leaf=_is_leaf(tree, at), suffix=suffix)
    return {"name": resource, **found}


def _device_amount(tree: Tree, at: int, model: str, parts: Sequence[Mapping[str, int]]) -> Object:
    """Devices of one model: beyond those of its parts, up to which limit, and how many it lends."""
    whole, every = parts[at][model], sum(parts[at].values())
    own = whole - sum(parts[child][model] for child in tree.branches[at].children)
    share = whole / every if every else parts[ROOT][model] / sum(parts[ROOT].values())
    typed, general = _limit(tree, at, f"{ANY_DEVICE}/{model}"), _limit(tree, at, ANY_DEVICE)
    above = [typed - whole] if typed is not None else []
    above += [round((general - every) * share)] if general is not None else []
    lent, lends = _lent(tree, at, f"{ANY_DEVICE}/{model}"), _lent(tree, at, ANY_DEVICE)
    lend = lent if lent is not None else round(lends * share) if lends is not None else None
    return _amount(own, min(above, default=None), lend, leaf=_is_leaf(tree, at))


def _is_leaf(tree: Tree, at: int) -> bool:
    return at != ROOT and not tree.branches[at].children


def _limit(tree: Tree, at: int, resource: str) -> float | None:
    """The most a branch may have, in a person's units; None without a limit."""
    ceiling = tree.branches[at].ceiling[tree.resources.index(resource)]
    return ceiling / unit(resource) if at != ROOT and ceiling < ENDLESS else None


def _lent(tree: Tree, at: int, resource: str) -> float | None:
    """What a branch lends when it is idle; None when all of it."""
    r = tree.resources.index(resource)
    branch = tree.branches[at]
    return (branch.floor[r] - branch.held[r]) / unit(resource) if branch.held[r] else None


def _amount(nominal: float, limit: float | None, lend: float | None, *, leaf: bool, suffix: str = "") -> Object:
    """A quota in Kueue's words, which admits no lending limit above a cluster queue's own quota."""
    found = {"nominalQuota": _quantity(nominal, suffix)}
    if limit is not None:
        found["borrowingLimit"] = _quantity(max(0.0, limit), suffix)
    if lend is not None:
        found["lendingLimit"] = _quantity(min(lend, nominal) if leaf else lend, suffix)
    return found


def _quantity(value: float, suffix: str) -> str:
    """A number as Kubernetes reads it: never with an exponent, which `1e+06Gi` would be refused for."""
    return f"{value:.3f}".rstrip("0").rstrip(".") + suffix


def _workers(device: Device | None, *, count: int, held: int, cores: int, memory_bytes: int, image: str) -> Object:
    cpus = max(1, math.floor(CPU_SHARE * cores))
    limits: Object = {"cpu": str(cpus), "memory": f"{max(1, math.floor(MEMORY_SHARE * memory_bytes / GIB) - 1)}Gi"}
    spec: Object = {}
    params: Object = {"num-cpus": str(cpus)}
    if device is not None:
        limits[_resource(device)] = str(held)
        params["num-gpus"] = str(held)
        labels = _labels(device)
        spec |= {"nodeSelector": labels} if labels else {}
    spec["containers"] = [_container("ray-worker", image, limits)]
    name = _name(f"{held}x-{device.name}" if device else f"{cores}-cores")
    return {
        "groupName": name,
        "replicas": count,
        "minReplicas": 0,
        "maxReplicas": count,
        "rayStartParams": params,
        "template": {"spec": spec},
    }


def _container(name: str, image: str, limits: Object) -> Object:
    secret = [{"secretRef": {"name": STORE_SECRET}}]
    return {"name": name, "image": image, "envFrom": secret, "resources": {"limits": limits, "requests": limits}}


def _resource(device: Device) -> str:
    """The extended resource of a vendor's device plugin."""
    if device.vendor not in DEVICE_RESOURCE:
        raise SpecError(
            f"no Kubernetes resource is known for devices of {device.vendor!r}",
            hint=f"known vendors: {', '.join(DEVICE_RESOURCE)}",
        )
    return DEVICE_RESOURCE[device.vendor]


def _device(node: Node) -> Device | None:
    return next((device for device in node.devices if device.vendor != HOST), None)


def _kind(node: Node) -> str:
    device = _device(node)
    return device.name if device else ""


def _per_node(node: Node) -> int:
    return sum(device.vendor != HOST for device in node.devices)


def _check_names(names: Sequence[str]) -> None:
    """Kubernetes allows less in a name than we do, so two of ours may become one."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_name(name), name)
        if other != name or names.count(name) > 1:
            which = "the cohort above all" if ABOVE_ALL in (other, name) else f"queue {other!r}"
            raise SpecError(
                f"queue {name!r} would be called {_name(name)!r} on Kubernetes, and so is {which}",
                hint="rename one: letters, digits and hyphens count, up to 63 of them",
            )


def _name(text: str) -> str:
    """A DNS label, as Kubernetes wants names."""
    kept = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in text.lower())
    return kept.strip("-")[:63].strip("-") or "queue"


def _object(
    version: str,
    kind: str,
    name: str,
    *,
    namespace: str = "",
    spec: Object | None = None,
    notes: Mapping[str, str] | None = None,
) -> Object:
    metadata: Object = {"name": name} | ({"namespace": namespace} if namespace else {})
    metadata |= {"annotations": dict(notes)} if notes else {}
    return {"apiVersion": version, "kind": kind, "metadata": metadata} | ({"spec": spec} if spec else {})


def _block(value: Any, depth: int) -> str:
    """A mapping or sequence in block style; what is empty, and every text, as JSON, which is YAML too."""
    pad = "  " * depth
    lines: list[str] = []
    items = value.items() if isinstance(value, dict) else [("", item) for item in value]
    for key, item in items:
        head = f"{pad}{key}:" if key else f"{pad}-"
        if isinstance(item, dict | list) and item:
            inner = _block(item, depth + 1)
            lines.append(f"{head}\n{inner}" if key else f"{head} {inner.lstrip()}")
        else:
            lines.append(f"{head} {json.dumps(item)}\n")
    return "".join(lines)
