"""What a Kubernetes shop gets: the same guarantees in Kueue's words, and a Ray cluster of the same nodes."""

import re

import pytest
import yaml

from mainspring.cluster.manifests import kuberay_objects, kueue_objects, yaml_of
from mainspring.hardware.topology import build_cluster
from mainspring.spec import ClusterFile, LinkEntry, NodeEntry, Queue, Quota, SpecError

NODES = (NodeEntry(device="H100-SXM5-80GB", devices=8, count=4), NodeEntry(device="A100-SXM4-80GB", devices=8, count=2))
LAB = build_cluster(ClusterFile(name="The Lab", nodes=NODES, link=LinkEntry(gigabytes_per_s=25)))
QUEUES = (
    Queue(name="org", quotas=(Quota(resource="devices", min=36),)),
    Queue(name="research", parent="org", weight=2, quotas=(Quota(resource="devices", min=24, max=40),)),
    Queue(
        name="product",
        parent="org",
        quotas=(
            Quota(resource="devices/A100-SXM4-80GB", min=4, lend=2),
            Quota(resource="devices", min=10, borrow=6),
            Quota(resource="memory", min=64),
        ),
    ),
)


def objects() -> dict[tuple[str, str], dict]:
    text = yaml_of(kueue_objects(QUEUES, LAB, namespace="ml"))
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text)}


def quota(found: dict, flavour: str) -> dict:
    groups = found["spec"]["resourceGroups"]
    return next(each["resources"][0] for group in groups for each in group["flavors"] if each["name"] == flavour)


def nominal(found: dict) -> dict[str, int]:
    return {name: int(quota(found, name)["nominalQuota"]) for name in ("h100-sxm5-80gb", "a100-sxm4-80gb")}


def test_the_tree_has_the_same_shape_and_every_pod_finds_its_resources_covered():
    found = objects()
    assert found["ClusterQueue", "research"]["spec"]["cohortName"] == "org"
    assert found["Cohort", "org"]["spec"]["parentName"] == "mainspring"
    assert found["LocalQueue", "product"] == {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "LocalQueue",
        "metadata": {"name": "product", "namespace": "ml"},
        "spec": {"clusterQueue": "product"},
    }
    for name in ("research", "product"):
        groups = found["ClusterQueue", name]["spec"]["resourceGroups"]
        assert [group["coveredResources"] for group in groups] == [["cpu", "memory"], ["nvidia.com/gpu"]]
    assert found["ClusterQueue", "research"]["spec"]["fairSharing"] == {"weight": "2"}


def test_nominal_quotas_add_up_to_the_cluster_and_guarantees_to_what_was_stated():
    found = objects()
    every = [each for (kind, _), each in found.items() if kind in ("Cohort", "ClusterQueue")]
    assert sum(nominal(each)["h100-sxm5-80gb"] for each in every) == 32
    assert sum(nominal(each)["a100-sxm4-80gb"] for each in every) == 16
    assert sum(nominal(found["ClusterQueue", "research"]).values()) == 24
    assert sum(nominal(found["ClusterQueue", "product"]).values()) == 10
    assert sum(nominal(found["Cohort", "org"]).values()) == 2
    assert nominal(found["ClusterQueue", "product"])["a100-sxm4-80gb"] >= 4


def test_limits_on_borrowing_and_lending_are_kept():
    found = objects()
    research = found["ClusterQueue", "research"]
    borrowed = [int(quota(research, name)["borrowingLimit"]) for name in ("h100-sxm5-80gb", "a100-sxm4-80gb")]
    assert sum(borrowed) == 40 - 24
    assert int(quota(found["ClusterQueue", "product"], "a100-sxm4-80gb")["lendingLimit"]) == 2
    assert "mainspring.dev/divided" in found["ClusterQueue", "research"]["metadata"]["annotations"]
    memory = found["ClusterQueue", "product"]["spec"]["resourceGroups"][0]["flavors"][0]["resources"][1]
    assert memory["nominalQuota"] == "64Gi"


def test_what_is_guaranteed_never_adds_up_to_more_of_a_model_than_there_is():
    typed = Queue(name="typed", quotas=(Quota(resource="devices/A100-SXM4-80GB", min=12, max=14),))
    any_ = Queue(name="any", quotas=(Quota(resource="devices", min=24, lend=23),))
    nested = Queue(name="nested", parent="any", quotas=(Quota(resource="devices", min=24, lend=20),))
    found = {
        (each["kind"], each["metadata"]["name"]): each
        for each in kueue_objects((typed, any_, nested), LAB, namespace="ml")
    }
    every = [each for (kind, _), each in found.items() if kind in ("Cohort", "ClusterQueue")]
    assert sum(nominal(each)["a100-sxm4-80gb"] for each in every) == 16
    assert nominal(found["ClusterQueue", "typed"]) == {"h100-sxm5-80gb": 0, "a100-sxm4-80gb": 12}
    assert sum(nominal(found["ClusterQueue", "nested"]).values()) == 24
    assert quota(found["ClusterQueue", "typed"], "a100-sxm4-80gb")["borrowingLimit"] == "2"
    for name in ("h100-sxm5-80gb", "a100-sxm4-80gb"):  # its webhook refuses a cluster queue that lends more than it has
        leaf = quota(found["ClusterQueue", "nested"], name)
        assert int(leaf["lendingLimit"]) <= int(leaf["nominalQuota"])


