"""Jobs with menus in virtual time: each has an amount of work, and does it at the speed of the offer it runs with.

Gangs save at fixed intervals, and only then may they change their offer. A restart stands still for `restart_ms`; who
is stopped for others has lost what he did since he last saved.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from mainspring.cluster.schedule.decide import decide
from mainspring.cluster.schedule.state import State
from mainspring.spec import Decision, Ended, Failed, Gang, Happening, Offer, Saved, Submitted


@dataclass(frozen=True, slots=True)
class Work:
    """A gang that comes at a moment with `amount` to do, in its offers' speed times milliseconds.

    Without a menu it runs with that of `offers` which is for the model where it was put.
    """

    at_ms: int
    gang: Gang
    amount: int
    offers: tuple[Offer, ...] = ()


@dataclass(slots=True)
class Course:
    """What became of one job. `done_ms` is up to when its work is counted."""

    work: Work
    left: int
    offer: Offer | None = None
    started_ms: int = -1
    done_ms: int = 0
    ended_ms: int = -1
    starts: int = 0


@dataclass(slots=True)
class Played:
    """How a trace went: completion times, device time in use, energy, and how often jobs were started."""

    courses: dict[str, Course]
    makespan_ms: int = 0
    device_ms: int = 0
    watt_ms: int = 0
    milli_usd_ms: int = 0

    def completion_ms(self) -> list[int]:
        """From arrival to end, of every job."""
        return [course.ended_ms - course.work.at_ms for course in self.courses.values()]

    @property
    def starts(self) -> int:
        """How often jobs were started, the first times included."""
        return sum(course.starts for course in self.courses.values())


def play(state: State, works: Sequence[Work], *, save_every_ms: int) -> Played:
    """Run every job to its end on an idle cluster. `Failed` when some never get anywhere."""
    found = Played({work.gang.id: Course(work, work.amount) for work in works})
    ahead: list[tuple[int, int, str, int]] = []
    for number, work in enumerate(sorted(works, key=lambda each: (each.at_ms, each.gang.id))):
        heapq.heappush(ahead, (work.at_ms, number, work.gang.id, 0))
    while ahead:
        now_ms, happenings = ahead[0][0], list[Happening]()
        while ahead and ahead[0][0] == now_ms:
            _, _, name, start = heapq.heappop(ahead)
            if happening := _happens(found, found.courses[name], start, now_ms):
                happenings.append(happening)
        outcome = decide(state, happenings, now_ms=now_ms)
        state = outcome.state
        for decision in outcome.decisions:
            _follow(found, decision, state, now_ms=now_ms)
        for happening in happenings:
            if isinstance(happening, Saved):
                _expect(found.courses[happening.gang], ahead, now_ms, save_every_ms)
        for decision in outcome.decisions:
            if decision.kind == "start":
                _expect(found.courses[decision.gang], ahead, now_ms, save_every_ms)
        found.makespan_ms = max(found.makespan_ms, now_ms)
    stuck = [name for name, course in found.courses.items() if course.ended_ms < 0]
    if stuck:
        raise Failed(f"{len(stuck)} of {len(works)} jobs never ended", hint=f"for example {stuck[0]}")
    return found


def _happens(found: Played, course: Course, start: int, now_ms: int) -> Happening | None:
    """What an event is by now: an arrival, an end or a save; nothing when the job was started anew meanwhile."""
    gang = course.work.gang
    if start == 0:
        return Submitted(gang=gang)
    if start != course.starts or course.offer is None or course.ended_ms >= 0:
        return None
    _count(course, now_ms)
    if course.left > 0:
        return Saved(gang=gang.id)
    _spend(found, course, now_ms)
    course.ended_ms = now_ms
    return Ended(gang=gang.id)


def _count(course: Course, now_ms: int) -> None:
    """Count what a running job has done until now."""
    offer = course.offer
    assert offer is not None
    course.left -= offer.speed * max(0, now_ms - course.done_ms)
    course.done_ms = max(course.done_ms, now_ms)


def _expect(course: Course, ahead: list[tuple[int, int, str, int]], now_ms: int, save_every_ms: int) -> None:
    """The next save of a job, or its end when that comes first."""
    offer = course.offer
    if offer is None or course.ended_ms >= 0:
        return
    done_ms = max(course.done_ms, now_ms) + -(-course.left // offer.speed)
    save_ms = max(course.done_ms, now_ms) + save_every_ms
    heapq.heappush(ahead, (min(done_ms, save_ms), len(ahead), course.work.gang.id, course.starts))


def _follow(found: Played, decision: Decision, state: State, *, now_ms: int) -> None:
    """Carry one decision out in virtual time."""
    course = found.courses[decision.gang]
    gang = course.work.gang
    if decision.kind == "start":
        course.offer, course.started_ms = _offer(course.work, decision, state), now_ms
        course.done_ms = now_ms + (state.rules.restart_ms if course.starts else 0)
        course.starts += 1
    elif decision.kind == "evict":
        _spend(found, course, now_ms)
        course.offer = None
    elif decision.kind == "refuse":
        raise Failed(f"job {gang.id} was refused: {decision.reason}")


def _offer(work: Work, decision: Decision, state: State) -> Offer:
    """The offer that a job has been started with."""
    if work.gang.menu:
        return next(each for each in work.gang.menu if each.plan == decision.plan)
    fleet = state.fleet
    model = fleet.models[int(fleet.total.model[fleet.names.index(decision.nodes[0])])]
    return next(each for each in work.offers if model in each.request.models)


def _spend(found: Played, course: Course, now_ms: int) -> None:
    offer = course.offer
    assert offer is not None
    ran_ms = now_ms - course.started_ms
    found.device_ms += offer.ranks * offer.request.devices * ran_ms
    found.watt_ms += offer.watts * ran_ms
    found.milli_usd_ms += offer.milli_usd_per_hour * ran_ms
