"""What accelerators and links can do, as their vendors state it: `catalog.toml`, read once.

Peaks are dense figures with fp32 accumulation; every entry names its source. Prices are absent on purpose: they
change weekly and belong to the reader's contract, so they are stated in the cluster file.
"""

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from mainspring.spec import Device, Instance, Link, SpecError, spec

GIB = 1024**3
MEASURED_HINT = (
    "a device that is not listed is accepted with measured figures: "
    'give the node a "measured" table in the cluster file'
)


@spec
class Entry:
    """One catalogue entry: the device, its usual link to its neighbours, and the names its driver reports."""

    device: Device
    link: Link
    matches: tuple[str, ...]


def devices() -> Mapping[str, Device]:
    """Every listed device by catalogue name."""
    return MappingProxyType({name: entry.device for name, entry in entries().items()})


def find(name: str) -> Device:
    """The device called `name`, in any case and with blanks, `-` or `_` between its parts.

    Raises `SpecError` naming the nearest entries; measured figures are the way round it.
    """
    return find_entry(name).device


def find_entry(name: str) -> Entry:
    """The whole entry called `name`: by catalogue name, by the name the driver reports, or by words that fit no other.

    Tables say `A100-80-SXM` or `V100-16` for A100-SXM4-80GB and V100-SXM2-16GB.
    """
    wanted = _key(name)
    by_key = _index()
    if wanted in by_key:
        return by_key[wanted]
    wanted_words = set(wanted.split("-"))
    fitting = [entry for entry in entries().values() if wanted_words <= _words(entry.device.name)]
    if len(fitting) == 1:
        return fitting[0]
    # A family name ("h100") is nearest to every member that starts with it.
    family = [entry.device.name for key, entry in by_key.items() if key.startswith(wanted)]
    close = difflib.get_close_matches(wanted, by_key, n=3, cutoff=0.5)
    near = list(dict.fromkeys(family or [by_key[key].device.name for key in close]))
    said = f"nearest: {', '.join(near)}; " if near else ""
    raise SpecError(f"no device {name!r} in the catalogue of {len(entries())}", hint=said + MEASURED_HINT)


def matching(reported: str) -> Entry | None:
    """The entry for the name a driver reports, or None when the catalogue has no such device."""
    return _index().get(_key(reported))


def instances() -> tuple[Instance, ...]:
    """Machines that clouds rent out: `instances.toml`. Few have a price, as prices change weekly."""
    document = tomllib.loads(files("mainspring.hardware").joinpath("instances.toml").read_text(encoding="utf-8"))
    return tuple(Instance(**table) for table in document["instances"])


def find_link(name: str) -> Link:
    """The link kind called `name`; `SpecError` lists the known ones."""
    known = _links()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(known)
        raise SpecError(f"no link {name!r} in the catalogue", hint=hint)
    return known[name]


@cache
def entries() -> Mapping[str, Entry]:
    """Every entry by catalogue name."""
    return MappingProxyType({name: _entry(name, table) for name, table in _document()["devices"].items()})


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads(files("mainspring.hardware").joinpath("catalog.toml").read_text("utf-8"))


@cache
def _links() -> Mapping[str, Link]:
    return {
        name: Link(name=name, bytes_per_s=row["gigabytes_per_s"] * 1e9, latency_s=row["microseconds"] * 1e-6)
        for name, row in _document()["links"].items()
    }


@cache
def _index() -> Mapping[str, Entry]:
    return {_key(alias): entry for name, entry in entries().items() for alias in (name, *entry.matches)}


def _entry(name: str, row: Mapping[str, Any]) -> Entry:
    device = Device(
        vendor=row["vendor"],
        name=name,
        memory_bytes=round(row["memory_gib"] * GIB),
        memory_bytes_per_s=row["memory_gb_per_s"] * 1e9,
        fp32_flops_per_s=row["fp32_tflops"] * 1e12,
        bf16_flops_per_s=row["bf16_tflops"] * 1e12,
        int8_ops_per_s=row["int8_tops"] * 1e12,
        power_watts=float(row["watts"]),
        **{name: row[name] for name in ("matmul_share", "attention_share") if name in row},
        source=row["source"] + (", low confidence" if row.get("confidence") == "low" else ""),
    )
    return Entry(device=device, link=find_link(row["link"]), matches=tuple(row.get("matches", ())))


def _key(name: str) -> str:
    words = name.lower().replace("-", " ").replace("_", " ").split()
    return "-".join(word for word in words if word != "nvidia")


def _words(name: str) -> frozenset[str]:
    """The parts of an entry's name, also without unit and generation: 80 beside 80gb, sxm beside sxm5."""
    parts = _key(name).split("-")
    short = ["sxm" if part.startswith("sxm") else part.removesuffix("gb") for part in parts]
    return frozenset([*parts, *short])
