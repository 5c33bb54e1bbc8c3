"""Plan and place chosen together: who gets which offer, who changes at a checkpoint, and what is never broken."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.cluster.schedule.bargain import Choice, settle
from mainspring.cluster.schedule.decide import decide
from mainspring.cluster.schedule.state import State, build_state
from mainspring.cluster.simulate.elastic import Work, play
from mainspring.spec import Aim, Ended, Gang, Machine, Offer, Queue, Quota, Request, Rules, Saved, Submitted

FAST, SLOW = "H100", "L4"


def cluster(*, aim: Aim = "goodput", queues: tuple[Queue, ...] = (Queue(name="a"),), nodes: int = 1) -> State:
    machines = [
        Machine(name=f"{model}-{n}", cpu_milli=64_000, memory_mib=1 << 19, devices=8, model=model)
        for model in (FAST, SLOW)
        for n in range(nodes)
    ]
    return build_state(machines, queues, rules=Rules(shield_ms=0, aim=aim))


def offer(model: str, ranks: int, speed: int, *, usd: int = 0) -> Offer:
    request = Request(devices=1, models=(model,))
    return Offer(request=request, ranks=ranks, speed=speed, plan=f"{ranks} {model}", milli_usd_per_hour=usd)


def job(name: str, *offers: Offer, **wishes) -> Gang:
    return Gang(id=name, queue=wishes.pop("queue", "a"), request=offers[0].request, menu=offers, **wishes)


def linear(model: str, speed: int) -> tuple[Offer, ...]:
    return tuple(offer(model, ranks, ranks * speed) for ranks in (1, 2, 4, 8))


def started(state: State, *gangs: Gang) -> tuple[State, dict[str, str]]:
    outcome = decide(state, [Submitted(gang=gang) for gang in gangs], now_ms=0)
    return outcome.state, {each.gang: each.plan for each in outcome.decisions if each.kind == "start"}


def test_alone_a_job_takes_all_that_serves_it():
    _, plans = started(cluster(), job("x", *linear(FAST, 10)))
    assert plans == {"x": "8 H100"}


def test_each_gets_the_kind_it_has_most_use_of():
    picky = (*linear(FAST, 100), *linear(SLOW, 10))
    easy = (*linear(FAST, 100), *linear(SLOW, 80))
    _, plans = started(cluster(), job("easy", *easy), job("picky", *picky))
    assert plans == {"picky": "8 H100", "easy": "8 L4"}


def test_two_alike_share_and_the_one_that_stays_grows_when_it_has_saved():
    state, plans = started(cluster(), job("x", *linear(FAST, 10)), job("y", *linear(FAST, 10)))
    assert sorted(plans) == ["x", "y"]
    state = decide(state, [Ended(gang="y")], now_ms=1000).state
    ranks = state.entries["x"].gang.ranks
    assert ranks < 8
    assert decide(state, [], now_ms=2000).decisions == ()
    outcome = decide(state, [Saved(gang="x")], now_ms=3000)
    assert [(each.kind, each.plan) for each in outcome.decisions] == [("evict", ""), ("start", "8 H100")]
    assert "grows at its checkpoint" in outcome.decisions[0].reason
    assert decide(outcome.state, [Saved(gang="x")], now_ms=4000).decisions == ()


def test_one_that_saves_gives_way_to_one_that_waits():
    state, _ = started(cluster(), job("x", *linear(FAST, 10)))
    outcome = decide(state, [Submitted(gang=job("y", *linear(FAST, 10)))], now_ms=1000)
    assert [each.kind for each in outcome.decisions] == ["wait"]
    outcome = decide(outcome.state, [Saved(gang="x")], now_ms=2000)
    assert {each.gang for each in outcome.decisions if each.kind == "start"} == {"x", "y"}
    assert outcome.state.entries["x"].gang.ranks < 8


def test_by_cost_the_cheapest_offer_that_is_free_is_taken():
    offers = (offer(FAST, 8, 800, usd=40_000), offer(SLOW, 2, 20, usd=500))
    assert started(cluster(aim="cost"), job("x", *offers))[1] == {"x": "2 L4"}
    assert started(cluster(), job("x", *offers))[1] == {"x": "8 H100"}


def test_a_queue_keeps_to_its_maximum_and_work_without_a_choice_comes_first():
    small = (Queue(name="a", quotas=(Quota(resource="devices", max=4),)), Queue(name="b"))
    state, plans = started(cluster(queues=small), job("x", *linear(FAST, 10)), job("y", *linear(FAST, 10), queue="b"))
    assert plans["x"] in ("1 H100", "2 H100", "4 H100")
    rigid = Gang(id="rigid", queue="a", ranks=8, request=Request(devices=1, models=(FAST,)))
    state, plans = started(cluster(), rigid, job("x", *linear(FAST, 10)))
    assert state.entries["rigid"].place is not None
    assert plans["rigid"] == ""


def test_offers_that_can_never_run_are_dropped_and_a_menu_of_nothing_else_is_refused():
    state, plans = started(cluster(), job("x", offer(FAST, 99, 1000), *linear(FAST, 10)))
    assert plans == {"x": "8 H100"}
    assert len(state.entries["x"].gang.menu) == 4
    outcome = decide(cluster(), [Submitted(gang=job("x", offer(FAST, 99, 1000), offer("B200", 1, 1)))], now_ms=0)
    assert [each.kind for each in outcome.decisions] == ["refuse"]
    assert "none of its 2 offers" in outcome.decisions[0].reason
    with pytest.raises(ValueError, match="at least 1"):
        offer(FAST, 1, 0)


def test_the_bargain_keeps_within_every_limit_and_finds_what_greed_misses():
    # By worth per unit the first would take the only limit; together the other two are worth more.
    menus = [[Choice(3.0, {0: 2.0})], [Choice(2.0, {0: 1.0})], [Choice(2.0, {0: 1.0})]]
    assert settle(menus, [2.0]) == (-1, 0, 0)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000))
def test_whatever_comes_no_device_is_given_twice_and_no_limit_broken(seed: int):
    draw = Random(seed)
    queues = (Queue(name="a", quotas=(Quota(resource="devices", min=4, max=12),)), Queue(name="b"))
    state, names = cluster(queues=queues, nodes=2), []
    for step in range(12):
        kind = draw.choice(("come", "come", "save", "end"))
        known = [name for name in names if name in state.entries]
        if kind == "come" or not known:
            names.append(f"g{step}")
            offers = [*linear(FAST, draw.randint(1, 9)), *linear(SLOW, draw.randint(1, 9))]
            gang = job(names[-1], *draw.sample(offers, draw.randint(1, 6)), queue=draw.choice("ab"))
            event = Submitted(gang=gang if draw.random() < 0.8 else replace(gang, menu=()))
        else:
            event = Saved(gang=draw.choice(known)) if kind == "save" else Ended(gang=draw.choice(known))
        again = decide(state, [event], now_ms=1000 * step)
        state, before = again.state, state
        assert decide(before, [event], now_ms=1000 * step).decisions == again.decisions
        free = state.fleet.free.devices
        assert (free >= 0).all()
        held = sum(each.held[2] for each in state.running())
        assert int(free.sum()) + held == 1000 * 32
        assert state.used[state.tree.position["a"]][2] <= 12_000
        assert set(state.elastic) == {name for name, each in state.entries.items() if each.gang.menu}


def test_in_virtual_time_all_work_is_done_and_together_sooner_than_apart():
    offers = (*linear(FAST, 10), *linear(SLOW, 4))
    works = [Work(at_ms=1000 * n, gang=job(f"x{n}", *offers), amount=40_000_000) for n in range(6)]
    together = play(cluster(), works, save_every_ms=60_000)
    most = offer(FAST, 8, 80)
    alone = [
        replace(work, gang=replace(work.gang, menu=(), request=most.request, ranks=8), offers=(most,)) for work in works
    ]
    apart = play(cluster(), alone, save_every_ms=60_000)
    assert together.makespan_ms < 0.8 * apart.makespan_ms
    assert apart.device_ms == pytest.approx(6 * 8 * 500_000, rel=0.01)
