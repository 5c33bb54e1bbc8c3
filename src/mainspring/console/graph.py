"""A directed graph without cycles as a drawing of links: what lineage and flows look like.

Layers from top to bottom by longest path, order within a layer by a few barycentre sweeps, a bend in every layer that
a long edge passes (Sugiyama, Tagawa and Toda 1981), and each layer as near to its neighbours as its order allows
(isotonic regression, pool adjacent violators: Ayer et al. 1955). It is SVG made of real links, so that it can be
reached with a keyboard, follows the theme by itself and needs no script.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise

from mainspring.console.markup import Markup, tag

WIDTH, HEIGHT = 212, 54
GAP_X, GAP_Y = 22, 40
BEND = 14
SWEEPS = 6
LETTERS = 26


@dataclass(frozen=True, slots=True)
class Node:
    """A box: a title that leads to `href`, a line under it, and the tone of its edge."""

    id: str
    title: str
    note: str = ""
    href: str = ""
    note_href: str = ""
    tone: str = "off"
    current: bool = False


Item = str | tuple[str, str, int]
"""A node's id, or the bend of an edge in a layer."""


def draw(nodes: Sequence[Node], edges: Sequence[tuple[str, str]], *, label: str) -> Markup:
    """The graph, without edges between unknown nodes and without those that a longer way says already."""
    known = {node.id: node for node in nodes}
    edges = reduced({edge for edge in edges if edge[0] in known and edge[1] in known and edge[0] != edge[1]})
    depth = _depths(list(known), edges)
    layers, paths = _with_bends(depth, edges)
    _untangle(layers, paths)
    places = _places(layers, paths)
    width = max(x + _width(item) for item, (x, _) in places.items())
    height = len(layers) * (HEIGHT + GAP_Y) - GAP_Y
    lines = [tag("path", d=_curve([places[item] for item in path], path), class_="edge") for path in paths]
    boxes = [_box(known[item], *places[item]) for layer in layers for item in layer if isinstance(item, str)]
    drawing = tag(
        "svg",
        lines,
        boxes,
        viewBox=f"-2 -2 {width + 4:.0f} {height + 4}",
        width=f"{width + 4:.0f}",
        height=height + 4,
        role="group",
        aria_label=label,
    )
    return tag("div", drawing, class_="graph")


