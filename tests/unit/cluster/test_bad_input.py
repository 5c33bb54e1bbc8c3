"""What people and machines get wrong: a clear answer each time, and nothing is left waiting for what cannot come."""

import pytest

from mainspring.cluster.placement import Capacity
from mainspring.cluster.queue import QueueState, admit
from mainspring.cluster.schedule.decide import decide
from mainspring.cluster.schedule.quota import build_tree, divide
from mainspring.cluster.schedule.state import State, build_state
from mainspring.spec import (
    Ended,
    Gang,
    Gathered,
    Job,
    Machine,
    NodeChanged,
    NotFound,
    Queue,
    Quota,
    Request,
    Resources,
    SpecError,
    Submitted,
)
from mainspring.store import Store
from mainspring.store.events import event_data

EIGHT = Machine(name="n", cpu_milli=64_000, memory_mib=1000, devices=8, model="H100")
HOUR = 3_600_000


def quota(name: str, parent: str = "", **stated: float) -> Queue:
    return Queue(name=name, parent=parent, quotas=(Quota(resource="devices", **stated),) if stated else ())


def cluster(*queues: Queue) -> State:
    return build_state([EIGHT], queues or (Queue(name="a"),))


def gang(name: str = "x", *, ranks: int = 1, models: tuple[str, ...] = (), queue: str = "a") -> Gang:
    return Gang(id=name, queue=queue, ranks=ranks, request=Request(devices=1, models=models))


@pytest.mark.parametrize(
    ("queues", "said"),
    [
        ((quota("a", "b"), quota("b", "c"), quota("c", "a")), "circle: a under b under c under a"),
        ((quota("a", "a"),), "circle: a under a"),
        ((quota("a", "orgg"), quota("org")), "'orgg', which does not exist"),
        ((quota("org", min=4), quota("a", "org", min=3), quota("b", "org", min=2)), "add up to 5, above its 4"),
        ((quota("a"), quota("a")), "stated twice"),
        ((Queue(name="a", quotas=(Quota(resource="devices/H1000"),)),), "no model of device of this cluster"),
        (
            (Queue(name="a", quotas=(Quota(resource="devices", min=2), Quota(resource="devices/H100", min=4))),),
            "a min of 2 devices, and minima of 4 of certain models",
        ),
        (
            (Queue(name="a", quotas=(Quota(resource="devices", max=2), Quota(resource="devices/H100", min=4))),),
            "a limit of 2 devices, and minima of 4",
        ),
    ],
)
def test_a_tree_that_contradicts_itself_is_refused(queues: tuple[Queue, ...], said: str):
    with pytest.raises(SpecError, match=said):
        build_tree(queues, ("H100",))


def test_what_is_guaranteed_of_a_model_is_guaranteed_of_any():
    typed = Queue(name="a", parent="org", quotas=(Quota(resource="devices/H100", min=4),))
    tree = build_tree((typed, Queue(name="org"), quota("b", min=4)), ("H100",))
    at = tree.resources.index("devices")
    assert [tree.branches[tree.position[name]].floor[at] for name in ("a", "org", "b")] == [4000, 4000, 4000]
    total = tuple(8000 for _ in tree.resources)
    shares = divide(tree, total, [total if not branch.children else (0,) * len(total) for branch in tree.branches])
    assert shares[tree.position["a"]][at] == 4000


def test_the_nearest_name_is_said_for_a_queue_and_a_model_that_do_not_exist():
    with pytest.raises(SpecError) as caught:
        build_tree((Queue(name="a", quotas=(Quota(resource="devices/H10"),)),), ("H100",))
    assert "devices/H100" in caught.value.hint
    (decision,) = decide(cluster(Queue(name="research")), [Submitted(gang=gang(queue="reserch"))], now_ms=0).decisions
    assert (decision.kind, decision.hint) == ("refuse", "nearest: research")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (gang(ranks=9), "the whole cluster (1 nodes) has no room for its 9 ranks"),
        (gang(models=("B200",)), "no node has a B200; there are H100"),
        (Gang(id="x", queue="a", request=Request(cpu_milli=65_000)), "has no room for its 1 ranks"),
        (Gang(id="x", queue="a", request=Request(devices=1), level="rack", binding="required"), "no level 'rack'"),
    ],
)
def test_a_gang_that_can_never_start_is_refused_at_once_with_the_reason(wanted: Gang, said: str):
    outcome = decide(cluster(), [Submitted(gang=wanted)], now_ms=0)
    (decision,) = outcome.decisions
    assert decision.kind == "refuse"
    assert said in decision.reason
    assert outcome.state.entries == {}


