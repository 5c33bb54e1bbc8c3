"""Measuring this machine, and plans that use what was measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mainspring.hardware import topology
from mainspring.hardware.probe import probe_node
from mainspring.spec import Calibration, Link, Settings
from mainspring.store import parse
from mainspring.testing.machines import build_cluster, build_device
from mainspring.train import calibrate
from mainspring.workspace import connect

DEVICE = build_device("probed")


def calibration_of(machine: str, probed: str, **changes: object) -> Calibration:
    found = Calibration(
        machine=machine,
        probed=probed,
        device=replace(DEVICE, name=probed, vendor="cpu", matmul_share=0.25),
        ranks=2,
        link=Link(name="measured", bytes_per_s=3e9, latency_s=5e-5),
    )
    return replace(found, **changes)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_machine_is_known_from_what_its_ranks_measure_together(tmp_path: Path) -> None:
    node = replace(probe_node(), cpu_cores=2)
    heard = calibrate.listen(2, node, scratch=tmp_path, turns=1)
    found = heard.exchanged
    assert {each.operation for each in found} == {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"}
    for operation in {each.operation for each in found}:
        mine = [each for each in found if each.operation == operation]
        assert [each.payload_bytes for each in mine] == list(calibrate.SIZES)
        assert mine[-1].seconds > mine[0].seconds > 0
    assert {each.share for each in heard.found} == {0.5}
    by_label = {(each.plan.mesh.label, each.plan.zero, max(each.plan.microbatches)): each for each in heard.stepped}
    replicas, sharded, often = (by_label[key].seconds for key in (("dp2", 0, 1), ("fsdp2", 3, 1), ("fsdp2", 3, 4)))
    assert often > 2 * sharded > 2 * replicas  # gathering eight small blocks is most of what such a step takes


def test_only_the_machine_and_device_that_were_measured_are_replaced() -> None:
    cluster = build_cluster((DEVICE, 2, 2))
    first = cluster.nodes[0].name
    mine = calibration_of(first, "probed")
    assert topology.calibrates(mine, cluster)
    assert not topology.calibrates(calibration_of("another", "probed"), cluster)
    assert not topology.calibrates(calibration_of(first, "since replaced"), cluster)
    found = topology.calibrated(cluster, mine)
    assert [node.devices[0].matmul_share for node in found.nodes] == [0.25, DEVICE.matmul_share]
    assert [node.link.name for node in found.nodes] == ["measured", "link"]
    assert found.link == cluster.link


def test_plans_use_the_newest_calibration_and_name_it(settings: Settings, tmp_path: Path) -> None:
    recipe = Path("examples/handbook/recipe.py").absolute()
    node = probe_node()
    with connect(settings=settings) as workspace:
        before = workspace.plan(recipe)
        slow = calibration_of(node.name, node.devices[0].name)
        slow = replace(slow, device=replace(node.devices[0], matmul_share=0.01))
        path = tmp_path / "calibration.json"
        path.write_text(parse.to_json(slow))
        artifact = workspace.store.publish("calibration", "here", path)
        after = workspace.plan(recipe)
        assert (before.calibrations, after.calibrations) == ((), (artifact.ref,))
        assert after.time.step_s > 3 * before.time.step_s
        assert f"measured by {artifact.ref}" in str(after)
        assert workspace.hardware().nodes[0].devices[0].matmul_share == 0.01
        assert [plan.calibrations for plan in workspace.menu(recipe)] == [(artifact.ref,)] * 2
        assert json.loads(parse.to_json(workspace.calibration(artifact)))["probed"] == node.devices[0].name
