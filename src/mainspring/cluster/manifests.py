"""A quota tree and a cluster as Kubernetes objects: Kueue's queues, and KubeRay's cluster with our scheduler beside it.

Kueue (`kueue.x-k8s.io/v1beta2`) counts quota by flavour, which here is a device model, and has no quota of "any model":
such a one is divided among the models in proportion to what the cluster has of each, and the object says so. What a
queue has beyond its parts becomes its nominal quota, what nobody is guaranteed that of a cohort above all; `borrow` and
`max` become borrowing limits, `lend` the lending limit, the weight fair sharing's.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mainspring.cluster.quotas import check_minima
from mainspring.cluster.schedule.quota import ENDLESS, ROOT, Tree, Vector, build_tree, unit
from mainspring.hardware import catalog
from mainspring.spec import ANY_DEVICE, Cluster, Device, Node, Queue, SpecError

HOST = "cpu"
DEVICE_RESOURCE = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "huawei": "huawei.com/Ascend910"}
MODEL_LABEL = {"nvidia": "nvidia.com/gpu.product", "amd": "amd.com/gpu.product-name"}
HOST_FLAVOUR = "hosts"
ABOVE_ALL = "mainspring"
DIVIDED = "mainspring.dev/divided"
KUEUE, RAY = "kueue.x-k8s.io/v1beta2", "ray.io/v1"
STORE_SECRET = "mainspring-store"
HEAD_CPU, HEAD_MEMORY = "4", "16Gi"
GIB = 1 << 30

Object = dict[str, Any]


def kueue_objects(queues: Sequence[Queue], cluster: Cluster, *, namespace: str) -> tuple[Object, ...]:
    """Flavours, cohorts, cluster queues and local queues of a quota tree. Raises `SpecError` as `fair_shares` does."""
    models = _models(cluster)
    tree = build_tree(queues, sorted(models))
    total = check_minima(tree, cluster)
    flavours = [_flavour(device) for device in models.values()]
    flavours.append(_object(KUEUE, "ResourceFlavor", HOST_FLAVOUR))
    have = Counter(device.name for node in cluster.nodes for device in node.devices if device.vendor != HOST)
    below = [_nominal(tree, at, have) for at in range(1, len(tree.branches))]
    # What nobody is guaranteed is the topmost cohort's, for everybody to borrow.
    above = {model: max(0, have[model] - sum(each[model] for each in below)) for model in have}
    ours = [
        _queue(tree, at, nominal, models=models, have=have, total=total) for at, nominal in enumerate((above, *below))
    ]
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
    label = MODEL_LABEL.get(device.vendor)
    spec = {"nodeLabels": {label: _product(device)}} if label else {}
    return _object(KUEUE, "ResourceFlavor", _name(device.name), spec=spec)


def _product(device: Device) -> str:
    """The model as the vendor's feature discovery labels nodes: what its driver reports, with hyphens."""
    matches = catalog.find_entry(device.name).matches if device.name in catalog.devices() else ()
    return (matches[0] if matches else device.name).replace(" ", "-")


def _nominal(tree: Tree, at: int, have: Mapping[str, int]) -> dict[str, int]:
    """What a branch has of each model beyond its parts; of what is stated for any, in whole devices that add up."""
    branch = tree.branches[at]

    def own(resource: str) -> float:
        r = tree.resources.index(resource)
        return (branch.floor[r] - sum(tree.branches[child].floor[r] for child in branch.children)) / unit(resource)

    typed = {model: round(own(f"{ANY_DEVICE}/{model}")) for model in have}
    left, total = max(0.0, own(ANY_DEVICE) - sum(typed.values())), sum(have.values())
    found: dict[str, int] = {}
    counted, given = 0, 0
    for model in sorted(have):
        counted += have[model]
        part = round(left * counted / total) - given
        given += part
        found[model] = typed[model] + part
    return found


