"""A workload in virtual time through the scheduler itself: gangs arrive, run, are stopped, and come back.

Time jumps from event to event; everything that happens at one moment is decided about together. A gang that is stopped
has lost what it did since its last checkpoint, which it writes every `saved_every_ms` (0: never).
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from mainspring.cluster.schedule.decide import decide
from mainspring.cluster.schedule.state import State
from mainspring.spec import Decision, Ended, Failed, Gang, Happening, Submitted


@dataclass(frozen=True, slots=True)
class Arrival:
    """A gang that comes at a moment and has so much to do, whatever its own estimate says."""

    at_ms: int
    gang: Gang
    work_ms: int


@dataclass(slots=True)
class Life:
    """What became of one gang. `left_ms` is what it has still to do."""

    arrival: Arrival
    left_ms: int
    started_ms: int = -1
    first_start_ms: int = -1
    ended_ms: int = -1
    stops: int = 0
    attempt: int = 0


@dataclass(slots=True)
class Replay:
    """How a workload went. `busy` is device time (cpu time where there are none) in use, in thousandths by ms."""

    lives: dict[str, Life]
    makespan_ms: int = 0
    busy: int = 0
    decisions: int = 0
    refused: list[Decision] = field(default_factory=list)

    def wait_ms(self, prefix: str = "") -> float:
        """The mean time from arrival to the first start, of gangs whose id begins with `prefix`."""
        waits = [
            life.first_start_ms - life.arrival.at_ms for name, life in self.lives.items() if name.startswith(prefix)
        ]
        return sum(waits) / len(waits) if waits else 0.0


def replay(state: State, arrivals: Iterable[Arrival], *, saved_every_ms: int = 0) -> Replay:
    """Run every gang of `arrivals` to its end on an idle cluster. `Failed` when some can never start."""
    ahead: list[tuple[int, int, str, int]] = []
    lives: dict[str, Life] = {}
    for number, arrival in enumerate(sorted(arrivals, key=lambda each: (each.at_ms, each.gang.id))):
        lives[arrival.gang.id] = Life(arrival, arrival.work_ms)
        ahead.append((arrival.at_ms, number, arrival.gang.id, -1))
    found = Replay(lives)
    heapq.heapify(ahead)
    while ahead:
        now_ms = ahead[0][0]
        happenings: list[Happening] = []
        while ahead and ahead[0][0] == now_ms:
            _, _, name, attempt = heapq.heappop(ahead)
            life = lives[name]
            if attempt < 0:
                happenings.append(Submitted(gang=life.arrival.gang))
            elif attempt == life.attempt:
                happenings.append(Ended(gang=name))
                life.ended_ms = now_ms
                found.busy += _size(life.arrival.gang) * (now_ms - life.started_ms)
        outcome = decide(state, happenings, now_ms=now_ms)
        state = outcome.state
        found.decisions += len(outcome.decisions)
        for decision in outcome.decisions:
            _follow(found, decision, now_ms, saved_every_ms, ahead)
        found.makespan_ms = max(found.makespan_ms, now_ms)
    stuck = [name for name, life in lives.items() if life.ended_ms < 0]
    if len(stuck) > len(found.refused):
        raise Failed(f"{len(stuck)} of {len(lives)} gangs never ended", hint=f"for example {stuck[0]}")
    return found


def _follow(
    found: Replay, decision: Decision, now_ms: int, saved_every_ms: int, ahead: list[tuple[int, int, str, int]]
) -> None:
    """Carry one decision out in virtual time."""
    life = found.lives[decision.gang]
    if decision.kind == "start":
        life.started_ms = now_ms
        life.first_start_ms = now_ms if life.first_start_ms < 0 else life.first_start_ms
        heapq.heappush(ahead, (now_ms + life.left_ms, len(ahead), decision.gang, life.attempt))
    elif decision.kind == "evict":
        ran_ms = now_ms - life.started_ms
        kept_ms = ran_ms // saved_every_ms * saved_every_ms if saved_every_ms else 0
        found.busy += _size(life.arrival.gang) * ran_ms
        life.left_ms -= min(kept_ms, life.left_ms)
        life.attempt += 1
        life.stops += 1
    elif decision.kind == "refuse":
        found.refused.append(decision)


def _size(gang: Gang) -> int:
    return gang.ranks * (gang.request.device_milli or gang.request.cpu_milli)
