"""How far are the planner's predictions from measured training runs?

Each row of a table is a published run: model, devices, plan, software, and the measured time of a step. The first
table's runs were used to fix the cost model's few constants; its held-out column fits them without the row's source.
The second table's runs were looked up after that. Rows that cannot be modelled are listed with the reason.

Ceiling: what sources leave out (interleaving, network, software) moves a run by 5 to 10 %. Goal: a mean absolute error
of at most 7 % over all rows and 5 % on Megatron's tables, and memory never 5 % too low.

Run: python benchmarks/plan_accuracy.py [--quick] [RUNS.csv ...]
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

from mainspring.hardware import catalog
from mainspring.plan.validate import Validation, validate
from mainspring.spec import Device, Link
from measure import ROOT, Findings, publish

TABLES = tuple(ROOT / "tests/unit/plan" / name for name in ("published_runs.csv", "held_out_runs.csv"))
MEGATRON = "Megatron 2021"


def machine(name: str) -> tuple[Device, Link]:
    """A device and its link by a table's name for it."""
    entry = catalog.find_entry(name)
    return entry.device, entry.link


def read(path: Path) -> Validation:
    """Predictions beside the rows of a table."""
    return validate(list(csv.DictReader(path.read_text("utf-8").splitlines())), machine)


def rows_of(path: Path, found: Validation) -> Iterator[tuple[str, ...]]:
    """One line for each source of a table, one for its Megatron rows, one for all."""

    def line(what: str, rows: int, error: float, bias: str, worst: str, held_out: str) -> tuple[str, ...]:
        return (path.stem, what, str(rows), f"{error:.1%}", bias, worst, held_out)

    for each in found.sources:
        yield line(
            each.source,
            each.rows,
            each.mean_absolute,
            f"{each.bias:+.1%}",
            f"{each.largest:+.0%}",
            f"{each.held_out:.1%}",
        )
    errors = megatron(found)
    if errors:
        yield line("all run by Megatron-LM of 2021", len(errors), sum(errors) / len(errors), "", "", "")
    yield line("all", len(found.rows), found.mean_absolute, "", "", f"{found.held_out:.1%}")


def megatron(found: Validation) -> list[float]:
    """Absolute errors of Megatron's tables."""
    return [abs(row.error) for row in found.rows if row.stack == MEGATRON]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.add_argument("runs", nargs="*", type=Path, help="tables of runs; the project's own two by default")
    tables = tuple(parser.parse_args().runs) or TABLES
    found = {path: read(path) for path in tables}
    first = found[tables[0]]
    errors, last = megatron(first), found[tables[-1]]
    headline = f"{first.mean_absolute:.1%} mean error in step time over {len(first.rows)} published runs"
    if len(tables) > 1:
        headline += f", {last.mean_absolute:.1%} over {len(last.rows)} that were looked up afterwards"
    right = sum(ranking.right for ranking in first.rankings)
    publish(
        Findings(
            benchmark="plan_accuracy",
            headline=f"{headline}; the fastest of published alternatives is first in {right} of {len(first.rankings)}",
            columns=("table", "source", "rows", "mean error", "bias", "largest", "held out"),
            rows=tuple(row for path, each in found.items() for row in rows_of(path, each)),
            numbers={
                "mean_error": first.mean_absolute,
                "megatron_error": sum(errors) / max(1, len(errors)),
                "held_out_error": first.held_out,
                "rank_correlation": first.rank_correlation,
                "ranked_right": first.ranked_right,
                "memory_underestimate": first.worst_memory_underestimate,
                "unseen_error": last.mean_absolute,
            },
            spec={"rows": len(first.rows), "left_out": sum(len(each.ids) for each in first.excluded)},
            samples={
                "errors": {row.id: row.error for each in found.values() for row in each.rows},
                "memory_errors": {
                    row.id: row.memory_error
                    for each in found.values()
                    for row in each.rows
                    if row.memory_error is not None
                },
                "left_out": {reason.reason: list(reason.ids) for each in found.values() for reason in each.excluded},
            },
        )
    )


if __name__ == "__main__":
    main()
