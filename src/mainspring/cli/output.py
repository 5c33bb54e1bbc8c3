"""Drawing results: tables for people, JSON for programs; one place decides which.

A table is never folded into unreadable scraps. Through a pipe every row is one line of its natural width, without
colour. On a terminal that is too narrow the columns named in `drop` go first, then the last column wraps at words.
"""

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import Any

GAP = "  "
PROSE_WIDTH = 24
WORD_WIDTH = 40


def print_json(value: Any) -> None:
    """Print specs, tuples and mappings of them as one JSON document."""
    from mainspring.store import parse

    print(json.dumps(parse.to_dict(value), indent=2, ensure_ascii=False))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str = "",
    empty: str = "",
    drop: Sequence[str] = (),
) -> None:
    """Print rows under columns; `empty` is said instead when there are none, `drop` is what a narrow terminal loses."""
    cells = [[" ".join(str(cell).split()) for cell in row] for row in rows]
    if not cells and empty:
        print(empty)
        return
    if title:
        print(title)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else sys.maxsize
    bold = terminal and "NO_COLOR" not in os.environ  # noqa: TID251 a convention of terminals, not a setting of ours
    for number, line in enumerate(table_lines(columns, cells, width=width, drop=drop)):
        print(f"\x1b[1m{line}\x1b[0m" if bold and number == 0 else line)


def table_lines(
    columns: Sequence[str], cells: Sequence[Sequence[str]], *, width: int, drop: Sequence[str] = ()
) -> list[str]:
    """The table as lines of at most `width` cells, if its fixed columns leave room for the last."""
    from rich.cells import cell_len

    shown = list(range(len(columns)))
    words = max((cell_len(word) for row in cells for word in row[-1].split()), default=0)
    wide = [max(map(cell_len, [name, *(row[i] for row in cells)])) for i, name in enumerate(columns)]

    def room() -> int:
        """What the fixed columns leave to the last."""
        return width - sum(wide[i] + len(GAP) for i in shown[:-1])

    for name in drop:
        if room() < min(wide[-1], max(PROSE_WIDTH, min(words, WORD_WIDTH))):
            shown.remove(columns.index(name))
    last = max(room(), PROSE_WIDTH)
    lines = []
    for row in [list(columns), *cells]:
        fixed = GAP.join(row[i] + " " * (wide[i] - cell_len(row[i])) for i in shown[:-1])
        prose = textwrap.wrap(row[-1], last, break_on_hyphens=False) or [""]
        lines.append(GAP.join(filter(None, (fixed, prose[0]))).rstrip())
        indent = " " * cell_len(fixed + GAP) if fixed else ""
        lines += [indent + more for more in prose[1:]]
    return lines


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
