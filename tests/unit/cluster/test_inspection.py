"""Nodes that promise more than they have, and devices that fall ill."""

from mainspring.cluster.engine import Member
from mainspring.cluster.inspection import lie_of, sick_notes, truthful
from mainspring.cluster.placement import Capacity
from mainspring.cluster.reconcile import displaced
from mainspring.hardware.census import Census
from mainspring.spec import Health, Job, JobRecord, NodeNote, Placement

WELL, ILL = Health(device="A100", state="healthy"), Health(device="A100", state="unhealthy", reasons=("3 errors",))


def member(devices: float) -> Member:
    return Member(id="r", address="a", capacity=Capacity(node="n", cpus=8, devices=devices), accelerator="GPU")


def test_a_node_has_what_its_driver_has_and_no_more_than_ray_was_given():
    two = Census(models=("A100", "A100"), health=(WELL, WELL))
    assert truthful(member(8), two).capacity == Capacity(node="n", cpus=8, devices=2, model="A100")
    assert truthful(member(1), two).capacity.devices == 1
    assert truthful(member(8), Census()).capacity.devices == 0
    assert truthful(member(8), None) == member(8)


def test_a_lie_is_told_with_both_numbers():
    assert lie_of(member(8), Census(models=("A100",))) == "node n promises 8 GPU, and its driver has 1"
    assert lie_of(member(1), Census(models=("A100", "A100"))) == ""
    assert lie_of(member(8), None) == ""


def test_a_device_that_falls_ill_is_noted_once_and_again_when_it_is_well():
    ill = {"n": Census(models=("A100", "A100"), health=(WELL, ILL))}
    (note,) = sick_notes("c", ill, ())
    assert note == NodeNote(cluster="c", node="n", sick=(1,), reason="3 errors")
    assert sick_notes("c", ill, (note,)) == ()
    well = {"n": Census(models=("A100", "A100"), health=(WELL, WELL))}
    assert sick_notes("c", well, (note,)) == (NodeNote(cluster="c", node="n"),)
    assert sick_notes("c", well, ()) == ()


def test_a_drain_keeps_its_reason_when_a_device_falls_ill():
    drained = NodeNote(cluster="c", node="n", closed=True, reason="new memory")
    (note,) = sick_notes("c", {"n": Census(models=("A100",), health=(ILL,))}, (drained,))
    assert note == NodeNote(cluster="c", node="n", closed=True, sick=(0,), reason="new memory")


def test_only_who_is_on_a_sick_device_or_a_closed_node_has_to_leave():
    placement = Placement(job_id="j", nodes=("n0", "n1"), devices=(0b01, 0b10))
    record = JobRecord(
        number=1,
        workspace="w",
        job=Job(id="j", name="j", entry="m:f"),
        address="a",
        cluster="c",
        driver="d",
        lasting=True,
        state="RUNNING",
        placement=placement,
    )
    assert displaced(record, [NodeNote(cluster="c", node="n1", sick=(0,)), NodeNote(cluster="c", node="n2")]) == (
        "",
        False,
    )
    ill = displaced(record, [NodeNote(cluster="c", node="n1", sick=(1,), reason="3 errors")])
    assert ill == ("device 1 of node n1 is unhealthy: 3 errors", True)
    assert displaced(record, [NodeNote(cluster="c", node="n0", closed=True)]) == ("node n0 is drained", False)
