"""Scenes of a shared cluster: each is decided at once, with the fewest victims and a reason for everybody."""

from dataclasses import replace
from itertools import combinations

import pytest

from mainspring.cluster.schedule.decide import Outcome, decide
from mainspring.cluster.schedule.gather import plan_gather
from mainspring.cluster.schedule.state import State, build_state
from mainspring.spec import (
    Decision,
    Ended,
    Gang,
    Gathered,
    Machine,
    NodeChanged,
    Queue,
    Quota,
    Request,
    Rules,
    Saved,
    SpecError,
    Submitted,
)
from mainspring.testing.situations import SITUATIONS, smallest_sets

HOUR = 3_600_000


def cluster(racks: int, hosts: int, *, devices: int = 8, model: str = "H100") -> list[Machine]:
    return [
        Machine(
            name=f"r{rack}h{host}",
            cpu_milli=64_000,
            memory_mib=512_000,
            devices=devices,
            model=model,
            domain=(f"b{rack // 4}", f"r{rack}"),
        )
        for rack in range(racks)
        for host in range(hosts)
    ]


def queue(name: str, least: float = 0, **limits) -> Queue:
    own = {key: limits.pop(key) for key in ("parent", "weight") if key in limits}
    return Queue(name=name, quotas=(Quota(resource="devices", min=least, **limits),), **own)


def start(machines: list[Machine], *queues: Queue, **rules: int) -> State:
    return build_state(machines, queues, levels=("block", "rack"), rules=Rules(**{"shield_ms": 0, **rules}))


def gang(name: str, where: str, ranks: int, devices: int, **wishes) -> Gang:
    milli = wishes.pop("milli", 1000)
    models = wishes.pop("models", ())
    request = Request(cpu_milli=100, devices=devices, milli=milli, models=models)
    return Gang(id=name, queue=where, ranks=ranks, request=request, **wishes)


def run(state: State, *gangs: Gang, now_ms: int = 0) -> State:
    outcome = decide(state, [Submitted(gang=each) for each in gangs], now_ms=now_ms)
    assert {d.gang for d in outcome.decisions if d.kind == "start"} == {each.id for each in gangs}
    return outcome.state


def submit(state: State, *gangs: Gang, now_ms: int = HOUR) -> Outcome:
    return decide(state, [Submitted(gang=each) for each in gangs], now_ms=now_ms)


def of(outcome: Outcome, kind: str) -> dict[str, Decision]:
    return {decision.gang: decision for decision in outcome.decisions if decision.kind == kind}


def loose(state: State) -> State:
    """The same, with nobody bound to the nodes he was put on."""
    for name, entry in state.entries.items():
        state.entries[name] = replace(entry, gang=replace(entry.gang, nodes=()))
    return state


def pinned(each: Gang, *nodes: str) -> Gang:
    return replace(each, nodes=nodes)


def test_victims_of_fair_sharing_are_chosen_in_one_clique_and_not_scattered_over_all():
    # kueue #10815: what is freed by fairness alone lies in several cliques, and topology then refuses the gang.
    state = start(cluster(4, 2), queue("a", 32), queue("b", 32))
    fillers = [pinned(gang(f"a{r}{h}", "a", 1, 8), f"r{r}h{h}") for r in range(4) for h in range(2)]
    state = run(state, *fillers)
    outcome = submit(state, gang("b", "b", 2, 8, level="rack", binding="required"))
    placed = of(outcome, "start")["b"].nodes
    assert len({name[:2] for name in placed}) == 1
    assert sorted(of(outcome, "evict")) == sorted(f"a{name[1]}{name[3]}" for name in placed)


def test_a_required_rack_is_cleared_by_moving_others_to_other_racks():
    # kueue #12478: enough is free in all, nowhere in one rack; nobody has to stop for good.
    state = start(cluster(3, 2), queue("a", 24), queue("b", 24))
    smalls = [pinned(gang(f"s{r}", "a", 1, 8), f"r{r}h0") for r in range(3)]
    state = loose(run(state, *smalls))
    outcome = submit(state, gang("b", "b", 2, 8, level="rack", binding="required"))
    (moved,) = of(outcome, "evict")
    assert len({name[:2] for name in of(outcome, "start")["b"].nodes}) == 1
    assert of(outcome, "start")[moved].nodes[0][:2] != of(outcome, "start")["b"].nodes[0][:2]
    assert outcome.state.entries[moved].place is not None


