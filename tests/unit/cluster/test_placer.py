"""Placing single tasks: what is cached is what a fresh look would say, and nothing is ever given twice."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.cluster.schedule.fleet import build_fleet
from mainspring.cluster.schedule.placer import PLAIN, Placer, Policy
from mainspring.cluster.schedule.winners import FAILED
from mainspring.spec import Machine, Request
from mainspring.testing.traces import build_machines, build_requests

POLICIES = (PLAIN, Policy(steps=100, skew=0, small=0, lean=3), Policy(scarce=0, pack=0.1))
TASKS = build_requests(400, bound=0.2)


def start(nodes: int, policy: Policy = PLAIN) -> tuple[Placer, tuple[Request, ...]]:
    requests = tuple(dict.fromkeys(TASKS))
    return Placer(build_fleet(build_machines(nodes)), requests, counts=Counter(TASKS), policy=policy), requests


@st.composite
def histories(draw: st.DrawFn) -> list[int]:
    """Starts of tasks 0, 1, 2 ... with ends of earlier ones between them."""
    ops, live, number = [], [], 0
    for choice in draw(st.lists(st.integers(0, 99), min_size=1, max_size=150)):
        if choice < 40 and live:
            ops.append(-1 - live.pop(choice % len(live)))
        else:
            ops.append(number)
            live.append(number)
            number += 1
    return ops


@settings(max_examples=40, deadline=None)
@given(ops=histories(), policy=st.sampled_from(POLICIES), seed=st.integers(0, 9))
def test_a_remembered_score_gives_the_place_that_scoring_every_node_would(ops, policy, seed):
    (quick, requests), (thorough, _) = start(70, policy), start(70, policy)
    classes = np.random.default_rng(seed).integers(len(requests), size=len(ops))
    places = [(np.full(len(ops), FAILED), np.zeros(len(ops), np.int64)) for _ in range(2)]
    for op in ops:
        for placer, (nodes, devices) in zip((quick, thorough), places, strict=True):
            if placer is thorough:
                placer.board.ranks.seen[:] = FAILED
                placer.board.kind[:] = FAILED
            placer.replay(np.array([op]), classes=classes, nodes=nodes, devices=devices)
    assert (places[0][0] == places[1][0]).all()
    assert (places[0][1] == places[1][1]).all()


@settings(max_examples=40, deadline=None)
@given(ops=histories(), seed=st.integers(0, 9))
def test_no_node_gives_more_than_it_has_and_gets_all_of_it_back(ops, seed):
    placer, requests = start(4)
    classes = np.random.default_rng(seed).integers(len(requests), size=len(ops))
    nodes, devices = np.full(len(ops), FAILED), np.zeros(len(ops), np.int64)
    placer.replay(np.array(ops), classes=classes, nodes=nodes, devices=devices)
    total, free = placer.fleet.total, placer.fleet.free
    live = np.flatnonzero(nodes != FAILED)
    for n in range(4):
        here = [requests[classes[i]] for i in live if nodes[i] == n]
        assert free.cpu[n] == total.cpu[n] - sum(request.cpu_milli for request in here) >= 0
        assert free.memory[n] == total.memory[n] - sum(request.memory_mib for request in here) >= 0
        assert (total.devices[n] - free.devices[n]).sum() == sum(request.device_milli for request in here)
    assert (free.devices >= 0).all()
    placer.replay(-1 - live, classes=classes, nodes=nodes, devices=devices)
    assert all((left == had).all() for left, had in zip(free, total, strict=True))


def test_a_task_that_fits_nowhere_is_not_placed_and_changes_nothing():
    machine = Machine(name="a", cpu_milli=8000, memory_mib=1000, devices=2, model="A100", sick=(1,))
    requests = (
        Request(cpu_milli=1, devices=2),
        Request(cpu_milli=1, devices=1, models=("H100",)),
        Request(cpu_milli=9000),
        Request(cpu_milli=1, devices=1),
    )
    placer = Placer(build_fleet([machine]), requests, counts=Counter(requests), policy=PLAIN)
    nodes, devices = np.full(4, FAILED), np.zeros(4, np.int64)
    placer.replay(np.arange(4), classes=np.arange(4), nodes=nodes, devices=devices)
    assert nodes.tolist() == [FAILED, FAILED, FAILED, 0]
    assert devices[3] == 0b01
    assert placer.fleet.free.cpu[0] == 7999


def test_a_cluster_without_devices_places_tasks_by_cpu():
    machines = [Machine(name=f"n{i}", cpu_milli=4000, memory_mib=4096) for i in range(3)]
    requests = (Request(cpu_milli=3000), Request(cpu_milli=1000))
    placer = Placer(build_fleet(machines), requests, counts=Counter(requests), policy=PLAIN)
    nodes, devices = np.full(6, FAILED), np.zeros(6, np.int64)
    placer.replay(np.arange(6), classes=np.array([0, 1] * 3), nodes=nodes, devices=devices)
    assert (nodes != FAILED).all()
    assert placer.fleet.free.cpu.tolist() == [0, 0, 0]
