"""Whatever happens to a shared cluster, in whatever order: its rules hold after every decision."""

import copy
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mainspring.cluster.schedule.decide import decide
from mainspring.cluster.schedule.waterfill import waterfill
from mainspring.testing.histories import check, check_replay, draw_events, draw_state

QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def live(draw: Random, *, nodes: int, steps: int, simple: bool) -> list[tuple]:
    state = draw_state(draw, nodes=nodes)
    found = []
    for events, outcome in draw_events(draw, state, steps=steps, simple=simple):
        found.append((state, events, outcome))
        state = outcome.state
    return found


@QUICK
@given(st.randoms(use_true_random=False))
def test_on_one_node_guarantees_shares_and_limits_hold_and_nothing_lies_idle(draw):
    history = live(draw, nodes=1, steps=10, simple=True)
    for before, events, outcome in history:
        check_replay(before, events, outcome)
        check(before, outcome, simple=True)
    assert len(history) == 10


@QUICK
@given(st.randoms(use_true_random=False))
def test_on_racks_with_failing_nodes_the_books_balance_and_room_is_used(draw):
    history = live(draw, nodes=4, steps=8, simple=False)
    for before, events, outcome in history:
        check_replay(before, events, outcome)
        check(before, outcome, simple=False)
    assert len(history) == 8


@pytest.mark.parametrize(("seed", "nodes"), [(20138, 1), (26168, 1), (20117, 4)])
def test_who_insists_on_a_model_and_who_is_more_urgent_do_not_displace_each_other_in_a_circle(seed, nodes):
    """Queues with urgent gangs that take any model, beside gangs that insist on the model they contend for."""
    for before, _, outcome in live(Random(seed), nodes=nodes, steps=12, simple=nodes == 1):
        check(before, outcome, simple=nodes == 1)
        stopped = [decision.gang for decision in outcome.decisions if decision.kind == "evict"]
        assert len(stopped) == len(set(stopped))


@pytest.mark.parametrize("seed", range(5))
def test_the_same_history_gives_the_same_decisions_and_leaves_what_it_was_given_alone(seed):
    once, again = (live(Random(seed), nodes=4, steps=25, simple=False) for _ in range(2))
    assert [outcome.decisions for _, _, outcome in once] == [outcome.decisions for _, _, outcome in again]
    for before, events, outcome in once:
        kept = copy.deepcopy(before)
        assert decide(before, events, now_ms=outcome.state.now_ms).decisions == outcome.decisions
        assert all(str(before.entries[k]) == str(kept.entries[k]) for k in kept.entries)
        assert before.used == kept.used
        assert (np.array(before.fleet.free.devices) == kept.fleet.free.devices).all()


Child = st.tuples(st.integers(0, 60), st.integers(0, 40), st.integers(1, 9))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 150), st.lists(Child, min_size=1, max_size=9))
def test_a_share_is_weighted_max_min_to_the_last_unit(total, children):
    wants, floors, weights = (list(column) for column in zip(*children, strict=True))
    shares = waterfill(total, wants=wants, floors=floors, weights=weights)
    assert sum(shares) == min(total, sum(wants))
    base = [min(want, floor) for want, floor in zip(wants, floors, strict=True)]
    assert all(share <= want for share, want in zip(shares, wants, strict=True))
    if sum(base) > total:
        assert all(abs(share - each * total / sum(base)) < 1 for share, each in zip(shares, base, strict=True))
        return
    assert all(share >= each for share, each in zip(shares, base, strict=True))
    level = [(share - each) / weight for share, each, weight in zip(shares, base, weights, strict=True)]
    hungry = [
        (share + 1 - each) / weight
        for share, want, each, weight in zip(shares, wants, base, weights, strict=True)
        if share < want
    ]
    # Whoever could use one more unit would, with it, stand at least as high as anybody stands without his last one.
    slack = max(1 / weight for weight in weights)
    assert not hungry or min(hungry) >= max(level) - slack
