"""Options of the live curves. ECharts draws them as SVG, where a colour may be a variable of the theme."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

MAX_POINTS = 800
SMOOTHED = 40
"""A line of fewer points is read as it is; a longer one is read through a mean over a part in `SMOOTHED` of it."""
DIGITS = 5
CURVES = (
    ("lr", "Learning rate", ""),
    ("tokens_per_s", "Throughput", "tokens/s"),
    ("mfu", "Model FLOPs utilisation", "%"),
    ("joules", "Energy", "Wh"),
)
"""Under the loss: the column of `metrics.jsonl`, its title and its unit."""
SCALE = {"mfu": 100.0, "joules": 1 / 3600}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: its name, its points `[step, value]`, its colour and how strongly it is drawn."""

    name: str
    points: list[list[float]]
    colour: str
    opacity: float = 1.0


def loss_options(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Loss over steps, with its mean where there are many, and the held-out loss where it was measured."""
    found = points(rows, "loss")
    smooth = len(found) >= 2 * SMOOTHED
    lines = [Line("loss", found, "var(--series-1)", opacity=0.35 if smooth else 1.0)]
    if smooth:
        lines.append(Line("loss, smoothed", smoothed(found), "var(--series-1)"))
    if held_out := points(rows, "held_out_loss"):
        lines.append(Line("held-out loss", held_out, "var(--series-2)"))
    return _options(lines)


def curve_options(rows: Sequence[Mapping[str, float]], column: str) -> dict[str, Any]:
    """One quantity over steps."""
    return _options([Line(column, points(rows, column), "var(--series-2)")])


def smoothed(found: Sequence[Sequence[float]]) -> list[list[float]]:
    """Each point as the mean of itself and those before it, over a part in `SMOOTHED` of the line."""
    window = max(1, len(found) // SMOOTHED)
    values = [value for _, value in found]
    means = (fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1))
    return [[step, float(f"{mean:.{DIGITS}g}")] for (step, _), mean in zip(found, means, strict=True)]


def points(rows: Sequence[Mapping[str, float]], column: str) -> list[list[float]]:
    """`[step, value]` of a column, at most about `MAX_POINTS` of them and always the last one."""
    scale = SCALE.get(column, 1.0)
    found = [
        [row["step"], float(f"{row[column] * scale:.{DIGITS}g}")] for row in rows if column in row and "step" in row
    ]
    stride = max(1, len(found) // MAX_POINTS)
    thinned = found[::stride]
    return thinned if not found or thinned[-1] == found[-1] else [*thinned, found[-1]]


def _options(lines: Sequence[Line]) -> dict[str, Any]:
    axis = {
        "axisLabel": {"color": "var(--soft)", "fontSize": 12, "hideOverlap": True},
        "axisLine": {"lineStyle": {"color": "var(--line)"}},
        "axisTick": {"show": False},
        "splitLine": {"lineStyle": {"color": "var(--line)", "opacity": 0.7}},
    }
    return {
        "animation": False,
        "grid": {
            "left": 8,
            "right": 16,
            "top": 34 if len(lines) > 1 else 10,
            "bottom": 4,
            "containLabel": True,
        },
        "legend": {
            "show": len(lines) > 1,
            "right": 0,
            "top": 0,
            "icon": "roundRect",
            "itemWidth": 18,
            "itemHeight": 3,
            "textStyle": {"color": "var(--soft)"},
        },
        "tooltip": {
            "trigger": "axis",
            "backgroundColor": "var(--panel)",
            "borderColor": "var(--line)",
            "textStyle": {"color": "var(--ink)", "fontSize": 13},
        },
        "xAxis": {
            "type": "value",
            "min": "dataMin",
            "max": "dataMax",
            "minInterval": 1,
            **axis,
            "splitLine": {"show": False},
        },
        "yAxis": {"type": "value", "scale": True, "splitNumber": 4, **axis},
        "series": [
            {
                "name": line.name,
                "type": "line",
                "data": line.points,
                "showSymbol": len(line.points) < 2,
                "symbolSize": 7,
                "lineStyle": {"width": 2 if line.opacity == 1 else 1, "color": line.colour, "opacity": line.opacity},
                "itemStyle": {"color": line.colour, "opacity": line.opacity},
                "emphasis": {"disabled": True},
            }
            for line in lines
        ],
    }
