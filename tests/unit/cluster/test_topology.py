"""Gangs on a network: the smallest domain that holds them, whole slices, and ranks in cable order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.cluster.schedule.topology import Shape, arrange, build_topology, crossings, rank_nodes, spread_out
from mainspring.spec import Machine, SpecError

BLOCK, RACK, HOST = 1, 2, 3


def network(blocks: int = 2, racks: int = 3, hosts: int = 4):
    return build_topology(
        [
            Machine(name=f"{b}{r}{h}", cpu_milli=1, memory_mib=1, domain=(f"b{b}", f"r{r}"))
            for h in range(hosts)
            for r in range(racks)
            for b in range(blocks)
        ],
        ("block", "rack"),
    )


NETWORK = network()
SLOTS = st.lists(st.integers(0, 3), min_size=24, max_size=24).map(lambda found: np.array(found, np.int64))


def room(slots: np.ndarray, depth: int) -> np.ndarray:
    return np.bincount(NETWORK.domain[depth], weights=slots).astype(int)


@given(SLOTS, st.integers(1, 40), st.integers(0, 2))
def test_a_gang_gets_exactly_its_ranks_inside_the_deepest_domain_that_holds_it(slots, ranks, within):
    counts = arrange(NETWORK, slots, Shape(ranks=ranks, within=within))
    holds = [depth for depth in range(4) if room(slots, depth).max(initial=0) >= ranks]
    if not holds or holds[-1] < within:
        assert counts is None
        return
    assert counts.sum() == ranks
    assert (counts <= slots).all()
    assert np.count_nonzero(room(counts, holds[-1])) == 1


@given(SLOTS, st.integers(1, 40))
def test_ranks_in_order_leave_each_host_and_each_block_once(slots, ranks):
    counts = arrange(NETWORK, slots, Shape(ranks=ranks))
    if counts is None:
        return
    nodes = rank_nodes(NETWORK, counts)
    for depth in (BLOCK, RACK, HOST):
        used = len(np.unique(NETWORK.domain[depth][nodes]))
        assert crossings(NETWORK, nodes, depth) == (used if used > 1 else 0)


@given(SLOTS, st.integers(1, 10))
def test_slices_are_never_divided(slots, slices):
    counts = arrange(NETWORK, slots, Shape(ranks=3 * slices, segment=3, segment_depth=RACK))
    possible = (room(slots, RACK) // 3).sum()
    assert (counts is not None) == (possible >= slices)
    if counts is not None:
        assert counts.sum() == 3 * slices
        assert (counts <= slots).all()
        assert (room(counts, RACK) % 3 == 0).all()


def test_the_tightest_rack_of_the_fullest_block_is_taken_so_that_whole_ones_stay_whole():
    slots = np.ones(24, np.int64)
    busy = np.flatnonzero((NETWORK.domain[BLOCK] == 1) & (NETWORK.domain[RACK] == NETWORK.domain[RACK].max()))
    slots[busy[:2]] = 0
    counts = arrange(NETWORK, slots, Shape(ranks=2))
    assert set(np.flatnonzero(counts)) == set(busy[2:])


def test_spreading_uses_as_many_nodes_as_there_are():
    assert spread_out(np.array([5, 5, 5]), 6).tolist() == [2, 2, 2]
    assert spread_out(np.array([5, 1, 0]), 4).tolist() == [3, 1, 0]


def test_a_rack_of_the_same_name_in_another_block_is_another_rack():
    assert len(np.unique(NETWORK.domain[RACK])) == 6


def test_a_node_that_does_not_say_where_it_hangs_and_a_level_that_is_not_there_are_errors():
    with pytest.raises(SpecError, match="1 of 1 nodes do not state the 1 levels rack"):
        build_topology([Machine(name="a", cpu_milli=1, memory_mib=1)], ("rack",))
    with pytest.raises(SpecError, match="no level 'row'"):
        NETWORK.depth("row")