def test_eight_free_devices_on_four_nodes_do_not_block_a_job_that_needs_them_on_one():
    # kueue #5243: two devices free on each of four nodes; a job of priority needs eight on one node.
    state = start(cluster(1, 4), queue("a", 32))
    state = loose(run(state, *(pinned(gang(f"j{h}{k}", "a", 1, 2), f"r0h{h}") for h in range(4) for k in range(3))))
    outcome = submit(state, gang("big", "a", 1, 8, priority=10))
    assert len(set(of(outcome, "start")["big"].nodes)) == 1
    assert len(of(outcome, "evict")) == 3
    assert all(outcome.state.entries[name].place is not None for name in of(outcome, "evict"))


@pytest.mark.parametrize("thread", SITUATIONS)
def test_the_situations_of_others_are_solved_in_one_decision_with_the_fewest_victims(thread: str):
    state, wanted = SITUATIONS[thread]()
    outcome = submit(state, wanted)
    assert outcome.state.entries[wanted.id].place is not None
    assert tuple(sorted(of(outcome, "evict"))) in smallest_sets(state, wanted)


def test_no_smaller_set_of_victims_would_have_done():
    state = start(cluster(2, 2, devices=4), queue("a", 0), queue("b", 16))
    sizes = {"r0h0": (4,), "r0h1": (1, 3), "r1h0": (2, 2), "r1h1": (1, 1, 2)}
    fillers = [
        pinned(gang(f"{node}-{k}", "a", 1, size), node) for node, taken in sizes.items() for k, size in enumerate(taken)
    ]
    state = run(state, *fillers)
    want = gang("b", "b", 2, 2, level="rack", binding="required")
    outcome = submit(state, want)
    victims = of(outcome, "evict")

    def would_do(gone: tuple[str, ...]) -> bool:
        left = decide(state, [Ended(gang=name) for name in gone], now_ms=HOUR).state
        return want.id in of(submit(without_reclaim(left), want), "start")

    def without_reclaim(left: State) -> State:
        left = left.copy()
        left.rules = Rules(shield_ms=10 * HOUR)
        return left

    assert would_do(tuple(victims))
    smaller = [few for size in range(len(victims)) for few in combinations([f.id for f in fillers], size)]
    assert not any(would_do(few) for few in smaller)


def test_ten_of_any_type_of_which_four_a100():
    machines = cluster(2, 1, model="A100") + [
        Machine(name=f"t{n}", cpu_milli=64_000, memory_mib=512_000, devices=8, model="T4", domain=("b9", "r9"))
        for n in range(2)
    ]
    limits = (Quota(resource="devices", min=10, max=10), Quota(resource="devices/A100", min=4, max=4))
    state = start(machines, Queue(name="team", quotas=limits), queue("others"))
    state = run(state, gang("x", "team", 4, 1, models=("A100",)))
    assert (
        "may hold 4 devices/A100 and holds 4"
        in of(submit(state, gang("y", "team", 1, 1, models=("A100",))), "wait")["y"].reason
    )
    outcome = submit(state, gang("any", "team", 6, 1), gang("more", "team", 1, 1))
    assert set(of(outcome, "start")["any"].nodes) <= {"t0", "t1"}
    assert "may hold 10 devices and holds 10" in of(outcome, "wait")["more"].reason
    assert (
        "never hold more than 4" in of(submit(state, gang("z", "team", 5, 1, models=("A100",))), "refuse")["z"].reason
    )


def test_a_borrower_is_stopped_for_an_owner_and_never_takes_it_back():
    state = start(cluster(1, 1), queue("owner", 8), queue("guest"))
    state = run(state, gang("g", "guest", 1, 8))
    outcome = submit(state, gang("o", "owner", 1, 8))
    assert of(outcome, "evict")["g"].reason == "stops: makes room for o"
    assert "no room" in of(outcome, "wait")["g"].reason
    later = decide(outcome.state, [], now_ms=100 * HOUR)
    assert not of(later, "start")
    assert not of(later, "evict")
    assert "g" in of(decide(later.state, [Ended(gang="o")], now_ms=101 * HOUR), "start")


def test_who_has_only_just_started_is_left_alone_for_a_while():
    state = start(cluster(1, 1), queue("owner", 8), queue("guest"), shield_ms=60_000)
    state = run(state, gang("g", "guest", 1, 8))
    early = submit(state, gang("o", "owner", 1, 8), now_ms=30_000)
    assert not of(early, "evict")
    assert "g" in of(decide(early.state, [], now_ms=60_000), "evict")


