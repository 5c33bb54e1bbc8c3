"""Running average power limit: the CPU package's own energy counters in /sys/class/powercap.

Counters wrap at `max_energy_range_uj` (minutes on a busy server), so `Counter` unwraps them; reading it at least once
per wrap is the caller's part.
"""

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class Counter:
    """Joules used by all CPU packages since this object was made; None where no counter can be read."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._packages = _packages(root)
        self._last = [_micro(package / "energy_uj") for package in self._packages]
        self._range = [_micro(package / "max_energy_range_uj") or 0 for package in self._packages]
        self._total = 0

    def joules(self) -> float | None:
        """Read every package and add what was used since the last reading, across at most one wrap."""
        if not self._packages or None in self._last:
            return None
        for index, package in enumerate(self._packages):
            now, before = _micro(package / "energy_uj"), self._last[index]
            if now is None or before is None:
                return None
            step = now - before
            self._total += step if step >= 0 else step + self._range[index]
            self._last[index] = now
        return self._total / 1e6


def limit_watts(root: Path = POWERCAP) -> float | None:
    """The sustained power limit of all packages, or None when the kernel states none."""
    stated = [_micro(package / "constraint_0_power_limit_uw") for package in _packages(root)]
    known = [watts for watts in stated if watts]
    return sum(known) / 1e6 if known and len(known) == len(stated) else None


def _packages(root: Path) -> list[Path]:
    """Package domains only: their cores and memory controllers are counted within them."""
    found = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
    return [folder for folder in found if _word(folder / "name").startswith("package")]


def _micro(path: Path) -> int | None:
    text = _word(path)
    return int(text) if text.isdigit() else None


def _word(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""
