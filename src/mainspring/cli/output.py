"""Drawing results: tables for people, JSON for programs; one place decides which."""

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """Print specs, tuples and mappings of them as one JSON document."""
    from mainspring.store import parse

    print(json.dumps(parse.to_dict(value), indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "", empty: str = "") -> None:
    """Print rows under columns; `empty` says what to do when there are none."""
    from rich.console import Console
    from rich.table import Table

    filled = [[str(cell) for cell in row] for row in rows]
    if not filled and empty:
        print(empty)
        return
    table = Table(*columns, title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for row in filled:
        table.add_row(*row)
    Console().print(table)


def size(count: float) -> str:
    """Bytes in the unit a person would choose: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def ago(moment_s: float | None) -> str:
    """How long ago a UTC moment was: `3 min`."""
    if moment_s is None:
        return ""
    seconds = max(0.0, time.time() - moment_s)
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} d"
