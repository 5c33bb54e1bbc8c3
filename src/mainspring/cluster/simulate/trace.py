"""Clusters and task lists from CSV files, in the columns of the openb trace (Alibaba, with the paper of `kernels`).

Nodes: sn, cpu_milli, memory_mib, gpu, model. Tasks: name, cpu_milli, memory_mib, num_gpu, gpu_milli and, where a task
is bound to device models, gpu_spec (`A10|T4`); other columns are not read. Time stamps are not read either: those of
openb are re-sampled and say nothing about queueing.

An empty cell is 0, or a whole device in gpu_milli. Parts of a thousandth of a cpu or of a MiB are rounded against the
task, up in what it asks for and down in what there is.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from mainspring.spec import WHOLE, Machine, NotFound, Request, SpecError

T = TypeVar("T")
Row = Mapping[str, str | None]
MOST_SHOWN = 3
MOST = 1 << 50  # of anything; sums of it stay exact


def read_machines(path: str | Path) -> tuple[Machine, ...]:
    """The nodes of a node list."""
    return _read(path, ("sn", "cpu_milli", "memory_mib", "gpu", "model"), _machine)


def read_requests(path: str | Path) -> tuple[Request, ...]:
    """What each task of a task list asks for, in the file's order."""
    return _read(path, ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli"), _request)


def _machine(row: Row) -> Machine:
    return Machine(
        name=row["sn"] or "",
        cpu_milli=math.floor(_number(row, "cpu_milli")),
        memory_mib=math.floor(_number(row, "memory_mib")),
        devices=_integer(row, "gpu"),
        model=(row["model"] or "").strip() if _integer(row, "gpu") else "",
    )


def _request(row: Row) -> Request:
    devices = _integer(row, "num_gpu")
    models = {model.strip() for model in (row.get("gpu_spec") or "").split("|")} - {""}
    return Request(
        cpu_milli=math.ceil(_number(row, "cpu_milli")),
        memory_mib=math.ceil(_number(row, "memory_mib")),
        devices=devices,
        milli=math.ceil(_number(row, "gpu_milli", empty=WHOLE)) if devices else WHOLE,
        models=tuple(sorted(models)) if devices else (),
    )


def _read(path: str | Path, columns: Sequence[str], make: Callable[[Row], T]) -> tuple[T, ...]:
    """One `T` for each row; every complaint names file and line."""
    found: list[T] = []
    wrong: list[str] = []
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            missing = [column for column in columns if column not in reader.fieldnames]
            if missing:
                hint = f"it has {', '.join(reader.fieldnames) or 'no header'}"
                raise SpecError(f"{path} has no column {', '.join(missing)}", hint=hint)
            for row in reader:
                try:
                    found.append(make(row))
                except ValueError as error:
                    wrong.append(f"line {reader.line_num}: {error}")
    except FileNotFoundError as error:
        raise NotFound(f"no file {path}", hint=f"the working folder is {Path.cwd()}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"cannot read {path}: {error}", hint="it should be CSV with a header") from error
    if wrong:
        more = f"; and {len(wrong) - MOST_SHOWN} more" if len(wrong) > MOST_SHOWN else ""
        raise SpecError(f"{path}: {'; '.join(wrong[:MOST_SHOWN])}{more}")
    if not found:
        raise SpecError(f"{path} has a header and no rows")
    return tuple(found)


def _integer(row: Row, column: str) -> int:
    """The whole number in a column; `12.0` is one."""
    value = _number(row, column)
    if value != int(value):
        raise ValueError(f"{column} is {row[column]!r}, which is not whole")
    return int(value)


def _number(row: Row, column: str, *, empty: float = 0) -> float:
    """The number in a column."""
    text = row[column]
    if text is None:
        raise ValueError(f"the row ends before {column}")
    try:
        value = float(text.strip() or empty)
    except ValueError as error:
        raise ValueError(f"{column} is {text!r}, which is no number") from error
    if not abs(value) < MOST:
        raise ValueError(f"{column} is {text!r}, which is no amount")
    return value
