"""A pipeline step event by event: when each rank does what, given the seconds of each stage.

Ranks work off their static order; a pass starts when its rank is free and its input has arrived. Handing on keeps the
sender busy: on links that are slow enough to matter, published pipelines do not hide it. Starting times are sums and
maxima of durations, so a shorter duration never makes a step longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mainspring.plan.pipeline import SPLIT, STEADY_ROUNDS, Action, Kind, StageTimes, order
from mainspring.spec import Schedule


@dataclass(frozen=True, slots=True)
class Span:
    """One pass on one pipeline rank."""

    rank: int
    kind: Kind
    stage: int
    microbatch: int
    start_s: float
    end_s: float


def simulated_s(times: Sequence[StageTimes], *, pp: int, schedule: Schedule, microbatches: int) -> float:
    """Seconds of a step. Once the order repeats itself, further rounds take what the rounds before them took."""
    few = STEADY_ROUNDS * pp + microbatches % pp
    if schedule == "gpipe" or microbatches <= few + 2 * pp:
        return timeline_s(times, pp=pp, schedule=schedule, microbatches=microbatches)
    short = timeline_s(times, pp=pp, schedule=schedule, microbatches=few)
    longer = timeline_s(times, pp=pp, schedule=schedule, microbatches=few + 2 * pp)
    return longer + (microbatches - few - 2 * pp) * (longer - short) / (2 * pp)


def timeline_s(times: Sequence[StageTimes], *, pp: int, schedule: Schedule, microbatches: int) -> float:
    """When the last pass ends."""
    return max(span.end_s for span in timeline(times, pp=pp, schedule=schedule, microbatches=microbatches))


def timeline(times: Sequence[StageTimes], *, pp: int, schedule: Schedule, microbatches: int) -> tuple[Span, ...]:
    """Every pass with its start and end, rank by rank."""
    orders = order(schedule, pp, len(times) // pp, microbatches)
    seconds = {kind: [_busy_s(times, stage, kind, schedule) for stage in range(len(times))] for kind in ("F", "B", "W")}
    ended: dict[Action, float] = {}
    free = [0.0] * pp
    at = [0] * pp
    found: list[Span] = []
    waiting = set(range(pp))
    while waiting:
        before = len(found)
        for rank in sorted(waiting):
            while at[rank] < len(orders[rank]):
                action = orders[rank][at[rank]]
                arrived = _arrived(action, ended, len(times))
                if arrived is None:
                    break
                kind, stage, microbatch = action
                start = max(free[rank], arrived)
                free[rank] = ended[action] = start + seconds[kind][stage]
                found.append(Span(rank, kind, stage, microbatch, start, free[rank]))
                at[rank] += 1
            else:
                waiting.discard(rank)
        assert len(found) > before or not waiting, "the order waits for itself"
    return tuple(found)


def _busy_s(times: Sequence[StageTimes], stage: int, kind: Kind, schedule: Schedule) -> float:
    each = times[stage]
    if kind == "W":
        return each.weight_s
    if kind == "F":
        return each.forward_s + (each.send_s if stage < len(times) - 1 else 0.0)
    put_off = each.weight_s if schedule in SPLIT else 0.0
    return each.backward_s - put_off + (each.send_s if stage else 0.0)


def _arrived(action: Action, ended: dict[Action, float], stages: int) -> float | None:
    """When the input of a pass is there; None while it is not."""
    kind, stage, microbatch = action
    if kind == "F":
        return ended.get(("F", stage - 1, microbatch)) if stage else 0.0
    own = ended.get(("F" if kind == "B" else "B", stage, microbatch))
    if kind == "W" or stage == stages - 1 or own is None:
        return own
    after = ended.get(("B", stage + 1, microbatch))
    return None if after is None else max(own, after)
