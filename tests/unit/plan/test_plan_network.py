"""Seconds of collectives against the formulas they come from."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.plan.network import COLLECTIVE_S, INNER_SHARE, OUTER_SHARE, Ring, exchange_s, gather_s, reduce_s
from mainspring.spec import Link

INNER = Link(name="inner", bytes_per_s=100e9, latency_s=5e-6)
OUTER = Link(name="outer", bytes_per_s=10e9, latency_s=2e-5)


def test_a_ring_on_one_node_takes_the_textbook_time() -> None:
    ring = Ring(ranks=8, per_node=8, nodes=1, inner=INNER, outer=None)
    expected = COLLECTIVE_S + 7 * 5e-6 + 8e9 * 7 / 8 / (100e9 * INNER_SHARE)
    assert gather_s(ring, 8e9) == pytest.approx(expected)
    assert reduce_s(ring, 8e9) == pytest.approx(2 * expected)


def test_ranks_on_one_node_share_the_way_out_through_all_their_ports() -> None:
    alone = Ring(ranks=2, per_node=1, nodes=2, inner=None, outer=OUTER)
    wide = Link(name="wide", bytes_per_s=1e12, latency_s=5e-6)
    eight = Ring(ranks=16, per_node=8, nodes=2, inner=wide, outer=OUTER)
    assert gather_s(alone, 80e9) == pytest.approx(COLLECTIVE_S + 2e-5 + 40e9 / (10e9 * OUTER_SHARE))
    assert gather_s(eight, 80e9) == pytest.approx(gather_s(alone, 80e9) / 8, rel=0.01)


def test_one_rank_has_nothing_to_send() -> None:
    assert gather_s(Ring(ranks=1, per_node=1, nodes=1, inner=None, outer=None), 1e9) == 0


def test_an_exchange_sends_each_rank_its_part_only() -> None:
    ring = Ring(ranks=8, per_node=8, nodes=1, inner=INNER, outer=None)
    assert exchange_s(ring, 8e9) == pytest.approx(COLLECTIVE_S + 7e9 / (100e9 * INNER_SHARE))
    assert exchange_s(ring, 8e9) < gather_s(ring, 8 * 8e9)


@settings(deadline=None)
@given(
    ranks=st.integers(2, 64),
    data=st.floats(1, 1e12),
    faster=st.floats(1, 100),
    inner=st.floats(1e6, 1e12),
    outer=st.floats(1e6, 1e12),
)
def test_more_bandwidth_is_never_slower(ranks: int, data: float, faster: float, inner: float, outer: float) -> None:
    def seconds(scale: float) -> float:
        ring = Ring(
            ranks=2 * ranks,
            per_node=ranks,
            nodes=2,
            inner=Link(name="i", bytes_per_s=inner * scale, latency_s=1e-6),
            outer=Link(name="o", bytes_per_s=outer * scale, latency_s=1e-6),
        )
        return gather_s(ring, data)

    assert seconds(faster) <= seconds(1)
