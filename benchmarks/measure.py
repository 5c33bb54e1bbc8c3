"""What the benchmarks share: arms that take turns, medians with quartiles, and the fingerprint of a measurement.

Neighbours on a machine move an absolute time by a factor of 2 to 30. Arms therefore run in turn, in an order that is
shuffled anew in each round, and ratios are taken inside a round, where both sides met the same neighbours.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some samples, and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{readable(self.median)} ({readable(self.low)} to {readable(self.high)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one benchmark found: a headline for the README, a table, and everything it rests on.

    `numbers` are what texts may quote and tests may guard; `samples` hold every single measurement.
    """

    benchmark: str
    headline: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: Mapping[str, float]
    spec: Mapping[str, Any]
    samples: Mapping[str, Any]


def parse_options(doc: str | None, **values: int | str) -> argparse.Namespace:
    """The command line: `--quick`, and one option for each of `values` with its default and kind."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest run that still exercises everything")
    for name, default in values.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def take_turns(arms: Mapping[str, Callable[[int], T]], *, rounds: int, seed: int = 0) -> dict[str, list[T]]:
    """Call every arm once per round with the round's number; the order within a round is random."""
    order, found = random.Random(seed), {name: [] for name in arms}
    for number in range(rounds):
        for name in order.sample(list(arms), len(arms)):
            found[name].append(arms[name](number))
    return found


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles; a single sample is all three."""
    if len(samples) < 2:
        return Spread(samples[0], samples[0], samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """The ratio of each round."""
    return [one / other for one, other in zip(numerators, denominators, strict=True)]


def readable(number: float) -> str:
    """Three digits, and no fewer before the point."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def publish(findings: Findings, *, packages: Sequence[str] = ()) -> None:
    """Print the table and, as the last line, everything as one JSON object."""
    table = (findings.columns, *findings.rows)
    widths = [max(len(row[column]) for row in table) for column in range(len(findings.columns))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\n{findings.headline}")
    print(json.dumps(_rounded({**asdict(findings), **fingerprint(packages)})))


def fingerprint(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Which code, machine and libraries a measurement was made with."""
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "changed_files": len(_git("status", "--porcelain", "--", "src", "benchmarks").splitlines()),
        "machine": {
            "cpu": _cpu_model(),
            "architecture": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "load_average": [round(load, 1) for load in os.getloadavg()],
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _rounded(value: Any) -> Any:
    """`value` with every float cut to five digits, which is more than any clock here gives."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def _git(*arguments: str) -> str:
    """What git says; nothing where the source is not in a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _cpu_model() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor())