def test_work_that_cannot_be_stopped_stays_within_the_minimum_of_its_queue():
    state = start(cluster(1, 1), queue("a", 4), queue("b", 4))
    state = run(state, gang("fixed", "a", 4, 1, preemptible=False))
    more = submit(state, gang("more", "a", 1, 1, preemptible=False), gang("soft", "a", 4, 1))
    assert "4 in such use" in of(more, "wait")["more"].reason
    assert "soft" in of(more, "start")
    outcome = submit(more.state, gang("b", "b", 4, 1))
    assert set(of(outcome, "evict")) == {"soft"}


def test_what_is_not_lent_stays_free_for_its_owner():
    state = start(cluster(1, 1), queue("owner", 8, lend=2), queue("guest"))
    outcome = submit(state, gang("g", "guest", 3, 1))
    assert "6 of it kept for others" in of(outcome, "wait")["g"].reason
    assert "h" in of(submit(state, gang("h", "guest", 2, 1)), "start")


def test_a_long_job_does_not_delay_what_was_promised_and_a_short_one_may_pass():
    state = start(cluster(1, 2), queue("a", 16))
    state = run(state, pinned(gang("first", "a", 1, 8, runtime_ms=HOUR, priority=9), "r0h0"))
    outcome = submit(
        state,
        gang("wide", "a", 2, 8, runtime_ms=HOUR, priority=3),
        gang("short", "a", 1, 8, runtime_ms=HOUR // 4),
        gang("long", "a", 1, 8, runtime_ms=2 * HOUR, priority=1),
        now_ms=HOUR // 2,
    )
    assert "expected in 1800 s" in of(outcome, "wait")["wide"].reason
    assert "promised to wide" in of(outcome, "wait")["long"].reason
    assert set(of(outcome, "start")) == {"short"}


def test_waiting_long_enough_outweighs_a_higher_priority():
    rules = {"ageing_ms": 60_000, "shield_ms": HOUR}
    state = start(cluster(1, 1), queue("a", 8), **rules)
    state = run(state, gang("now", "a", 1, 8, preemptible=False))
    state = submit(state, gang("old", "a", 1, 8), now_ms=0).state
    state = submit(state, gang("new", "a", 1, 8, priority=5), now_ms=400_000).state
    outcome = decide(state, [Ended(gang="now")], now_ms=400_000)
    assert set(of(outcome, "start")) == {"old"}


def test_a_sick_device_leaves_capacity_and_its_job_is_rebuilt_elsewhere():
    state = start(cluster(1, 2), queue("a", 16))
    state = run(state, gang("job", "a", 4, 1))
    node = state.fleet.names[state.entries["job"].place.nodes[0]]
    outcome = decide(state, [NodeChanged(node=node, sick=(0, 1, 2, 3, 4))], now_ms=HOUR)
    assert "lost device" in of(outcome, "evict")["job"].reason
    assert set(of(outcome, "start")["job"].nodes).isdisjoint({node})
    back = decide(outcome.state, [NodeChanged(node=node)], now_ms=HOUR)
    assert back.state.fleet.free.devices.sum() == 12_000


def test_a_closed_node_takes_nobody_until_it_is_open_again():
    state = start(cluster(1, 1), queue("a", 8))
    closed = decide(state, [NodeChanged(node="r0h0", open=False)], now_ms=0).state
    outcome = submit(closed, gang("job", "a", 1, 1))
    assert "no room" in of(outcome, "wait")["job"].reason
    assert "job" in of(decide(outcome.state, [NodeChanged(node="r0h0")], now_ms=HOUR), "start")


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (gang("x", "a", 5, 8), "has no room for its 5 ranks"),
        (gang("x", "a", 3, 8, level="rack", binding="required"), "within one rack"),
        (gang("x", "a", 1, 1, level="galaxy", binding="required"), "no level 'galaxy'"),
        (gang("x", "a", 1, 1, models=("B300",)), "no node has a B300; there are H100"),
        (gang("x", "b", 1, 1), "no queue 'b'"),
        (gang("x", "root", 1, 1), "queue 'root' is divided"),
    ],
)
def test_what_can_never_run_is_refused_with_the_reason_and_does_not_wait(wish, reason):
    state = start(cluster(2, 2), queue("root", 32), queue("a", 32, parent="root"))
    outcome = submit(state, wish)
    assert reason in of(outcome, "refuse")["x"].reason
    assert outcome.state.entries == {}


