"""The drawing of lineage and flows: what is reachable stays reachable, boxes never overlap, every name is escaped."""

import re

from hypothesis import given
from hypothesis import strategies as st

from mainspring.console.graph import HEIGHT, WIDTH, Node, draw, reduced

NUMBERS = st.integers(0, 9)
EDGES = st.sets(
    st.tuples(NUMBERS, NUMBERS).filter(lambda pair: pair[0] < pair[1]).map(lambda pair: (f"n{pair[0]}", f"n{pair[1]}")),
    max_size=25,
)


def reachable(edges: set[tuple[str, str]] | list[tuple[str, str]]) -> set[tuple[str, str]]:
    found = set(edges)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return found


@given(EDGES)
def test_leaving_edges_out_loses_no_way_and_keeps_none_that_is_implied(edges: set[tuple[str, str]]) -> None:
    kept = reduced(edges)
    assert reachable(kept) == reachable(edges)
    for edge in kept:
        assert edge not in reachable([other for other in kept if other != edge])


@given(EDGES)
def test_boxes_never_overlap_and_edges_point_down(edges: set[tuple[str, str]]) -> None:
    nodes = [Node(id=f"n{number}", title=f"n{number}") for number in range(10)]
    drawing = draw(nodes, list(edges), label="any")
    found = re.findall(r'translate\(([-\d.]+) ([-\d.]+)\)"><g><title>(n\d)', drawing)
    places = {name: (float(x), float(y)) for x, y, name in found}
    assert len(places) == 10
    for name, (x, y) in places.items():
        for other, (x2, y2) in places.items():
            assert name == other or abs(x - x2) >= WIDTH or abs(y - y2) >= HEIGHT, (name, other)
    assert all(places[start][1] < places[end][1] for start, end in edges)


def test_a_name_cannot_bring_markup_of_its_own() -> None:
    drawing = draw([Node(id="x", title="<script>alert(1)</script>", href='/a"onclick="b')], [], label="<b>")
    assert "<script>" not in drawing
    assert '"onclick="' not in drawing
    assert 'aria-label="&lt;b&gt;"' in drawing


def test_a_long_name_keeps_both_its_ends() -> None:
    drawing = draw([Node(id="x", title="model:a-very-long-name-that-does-not-fit@12")], [], label="x")
    shown = re.search(r'class="title">([^<]+)<', drawing)
    assert shown
    assert shown[1].startswith("model:a-very")
    assert shown[1].endswith("@12")
    assert len(shown[1]) <= 28
