"""Options of the live curves. ECharts draws them as SVG, where a colour may be a variable of the theme."""

from collections.abc import Mapping, Sequence
from typing import Any

MAX_POINTS = 800
MONO = "var(--mono)"
CURVES = (
    ("lr", "Learning rate", ""),
    ("tokens_per_s", "Tokens per second", ""),
    ("mfu", "Model FLOPs utilisation", "%"),
    ("joules", "Energy", "Wh"),
)
"""Under the loss: the column of `metrics.jsonl`, its title and its unit."""
SCALE = {"mfu": 100.0, "joules": 1 / 3600}


def loss_options(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Loss over steps, with the held-out loss where it was measured."""
    shown = [("loss", points(rows, "loss"))]
    if held_out := points(rows, "held_out_loss"):
        shown.append(("held-out loss", held_out))
    return _options(shown, unit="nats")


def curve_options(rows: Sequence[Mapping[str, float]], column: str, unit: str) -> dict[str, Any]:
    """One quantity over steps."""
    return _options([(column, points(rows, column))], unit=unit, colour="var(--series-2)")


def points(rows: Sequence[Mapping[str, float]], column: str) -> list[list[float]]:
    """`[step, value]` of a column, at most about `MAX_POINTS` of them and always the last one."""
    found = [[row["step"], row[column] * SCALE.get(column, 1.0)] for row in rows if column in row and "step" in row]
    stride = max(1, len(found) // MAX_POINTS)
    thinned = found[::stride]
    return thinned if not found or thinned[-1] == found[-1] else [*thinned, found[-1]]


def _options(
    shown: Sequence[tuple[str, list[list[float]]]], *, unit: str, colour: str = "var(--series-1)"
) -> dict[str, Any]:
    axis = {
        "axisLabel": {"color": "var(--soft)", "fontSize": 12},
        "axisLine": {"lineStyle": {"color": "var(--line)"}},
        "axisTick": {"show": False},
        "splitLine": {"lineStyle": {"color": "var(--line)", "opacity": 0.7}},
        "nameTextStyle": {"color": "var(--soft)", "fontSize": 12},
    }
    colours = (colour, "var(--series-2)", "var(--series-3)")
    return {
        "animation": False,
        "grid": {
            "left": 8,
            "right": 16,
            "top": 30 if len(shown) > 1 or unit else 14,
            "bottom": 4,
            "containLabel": True,
        },
        "legend": {"show": len(shown) > 1, "right": 0, "top": 0, "textStyle": {"color": "var(--soft)"}},
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
        "yAxis": {"type": "value", "scale": True, "splitNumber": 4, "name": unit, "nameLocation": "end", **axis},
        "series": [
            {
                "name": name,
                "type": "line",
                "data": data,
                "showSymbol": len(data) < 2,
                "symbolSize": 7,
                "lineStyle": {"width": 2, "color": colours[index]},
                "itemStyle": {"color": colours[index]},
                "emphasis": {"disabled": True},
            }
            for index, (name, data) in enumerate(shown)
        ],
    }