def _queue(
    tree: Tree,
    at: int,
    nominal: Mapping[str, int],
    *,
    models: Mapping[str, Device],
    have: Mapping[str, int],
    total: Vector,
) -> Object:
    """A branch of the tree; the root is the cohort above all."""
    branch = tree.branches[at]
    floor = total if at == ROOT else branch.floor
    own = [amount - sum(tree.branches[child].floor[r] for child in branch.children) for r, amount in enumerate(floor)]
    amounts = {resource: own[r] / unit(resource) for r, resource in enumerate(tree.resources)}
    limits: dict[str, float] = {}
    lends: dict[str, float] = {}
    for r, resource in enumerate(tree.resources):
        if at != ROOT and branch.ceiling[r] < ENDLESS:
            limits[resource] = (branch.ceiling[r] - branch.floor[r]) / unit(resource)
        if branch.held[r]:
            lends[resource] = (branch.floor[r] - branch.held[r]) / unit(resource)
    groups = [_hosts(amounts, limits, lends)]
    flavours = {model: _amount(nominal[model], _of(limits, model, have), _of(lends, model, have)) for model in models}
    for resource in sorted({_resource(device) for device in models.values()}):
        mine = [
            {"name": _name(model), "resources": [{"name": resource, **flavours[model]}]}
            for model, device in sorted(models.items())
            if _resource(device) == resource
        ]
        groups.append({"coveredResources": [resource], "flavors": mine})
    leaf = at != ROOT and not branch.children
    spec: Object = {}
    if at != ROOT:
        spec["cohortName" if leaf else "parentName"] = _name(tree.branches[branch.parent].name or ABOVE_ALL)
    if leaf:
        spec |= {"namespaceSelector": {}, "preemption": {"reclaimWithinCohort": "Any"}}
    spec |= {"resourceGroups": groups, "fairSharing": {"weight": str(branch.weight)}}
    divided = at != ROOT and len(models) > 1 and (amounts[ANY_DEVICE] or ANY_DEVICE in limits)
    notes = {DIVIDED: "a quota of any device is divided among the models"} if divided else {}
    return _object(KUEUE, "ClusterQueue" if leaf else "Cohort", _name(branch.name or ABOVE_ALL), spec=spec, notes=notes)


def _hosts(amounts: Mapping[str, float], limits: Mapping[str, float], lends: Mapping[str, float]) -> Object:
    """Cores and memory, which every pod asks for."""
    resources = [
        {"name": name, **_amount(amounts[name], limits.get(name), lends.get(name), suffix="Gi" * (name == "memory"))}
        for name in ("cpu", "memory")
    ]
    flavours = [{"name": HOST_FLAVOUR, "resources": resources}]
    return {"coveredResources": ["cpu", "memory"], "flavors": flavours}


def _of(stated: Mapping[str, float], model: str, have: Mapping[str, int]) -> float | None:
    """What is stated for a model, or its part of what is stated for any."""
    own = stated.get(f"{ANY_DEVICE}/{model}")
    if own is None and ANY_DEVICE in stated:
        return round(stated[ANY_DEVICE] * have[model] / sum(have.values()))
    return own


def _amount(nominal: float, limit: float | None, lend: float | None, *, suffix: str = "") -> Object:
    found = {"nominalQuota": f"{nominal:g}{suffix}"}
    found |= {"borrowingLimit": f"{limit:g}{suffix}"} if limit is not None else {}
    return found | ({"lendingLimit": f"{lend:g}{suffix}"} if lend is not None else {})


def _workers(device: Device | None, *, count: int, held: int, cores: int, memory_bytes: int, image: str) -> Object:
    limits: Object = {"cpu": str(cores), "memory": f"{memory_bytes // GIB}Gi"}
    spec: Object = {}
    params: Object = {"num-cpus": str(cores)}
    if device is not None:
        limits[_resource(device)] = str(held)
        params["num-gpus"] = str(held)
        label = MODEL_LABEL.get(device.vendor)
        spec |= {"nodeSelector": {label: _product(device)}} if label else {}
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
