"""How much of this machine the process may use: cores and memory under cgroup v1 or v2 limits.

A container that may use 2 of 64 cores must be planned as a 2-core machine; torch and psutil report the whole host.
"""

import os
from pathlib import Path

import psutil

ROOT = Path("/")
"""Where /proc and /sys are looked for."""
UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes a number near 2**63 for "no limit"


def cores(root: Path = ROOT) -> int:
    """Whole cores this process may keep busy: the scheduler's affinity, capped by the cgroup's CPU quota."""
    allowed = len(os.sched_getaffinity(0))
    quota = min((q for q in (_quota(folder) for folder in _folders("cpu", root)) if q), default=float(allowed))
    return max(1, min(allowed, int(quota)))


def memory_bytes(root: Path = ROOT) -> int:
    """Bytes this process may use: the machine's memory, capped by the tightest cgroup limit."""
    limits = [limit for limit, _ in _memory_groups(root)]
    return min([psutil.virtual_memory().total, *limits])


def used_memory_bytes(root: Path = ROOT) -> int:
    """Bytes in use within `memory_bytes()`, file cache not counted."""
    system = psutil.virtual_memory()
    groups = sorted(group for group in _memory_groups(root) if group[0] < system.total)
    return groups[0][1] if groups else system.total - system.available


def _memory_groups(root: Path) -> list[tuple[int, int]]:
    """`(limit, use)` of every enclosing memory cgroup that has a limit."""
    groups: list[tuple[int, int]] = []
    for folder in _folders("memory", root):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        if limit and limit < UNLIMITED_BYTES:
            groups.append((limit, max(0, used - _file_cache(folder))))
    return groups


def _quota(folder: Path) -> float | None:
    """Cores granted by `cpu.max` (v2) or `cpu.cfs_quota_us` (v1); None when unlimited."""
    words = _text(folder / "cpu.max").split()
    if len(words) == 2 and words[0] != "max":
        return int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _folders(controller: str, root: Path) -> list[Path]:
    """The cgroup folders this process is in for `controller`, and their parents, whose limits bind too."""
    found: list[Path] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, names, path = line.split(":", 2)
        if number == "0":
            mount = root / "sys/fs/cgroup"
        elif controller in names.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        here = mount / path.lstrip("/")
        found += [folder for folder in (here, *here.parents) if folder == mount or mount in folder.parents]
    return found


def _file_cache(folder: Path) -> int:
    rows = (line.split() for line in _text(folder / "memory.stat").splitlines())
    return next((int(row[1]) for row in rows if row[0] in ("inactive_file", "total_inactive_file")), 0)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
