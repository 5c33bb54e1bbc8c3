"""A simulation as one HTML page that needs nothing else: what is in use, and what is lost, as load grows.

Drawn as SVG in the page, readable without scripts; colours follow the reader's light or dark setting.
"""

from collections.abc import Iterator, Sequence
from html import escape

from mainspring.spec import LoadResult, Simulation

WIDTH, HEIGHT, LEFT, BELOW = 900, 260, 50, 40
STEPS = 5
STYLE = """
:root { color-scheme: light dark; font: 14px/1.5 system-ui, sans-serif; }
body { max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem 1rem .2rem 0; text-align: right; }
svg.chart { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 12px; }
svg text.mid { text-anchor: middle; } svg text.end { text-anchor: end; }
polyline { fill: none; stroke-width: 2; } .grid { stroke: currentColor; opacity: .15; }
.a { stroke: #4c8bf5; fill: #4c8bf5; } .b { stroke: #f5934c; fill: #f5934c; } .c { stroke: #58b368; fill: #58b368; }
.band { stroke: none; opacity: .25; } .ideal { stroke: currentColor; stroke-dasharray: 4 4; opacity: .6; }
.key { display: inline-block; width: .8em; height: .8em; }
"""
Points = Sequence[tuple[float, float]]


def page(found: Simulation) -> str:
    """The page of one simulation."""
    title = f"{found.nodes} nodes, {found.devices} devices, {found.tasks} tasks, policy {found.policy}"
    curve = found.curve
    used = [(at.load, at.allocation_percent) for at in curve]
    cpu = [(at.load, at.cpu_percent) for at in curve]
    memory = [(at.load, at.memory_percent) for at in curve]
    seen = [(at.load, 100 * at.turned_away / max(1.0, at.placed + at.turned_away)) for at in curve]
    waste = [(at.load, at.waste_percent) for at in curve]
    knobs = ", ".join(f"{knob.name} {knob.value:g}" for knob in found.knobs)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1><p>{escape(knobs)}. Load is what was asked for over what there is; the mean of "
        f"{len(curve[0].by_seed)} orders of arrival.</p>",
        *_table(found.loads),
        "<h2>Devices in use, %</h2><p>The band holds every order; the dashed line is all that was asked for.</p>",
        *_chart({"a": used}, most=100.0, band=_band(curve), ideal=[(0.0, 0.0), (1.0, 100.0), (curve[-1].load, 100.0)]),
        f"<h2>Beside them, %</h2><p>{_key('b', 'cores in use')} {_key('c', 'memory in use')}</p>",
        *_chart({"b": cpu, "c": memory}, most=100.0),
        f"<h2>Lost, %</h2><p>{_key('a', 'devices that are free and no typical task can use')} "
        f"{_key('b', 'tasks turned away')}</p>",
        *_chart({"a": waste, "b": seen}, most=max(1.0, *(y for _, y in (*waste, *seen)))),
        "</html>",
    ]
    return "\n".join(parts)


def _band(curve: Sequence[LoadResult]) -> Points:
    """Around the smallest and the largest of each load."""
    low = [(at.load, min(at.by_seed)) for at in curve]
    return [(at.load, max(at.by_seed)) for at in curve] + low[::-1]


def _table(loads: Sequence[LoadResult]) -> Iterator[str]:
    yield "<table><tr><th>load<th>devices in use<th>deviation<th>placed<th>turned away</tr>"
    for at in loads:
        cells = (f"{at.load:g}", f"{at.allocation_percent:.2f} %", f"{at.deviation:.2f}", f"{at.placed:.0f}")
        yield "<tr>" + "".join(f"<td>{cell}" for cell in (*cells, f"{at.turned_away:.0f}")) + "</tr>"
    yield "</table>"


def _chart(lines: dict[str, Points], *, most: float, band: Points = (), ideal: Points = ()) -> Iterator[str]:
    """Lines over load; the axis ends at `most`."""
    end = max(x for points in lines.values() for x, _ in points)

    def at(points: Points) -> str:
        return " ".join(f"{LEFT + WIDTH * x / end:.1f},{HEIGHT * (1 - y / most) + 8:.1f}" for x, y in points)

    yield f'<svg class="chart" viewBox="0 0 {LEFT + WIDTH + 20} {HEIGHT + BELOW}" role="img" aria-label="by load">'
    for step in range(STEPS + 1):
        y = HEIGHT * (1 - step / STEPS) + 8
        yield f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{most * step / STEPS:.3g}</text>'
        x = LEFT + WIDTH * step / STEPS
        yield f'<text class="mid" x="{x:.1f}" y="{HEIGHT + 26}">{end * step / STEPS:.3g}</text>'
    if band:
        yield f'<polygon class="a band" points="{at(band)}"/>'
    if ideal:
        yield f'<polyline class="ideal" points="{at(ideal)}"/>'
    for name, points in lines.items():
        yield f'<polyline class="{name}" style="fill:none" points="{at(points)}"/>'
    yield "</svg>"


def _key(name: str, word: str) -> str:
    return f'<svg class="key" viewBox="0 0 10 10"><rect class="{name}" width="10" height="10"/></svg> {word}'