def test_no_quantity_has_an_exponent_and_halves_of_devices_are_not_made_up():
    nodes = (NodeEntry(device="H100-SXM5-80GB", devices=8, count=2000),)
    large = build_cluster(ClusterFile(name="large", nodes=nodes, link=LinkEntry(gigabytes_per_s=25)))
    halves = tuple(
        Queue(name=name, quotas=(Quota(resource="devices", min=1.5), Quota(resource="memory", min=1.5)))
        for name in "ab"
    )
    found = {
        each["metadata"]["name"]: each
        for each in kueue_objects(halves, large, namespace="ml")
        if each["kind"] != "LocalQueue"
    }
    amounts = [
        resource["nominalQuota"]
        for each in found.values()
        for group in each.get("spec", {}).get("resourceGroups", ())
        for flavour in group["flavors"]
        for resource in flavour["resources"]
    ]
    assert all(re.fullmatch(r"\d+(\.\d+)?(Gi)?", amount) for amount in amounts), amounts
    assert {"1.5Gi", "1023997Gi"} <= set(amounts)
    assert [quota(found[name], "h100-sxm5-80gb")["nominalQuota"] for name in "ab"] == ["1", "1"]


@pytest.mark.parametrize("names", [("team a", "team-a"), ("A", "a"), ("a" * 64, "a" * 65), ("mainspring", "b")])
def test_two_queues_that_would_have_one_name_on_kubernetes_are_refused(names: tuple[str, str]):
    with pytest.raises(SpecError, match="would be called"):
        kueue_objects(tuple(Queue(name=name) for name in names), LAB, namespace="ml")


@pytest.mark.parametrize(
    ("model", "labels"),
    [
        ("A100-SXM4-80GB", {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}),
        ("MI300X", {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"}),
        ("MI250", {}),  # nobody has said what its driver calls it: better any node than none
    ],
)
def test_a_flavour_is_bound_to_nodes_by_what_feature_discovery_calls_its_model(model: str, labels: dict[str, str]):
    nodes = (NodeEntry(device=model, devices=8),)
    cluster = build_cluster(ClusterFile(name="one", nodes=nodes, link=LinkEntry(gigabytes_per_s=25)))
    flavour, *_ = kueue_objects((Queue(name="a"),), cluster, namespace="ml")
    assert flavour.get("spec", {}).get("nodeLabels", {}) == labels


def test_a_quota_of_a_model_that_is_not_there_is_refused():
    with pytest.raises(SpecError, match="which is no model of device"):
        kueue_objects((Queue(name="a", quotas=(Quota(resource="devices/B200", min=1),)),), LAB, namespace="ml")
    with pytest.raises(SpecError, match="add up to 99"):
        kueue_objects((Queue(name="a", quotas=(Quota(resource="devices", min=99),)),), LAB, namespace="ml")


def test_a_ray_cluster_has_a_group_for_each_kind_of_node_and_the_scheduler_beside_its_head():
    (ray,) = yaml.safe_load_all(yaml_of(kuberay_objects(LAB, image="lab/mainspring:1", namespace="ml", ray="2.60.0")))
    assert ray["metadata"] == {"name": "the-lab", "namespace": "ml"}
    groups = {group["groupName"]: group for group in ray["spec"]["workerGroupSpecs"]}
    assert {name: group["replicas"] for name, group in groups.items()} == {
        "8x-a100-sxm4-80gb": 2,
        "8x-h100-sxm5-80gb": 4,
    }
    pod = groups["8x-h100-sxm5-80gb"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    # A pod of the whole node would never start: something of each is the kubelet's.
    node = next(node for node in LAB.nodes if node.devices[0].name == "H100-SXM5-80GB")
    assert 0.9 * node.cpu_cores <= int(pod["containers"][0]["resources"]["limits"]["cpu"]) < node.cpu_cores
    assert int(pod["containers"][0]["resources"]["limits"]["memory"][:-2]) < 0.91 * node.memory_bytes / 2**30
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    head = ray["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert head[1]["command"][-1] == "schedule"
