"""Which drivers live, told without comparing clocks of different machines.

A process of this machine is known to be gone from the system itself. Another one counts up a number in the store; when
it stands still for `SILENT_S` of this process's own monotonic clock, its driver has lost its claim.
"""

from collections.abc import Sequence

from mainspring.spec import Driver
from mainspring.store.ledger import certainly_gone

BEAT_S = 2.0
SILENT_S = 60.0


class Pulse:
    """What this process has seen of the others' counters."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}

    def alive(self, drivers: Sequence[Driver], *, now_s: float) -> frozenset[str]:
        """Those that may still run; `now_s` is monotonic."""
        found: set[str] = set()
        for driver in drivers:
            beat, since_s = self._seen.get(driver.id, (-1, now_s))
            if beat != driver.beat:
                self._seen[driver.id] = (driver.beat, now_s)
                since_s = now_s
            if now_s - since_s < SILENT_S and not certainly_gone(driver):
                found.add(driver.id)
        return frozenset(found)