def test_a_job_larger_than_the_cluster_is_refused_by_admission_too():
    total = (Capacity(node="n", cpus=4),)
    decision = admit(QueueState(total=total, free=total), [Job(id="x", name="x", entry="m:f", ranks=9)])
    assert [held.reason for held in decision.refused] == [
        "job x needs 9 ranks of 1 cpu, the whole cluster (1 node) has room for 4"
    ]


@pytest.mark.parametrize("devices", [1.5, -1.0, float("nan"), float("inf")])
def test_a_share_of_more_than_one_device_is_no_share(devices: float):
    with pytest.raises(ValueError, match="devices"):
        Resources(devices=devices)
    with pytest.raises(ValueError, match="1 to 1000 thousandths, got 1500"):
        Request(devices=1, milli=1500)


def test_a_node_that_lies_about_its_devices_is_believed_in_nothing_that_cannot_be():
    for wrong in ({"devices": 63}, {"devices": 2, "model": ""}, {"sick": (8,)}, {"cpu_milli": -1}):
        with pytest.raises(ValueError, match="node n has"):
            Machine(**{"name": "n", "cpu_milli": 1, "memory_mib": 1, "devices": 8, "model": "H100", **wrong})
    with pytest.raises(SpecError, match="has 8 devices"):
        decide(cluster(), [NodeChanged(node="n", sick=(9,))], now_ms=0)
    with pytest.raises(NotFound, match="no node 'm'"):
        decide(cluster(), [NodeChanged(node="m")], now_ms=0)
    with pytest.raises(SpecError, match="2 nodes have 1 names"):
        build_state([EIGHT, EIGHT], (Queue(name="a"),))
    # It says that it has eight devices, and gives two.
    total, free = Capacity(node="n", cpus=64, devices=8), Capacity(node="n", cpus=64, devices=2)
    jobs = [Job(id=f"j{n}", name="j", entry="m:f", resources=Resources(devices=1)) for n in range(4)]
    assert len(admit(QueueState(total=(total,), free=(free,)), jobs).placed) == 2


def test_a_clock_that_goes_back_stands_still_and_one_that_leaps_ends_what_is_due():
    state = decide(cluster(), [Submitted(gang=gang(ranks=8))], now_ms=10 * HOUR).state
    state = decide(state, [Submitted(gang=gang("late"))], now_ms=0).state
    assert (state.now_ms, state.entries["late"].arrived_ms) == (10 * HOUR, 10 * HOUR)
    lease = Gathered(queue="a", gang=gang("big", ranks=8), until_ms=12 * HOUR)
    state = decide(state, [lease], now_ms=11 * HOUR).state
    assert decide(state, [], now_ms=0).state.leases[0].over is False
    leapt = decide(state, [], now_ms=10**15).state
    assert leapt.leases[0].over
    assert decide(leapt, [Ended(gang="big")], now_ms=5).state.leases == ()


def test_an_event_that_comes_twice_changes_nothing():
    state = decide(cluster(), [Submitted(gang=gang()), Submitted(gang=gang())], now_ms=0)
    assert [decision.kind for decision in state.decisions] == ["refuse", "start"]
    gone = decide(state.state, [Ended(gang="x"), Ended(gang="x")], now_ms=1)
    assert gone.state.entries == {}


def test_every_step_of_a_job_is_in_the_log_and_one_that_was_refused_is_not(store: Store):
    job = Job(id="x", name="x", entry="m:f")
    store.join("d", "c")
    record = store.enqueue(job, address="auto", cluster="c", driver="d")
    with pytest.raises(SpecError, match="is PENDING"):
        store.enqueue(job, address="auto", cluster="c", driver="d")
    assert store.advance(record, "FAILED", "no room")
    assert not store.advance(record, "RUNNING")
    told = [event_data(event)["state"] for event in store.events(kind="job.state", subject="x")]
    assert told == ["PENDING", "FAILED"]
