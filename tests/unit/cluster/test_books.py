"""The cluster at hand as its drivers wrote it down, read by somebody else."""

import time
from dataclasses import replace

import pytest

from mainspring.cluster.books import machines_of, scene_at_hand, write_machines
from mainspring.cluster.schedule.explain import explain
from mainspring.cluster.schedule.scene import open_scene
from mainspring.cluster.schedule.views import nodes_in, shares_in, waiting_in
from mainspring.hardware.topology import local_cluster
from mainspring.spec import (
    Eviction,
    Gang,
    Health,
    Job,
    Lease,
    Machine,
    NodeNote,
    Placement,
    Queue,
    QueueFile,
    Request,
    Scene,
    SpecError,
    Standing,
)
from mainspring.store import Store
from mainspring.testing.books import CLUSTER, DRIVER, fill_books

NODE = Machine(name="n", cpu_milli=8000, memory_mib=1000, devices=4, model="T4")


def at_hand(store: Store) -> Scene:
    return scene_at_hand(store, local_cluster, address="auto", quotas=QueueFile(queues=()))


def test_without_a_driver_it_is_this_machine_and_idle(store: Store) -> None:
    scene = at_hand(store)
    assert (scene.running, scene.gangs, scene.line) == ((), (), ())
    assert [machine.name for machine in scene.machines] == [node.name for node in local_cluster().nodes]


def test_who_runs_and_who_waits_is_read_from_the_books(store: Store) -> None:
    fill_books(store)
    scene = at_hand(store)
    state = open_scene(scene).state
    assert {each.gang.id for each in scene.running} == {"pretrain", "rerank", "notebook"}
    assert [each.gang for each in waiting_in(state)] == ["serve-chat", "ablation", "huge"]
    used = {share.queue: share.used for share in shares_in(state) if share.resource == "devices"}
    assert used == {"research": 24, "product": 9}


def test_what_no_scheduler_has_seen_is_in_line_and_says_so(store: Store) -> None:
    job = Job(id="left", name="left", entry="none:none", queue="sweeps")
    store.enqueue(job, address="auto")
    store.enqueue(replace(job, id="elsewhere"), address="ray://else:10001")
    (lined,) = at_hand(store).line
    assert (lined.gang.id, lined.reason) == ("left", "no scheduler runs; mainspring schedule starts one")
    state = open_scene(at_hand(store)).state
    assert explain(state, "left").unblocks == ("the scheduler's next look: there is room",)


def test_a_closed_node_keeps_who_is_on_it_and_gets_nobody_new(store: Store) -> None:
    fill_books(store)
    store.note_node(NodeNote(cluster=CLUSTER, node="node-5", closed=True))
    store.note_node(NodeNote(cluster=CLUSTER, node="node-3", closed=True, reason="repair"))
    scene = at_hand(store)
    found = {node.name: node for node in nodes_in(open_scene(scene).state, {})}
    assert (found["node-3"].open, found["node-3"].gangs) == (False, ("rerank",))
    waiting = Gang(id="w", queue="product", request=Request(devices=8))
    assert open_scene(replace(scene, gangs=(waiting,), line=())).state.entries["w"].place is None


def test_a_device_that_a_driver_found_sick_is_not_used(store: Store) -> None:
    fill_books(store)
    store.note_node(NodeNote(cluster=CLUSTER, node="node-5", sick=(0, 99)))
    found = {node.name: node for node in nodes_in(open_scene(at_hand(store)).state, {})}
    assert found["node-5"].sick == (0,)


def test_a_job_on_a_node_that_has_gone_holds_nothing(store: Store) -> None:
    fill_books(store)
    write_machines(store, CLUSTER, [replace(NODE, name=f"node-{n}", devices=8) for n in range(2)])
    assert at_hand(store).running == ()


def test_two_clusters_are_one_scene_and_each_job_stays_on_its_own(store: Store) -> None:
    fill_books(store)
    store.join("another", "beef0000beef0000")
    write_machines(store, "beef0000beef0000", [replace(NODE, name="node-0")])
    scene = at_hand(store)
    assert len({machine.name for machine in scene.machines}) == 7
    ablation = next(each.gang for each in scene.line if each.gang.id == "ablation")
    assert len(ablation.nodes) == 6
    assert all(name.endswith("@c0ffee00") for name in ablation.nodes)


