"""What `mainspring doctor` asks of the machine: libraries of each extra, disk, devices."""

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mainspring.hardware.health import DISK_DEGRADED_BYTES
from mainspring.hardware.probe import probe_node
from mainspring.spec import Check

EXTRAS = {
    "train": ("torch", "ray", "safetensors", "tokenizers"),
    "data": ("daft", "pylance", "lancedb", "kreuzberg", "onnxruntime"),
    "serve": ("fastapi", "uvicorn", "prometheus-client"),
    "report": ("altair", "vl-convert-python"),
    "console": ("nicegui",),
}


def checks(home: Path) -> tuple[Check, ...]:
    """One check per extra, one for the disk under `home`, one per device of this machine."""
    return (*(_libraries(extra) for extra in EXTRAS), _disk(home), *_devices())


def _libraries(extra: str) -> Check:
    found: list[str] = []
    missing: list[str] = []
    for name in EXTRAS[extra]:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        detail = f"missing: {', '.join(missing)}; pip install 'mainspring[{extra}]'"
        return Check(name=f"libraries for {extra}", state="bad", detail=detail)
    return Check(name=f"libraries for {extra}", state="ok", detail=", ".join(found))


def _disk(home: Path) -> Check:
    free = shutil.disk_usage(home).free
    state = "ok" if free >= DISK_DEGRADED_BYTES else "bad"
    return Check(name="disk", state=state, detail=f"{free / 1024**3:.1f} GiB free under {home}")


def _devices() -> list[Check]:
    node = probe_node()
    return [
        Check(
            name=f"device {health.device}",
            state="bad" if health.state == "unhealthy" else "ok",
            detail="; ".join(health.reasons) or health.state,
        )
        for health in node.health
    ]
