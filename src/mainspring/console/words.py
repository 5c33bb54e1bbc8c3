"""Numbers as a person reads them, and the names of things; units as in the specs."""

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mainspring.console.markup import Markup, tag
from mainspring.spec import Artifact, RunRecord
from mainspring.spec.plan import readable_bytes as size

__all__ = [
    "ago",
    "at",
    "count",
    "duration",
    "energy",
    "link_to",
    "link_to_run",
    "meta",
    "run_seconds",
    "several",
    "share",
    "since",
    "size",
]

DOT = " \N{MIDDLE DOT} "


def ago(moment_s: float | None, *, now_s: float | None = None) -> str:
    """How long ago a UTC moment was: `3 min ago`."""
    if moment_s is None:
        return "never"
    seconds = max(0.0, (time.time() if now_s is None else now_s) - moment_s)
    return "just now" if seconds < 10 else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """The largest unit that leaves at least one of it."""
    if 0 < seconds < 0.95:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def at(moment_s: float | None) -> str:
    """A moment on this machine's clock, with the clock's zone."""
    return "" if moment_s is None else time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(moment_s)).strip()


def since(moment_s: float | None) -> Markup:
    """How long ago, with the moment itself for whoever points at it."""
    return tag("time", ago(moment_s), title=at(moment_s))


def count(number: float) -> str:
    """`4,096`, and from a million on `1.4 M`."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {letter}"
    return f"{number:,.0f}" if float(number).is_integer() or abs(number) >= 1000 else f"{number:.3g}"


def several(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def energy(joules: float) -> str:
    """Joules, or watt-hours once there are many."""
    return f"{joules / 3600:.3g} Wh" if joules >= 3600 else f"{joules:,.0f} J"


def share(part: float, of: float) -> str:
    """A part as a percentage; what is there is never said to be nothing."""
    percent = 100 * part / of if of else 0.0
    return "<0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"


def run_seconds(record: RunRecord) -> float:
    """How long a run has been running, or ran."""
    return (record.ended_s or time.time()) - record.started_s if record.started_s else 0.0


def meta(artifact: Artifact) -> Mapping[str, Any]:
    """What was noted about an artifact when it was published."""
    return json.loads(artifact.meta_json)


def address_of(ref: str) -> str:
    """The page of an artifact."""
    page = "data" if ref.startswith("dataset:") else "artifacts"
    return f"/{page}/{quote(ref, safe=':@')}"


def link_to(ref: str, text: str = "") -> Markup:
    """A link to an artifact's page."""
    return tag("a", text or ref, href=address_of(ref), class_="ref")


def link_to_run(run_id: str, text: str = "") -> Markup:
    """A link to a run's page."""
    return tag("a", text or run_id, href=f"/runs/{quote(run_id)}", class_="ref")