def test_an_unhealthy_device_is_there_and_sick() -> None:
    cluster = local_cluster()
    device = replace(cluster.nodes[0].devices[0], vendor="nvidia", name="T4")
    ill = Health(device="T4", state="unhealthy", reasons=("ECC",))
    node = replace(cluster.nodes[0], devices=(device, device), health=(ill,))
    (machine,) = machines_of(replace(cluster, nodes=(node,)))
    assert (machine.devices, machine.model, machine.sick) == (2, "T4", (0, 1))


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        ({"nodes": ("m",)}, "no node of this cluster"),
        ({"gang": Gang(id="x", queue="a", request=Request(devices=5)), "nodes": ("n",)}, "hold 5 devices"),
        ({"nodes": ("n",), "devices": (0b11,)}, "needs 1 devices"),
        ({"nodes": ("n",), "devices": (0b10000000,)}, "needs 1 devices"),
    ],
)
def test_a_scene_that_contradicts_itself_is_refused(standing: dict[str, object], said: str) -> None:
    given = {"gang": Gang(id="x", queue="a", request=Request(devices=1)), **standing}
    with pytest.raises(SpecError, match=said):
        open_scene(Scene(machines=(NODE,), queues=(Queue(name="a"),), running=(Standing(**given),)))  # type: ignore[arg-type]


def test_a_gang_runs_where_it_is_said_to_and_since_when() -> None:
    standing = Standing(
        gang=Gang(id="x", queue="a", request=Request(devices=2)),
        nodes=("n",),
        devices=(0b1010,),
        ran_ms=7_200_000,
        saved_ms=600_000,
    )
    scene = Scene(machines=(NODE,), running=(standing,), now_ms=0)
    state = open_scene(scene).state
    entry = state.entries["x"]
    assert entry.place is not None
    assert [int(bits) for bits in entry.place.devices] == [0b1010]
    assert (state.now_ms - entry.started_ms, state.now_ms - entry.saved_ms) == (7_200_000, 600_000)
    with pytest.raises(SpecError, match="run twice"):
        open_scene(replace(scene, running=(standing, standing)))
    twin = replace(standing, gang=replace(standing.gang, id="y"))
    with pytest.raises(SpecError, match="taken already"):
        open_scene(replace(scene, running=(standing, twin)))


def test_who_has_to_leave_waits_in_line_and_his_successor_has_the_places_with_the_quotas_pooled_for_it(
    store: Store,
) -> None:
    fill_books(store)
    store.pool("huge", Lease(queue="research", until_s=time.time() + 60))
    seen = store.jobs_of(CLUSTER, address="")
    stop = Eviction(record=store.job("pretrain"), reason="stops: makes room for huge")
    placed = Placement(job_id="huge", nodes=("node-0", "node-1"))
    assert store.assign(CLUSTER, [placed], driver=DRIVER, beside=seen, evictions=[stop])
    scene = at_hand(store)
    assert {each.gang.id for each in scene.running} == {"huge", "rerank", "notebook"}
    said = {each.gang.id: each.reason for each in scene.line}
    assert said["pretrain"] == "is saving what it has; stops: makes room for huge"
    (pool,) = scene.pools
    assert (pool.gang, pool.queue, 0 < pool.left_ms <= 60_000) == ("huge", "research", True)
    held = {each.queue: each.used for each in shares_in(open_scene(scene).state) if each.resource == "devices"}
    assert held["gather:huge"] == 16
    assert store.advance(store.job("huge"), "CANCELLED", "stopped")
    assert at_hand(store).pools == ()
    with pytest.raises(SpecError, match="job huge is CANCELLED"):
        store.pool("huge", Lease(queue="research", until_s=time.time() + 60))


def test_what_a_job_would_lose_counts_from_when_it_last_saved(store: Store) -> None:
    fill_books(store)
    time.sleep(0.05)
    store.note_saved(store.job("rerank"))
    found = {each.gang.id: each for each in at_hand(store).running}
    assert 0 <= found["rerank"].saved_ms < 50 <= found["rerank"].ran_ms
    assert found["pretrain"].saved_ms == found["pretrain"].ran_ms
