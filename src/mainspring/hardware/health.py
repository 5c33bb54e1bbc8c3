"""Whether a device is fit for work: what was read from it, judged by fixed rules.

Readings come from NVML for NVIDIA devices and from the operating system for the host; the rules are a pure function
of them, so that a figure that looks wrong in the console can be traced to one line here.
"""

from dataclasses import dataclass

from mainspring.spec import Health, HealthState

HOT_MARGIN_CELSIUS = 5.0
MEMORY_FULL = 0.95
LOAD_PER_CORE = 2.0  # a run queue twice as long as the cores: every rank runs at half speed
DISK_DEGRADED_BYTES = 5 * 1024**3
DISK_UNHEALTHY_BYTES = 512 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read from one device; None or empty means that it does not report it."""

    memory_bytes: int
    used_bytes: int
    temperature_celsius: float | None = None
    temperature_limit_celsius: float | None = None
    uncorrected_errors: int | None = None
    throttled_by: tuple[str, ...] = ()
    load_per_core: float | None = None
    disk_free_bytes: int | None = None


def judge(device: str, reading: Reading) -> Health:
    """The health of `device`: the worst of all rules, with a reason for each that it breaks."""
    found = [
        *_thermal_faults(reading),
        *_memory_faults(reading),
        *_host_faults(reading),
    ]
    states: list[HealthState] = ["healthy", "degraded", "unhealthy"]
    worst = max((states.index(state) for state, _ in found), default=0)
    return Health(
        device=device,
        state=states[worst],
        reasons=tuple(reason for _, reason in found),
        temperature_celsius=reading.temperature_celsius,
        used_bytes=reading.used_bytes,
    )


def _thermal_faults(reading: Reading) -> list[tuple[HealthState, str]]:
    found: list[tuple[HealthState, str]] = []
    heat, limit = reading.temperature_celsius, reading.temperature_limit_celsius
    if heat is not None and limit is not None and heat >= limit - HOT_MARGIN_CELSIUS:
        found.append(("degraded", f"{heat:.0f} C, slows down at {limit:.0f} C"))
    if reading.throttled_by:
        found.append(("degraded", f"slowed down by {', '.join(reading.throttled_by)}"))
    return found


def _memory_faults(reading: Reading) -> list[tuple[HealthState, str]]:
    found: list[tuple[HealthState, str]] = []
    if reading.uncorrected_errors:
        found.append(("unhealthy", f"{reading.uncorrected_errors} uncorrected memory errors since the last reset"))
    if reading.used_bytes > MEMORY_FULL * reading.memory_bytes:
        used, size = reading.used_bytes / 1024**3, reading.memory_bytes / 1024**3
        found.append(("degraded", f"memory nearly full: {used:.1f} of {size:.1f} GiB"))
    return found


def _host_faults(reading: Reading) -> list[tuple[HealthState, str]]:
    found: list[tuple[HealthState, str]] = []
    if reading.load_per_core is not None and reading.load_per_core > LOAD_PER_CORE:
        found.append(("degraded", f"{reading.load_per_core:.1f} runnable processes per core"))
    free = reading.disk_free_bytes
    if free is not None and free < DISK_DEGRADED_BYTES:
        state: HealthState = "unhealthy" if free < DISK_UNHEALTHY_BYTES else "degraded"
        found.append((state, f"disk nearly full: {free / 1024**3:.1f} GiB left"))
    return found