def reduced(edges: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The edges without which something would no longer be reached (transitive reduction)."""
    below: dict[str, set[str]] = {}
    for start, end in edges:
        below.setdefault(start, set()).add(end)
    order = TopologicalSorter(below).static_order()  # the ends of an edge come before its start
    reached: dict[str, set[str]] = {}
    for name in order:
        reached[name] = set().union(*({end} | reached[end] for end in below.get(name, ())))
    return sorted(
        (start, end)
        for start, ends in below.items()
        for end in ends
        if not any(end in reached[other] for other in ends if other != end)
    )


def _depths(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    above: dict[str, list[str]] = {name: [] for name in names}
    for start, end in edges:
        above[end].append(start)
    depth: dict[str, int] = {}
    for name in TopologicalSorter(above).static_order():
        depth[name] = max((depth[other] + 1 for other in above[name]), default=0)
    return depth


def _with_bends(
    depth: Mapping[str, int], edges: Sequence[tuple[str, str]]
) -> tuple[list[list[Item]], list[list[Item]]]:
    layers: list[list[Item]] = [[] for _ in range(max(depth.values()) + 1)]
    for name, layer in depth.items():
        layers[layer].append(name)
    paths: list[list[Item]] = []
    for start, end in edges:
        bends: list[Item] = [(start, end, layer) for layer in range(depth[start] + 1, depth[end])]
        for layer, bend in zip(range(depth[start] + 1, depth[end]), bends, strict=True):
            layers[layer].append(bend)
        paths.append([start, *bends, end])
    return layers, paths


def _untangle(layers: list[list[Item]], paths: Sequence[Sequence[Item]]) -> None:
    """Order each layer by the mean place of its neighbours, downwards and upwards in turn."""
    above, below = _neighbours(paths)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbours = above if down else below
        order = range(1, len(layers)) if down else range(len(layers) - 2, -1, -1)
        for index in order:
            beside = layers[index - 1 if down else index + 1]
            reference: dict[Item, float] = {item: place for place, item in enumerate(beside)}
            own = {item: place for place, item in enumerate(layers[index])}
            layers[index].sort(key=lambda item: _mean(neighbours.get(item, []), reference, own[item]))


def _mean(items: Sequence[Item], places: Mapping[Item, float], otherwise: float) -> float:
    found = [places[item] for item in items if item in places]
    return sum(found) / len(found) if found else otherwise


def _neighbours(paths: Sequence[Sequence[Item]]) -> tuple[dict[Item, list[Item]], dict[Item, list[Item]]]:
    """What stands above and what below each item."""
    above: dict[Item, list[Item]] = {}
    below: dict[Item, list[Item]] = {}
    for path in paths:
        for upper, lower in pairwise(path):
            above.setdefault(lower, []).append(upper)
            below.setdefault(upper, []).append(lower)
    return above, below


def _places(layers: Sequence[Sequence[Item]], paths: Sequence[Sequence[Item]]) -> dict[Item, tuple[float, float]]:
    """The upper left corner of every item: each layer moves to the mean of its neighbours, downwards and upwards."""
    above, below = _neighbours(paths)
    centres: dict[Item, float] = {}
    for layer in layers:
        centres.update(zip(layer, _packed([0.0] * len(layer), [_width(item) for item in layer]), strict=True))
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbours = above if down else below
        for layer in layers if down else reversed(layers):
            wanted = [_mean(neighbours.get(item, []), centres, centres[item]) for item in layer]
            centres.update(zip(layer, _packed(wanted, [_width(item) for item in layer]), strict=True))
    left = min(centres[item] - _width(item) / 2 for item in centres)
    return {
        item: (centres[item] - _width(item) / 2 - left, index * (HEIGHT + GAP_Y))
        for index, layer in enumerate(layers)
        for item in layer
    }


def _packed(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Centres as near to the wanted ones as their order and their widths allow, by least squares."""
    shifts = [0.0]
    for first, second in pairwise(widths):
        shifts.append(shifts[-1] + (first + second) / 2 + GAP_X)
    pools: list[tuple[float, int]] = []  # the mean of neighbours that would overlap, and how many they are
    for centre, shift in zip(wanted, shifts, strict=True):
        mean, members = centre - shift, 1
        while pools and pools[-1][0] >= mean:
            before, joined = pools.pop()
            mean = (before * joined + mean * members) / (joined + members)
            members += joined
        pools.append((mean, members))
    firm = [mean for mean, members in pools for _ in range(members)]
    return [mean + shift for mean, shift in zip(firm, shifts, strict=True)]


def _width(item: Item) -> int:
    return WIDTH if isinstance(item, str) else BEND


def _curve(points: Sequence[tuple[float, float]], path: Sequence[Item]) -> str:
    """From the bottom of the first box through the bends to the top of the last."""
    x, y = points[0][0] + WIDTH / 2, points[0][1] + HEIGHT
    drawn = [f"M{x:.1f} {y:.1f}"]
    for item, (left, top) in zip(path[1:], points[1:], strict=True):
        x2 = left + _width(item) / 2
        middle = (y + top) / 2
        drawn.append(f"C{x:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f} {top:.1f}")
        y = top
        if not isinstance(item, str):
            y = top + HEIGHT
            drawn.append(f"L{x2:.1f} {y:.1f}")
        x = x2
    return " ".join(drawn)


def _box(node: Node, x: float, y: float) -> Markup:
    title = tag("text", _short(node.title), x=14, y=23, class_="title")
    note = tag("text", _short(node.note), x=14, y=41, class_="note")
    frame = tag("rect", width=WIDTH, height=HEIGHT, rx=8)
    mark = tag("rect", width=4, height=HEIGHT - 20, x=0, y=10, rx=2, class_="mark")
    inner = [tag("title", f"{node.title} {node.note}".strip()), frame, mark, title]
    main = tag("a", inner, href=node.href) if node.href else tag("g", inner)
    under = tag("a", note, href=node.note_href, class_="under") if node.note_href else note
    kind = f"node {node.tone}{' current' if node.current else ''}"
    return tag("g", main, under, class_=kind, transform=f"translate({x:.1f} {y:.1f})")


def _short(text: str) -> str:
    """As much of the text as the box is wide, cut in the middle: both ends of a name tell it from others."""
    if len(text) <= LETTERS + 2:
        return text
    return f"{text[: LETTERS - 9]}\N{HORIZONTAL ELLIPSIS}{text[-9:]}"