def test_a_name_is_taken_only_once_and_an_end_may_be_told_twice():
    state = run(start(cluster(1, 1), queue("a", 8)), gang("x", "a", 1, 1))
    assert "already known" in of(submit(state, gang("x", "a", 1, 1)), "refuse")["x"].reason
    ended = decide(state, [Ended(gang="x"), Ended(gang="x")], now_ms=1)
    assert ended.decisions == ()
    assert ended.state.entries == {}


def test_a_clock_that_jumps_back_stands_still():
    state = run(start(cluster(1, 1), queue("a", 8)), gang("x", "a", 1, 1), now_ms=HOUR)
    assert decide(state, [Saved(gang="x")], now_ms=5).state.now_ms == HOUR


def test_a_gather_is_planned_first_and_does_exactly_what_its_plan_said():
    state = start(cluster(2, 2), queue("org", 32), queue("a", 16, parent="org"), queue("b", 16, parent="org"))
    state = run(state, gang("a1", "a", 2, 8), gang("b1", "b", 1, 8), gang("b2", "b", 1, 8, preemptible=False))
    state = decide(state, [Saved(gang="a1")], now_ms=HOUR).state
    big = gang("base-model", "a", 3, 8)
    plan = plan_gather(state, "org", big, until_ms=10 * HOUR)
    assert {victim.gang for victim in plan.victims} == {"a1", "b1"}
    assert {victim.gang: victim.lost_ms for victim in plan.victims} == {"a1": 60_000, "b1": HOUR + 60_000}
    outcome = decide(state, [Gathered(queue="org", gang=big, until_ms=10 * HOUR)], now_ms=HOUR)
    assert of(outcome, "start")["base-model"].nodes == plan.nodes
    assert set(of(outcome, "evict")) == {"a1", "b1"}
    assert not set(of(decide(outcome.state, [], now_ms=2 * HOUR), "start"))
    back = decide(outcome.state, [Ended(gang="base-model")], now_ms=3 * HOUR)
    assert set(of(back, "start")) == {"a1", "b1"}
    assert back.state.tree == state.tree
    assert back.state.used == state.used


def test_a_lease_that_runs_out_gives_the_guarantees_back():
    state = start(cluster(1, 2), queue("org", 16), queue("a", 8, parent="org"), queue("b", 8, parent="org"))
    state = run(state, gang("a1", "a", 1, 8))
    big = gang("big", "b", 2, 8)
    state = decide(state, [Gathered(queue="org", gang=big, until_ms=HOUR)], now_ms=1000).state
    assert state.entries["big"].place is not None
    over = decide(state, [], now_ms=HOUR)
    assert set(of(over, "evict")) == {"big"}
    assert set(of(over, "start")) == {"a1"}


def test_a_gather_that_cannot_work_says_why():
    state = start(cluster(1, 2), queue("org", 16), queue("a", 16, parent="org"))
    state = run(state, gang("fixed", "a", 2, 8, preemptible=False))
    with pytest.raises(SpecError, match="does not make room for 1 ranks of big"):
        plan_gather(state, "org", gang("big", "a", 1, 8), until_ms=HOUR)
    with pytest.raises(SpecError, match=r"big can never start: the whole cluster \(2 nodes\) has no room"):
        plan_gather(state, "org", gang("big", "a", 3, 8), until_ms=HOUR)
    with pytest.raises(SpecError, match="no queue 'orc'"):
        plan_gather(state, "orc", gang("big", "a", 1, 8), until_ms=HOUR)


@pytest.mark.parametrize(
    ("queues", "complaint"),
    [
        ((queue("a", parent="b"), queue("b", parent="a")), "form a circle: a under b under a"),
        ((queue("a", parent="x"),), "hangs under 'x', which does not exist"),
        ((queue("a", 8), queue("b", 5, parent="a"), queue("c", 4, parent="a")), "add up to 9, above its 8"),
        ((Queue(name="a", quotas=(Quota(resource="devices/H10", min=1),)),), "no model of device"),
        ((Queue(name="a", quotas=(Quota(resource="gpus", min=1),)),), "no resource"),
        ((queue("a"), queue("a")), "'a' is stated twice"),
    ],
)
def test_a_tree_that_contradicts_itself_is_refused(queues, complaint):
    with pytest.raises(SpecError, match=complaint):
        start(cluster(1, 1), *queues)


def test_a_quota_below_zero_or_above_its_max_is_refused():
    for wrong in ({"min": -1.0}, {"min": 4.0, "max": 3.0}, {"borrow": float("nan")}):
        with pytest.raises(ValueError, match="devices"):
            Quota(resource="devices", **wrong)
