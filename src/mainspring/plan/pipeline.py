"""Pipeline schedules: which stage is where, in which order a rank works, how much is in flight, how long a step takes.

1F1B (Narayanan et al. 2019) holds p - i micro-batches on pipeline rank i, GPipe (Huang et al. 2019) all of them;
interleaved (Narayanan et al. 2021, section 2.2) gives each rank v chunks and divides the bubble by v; zero-bubble
(Qi et al. 2023) puts weight gradients into the bubble, and its V-shaped forms, ZBV and DualPipeV, leave none.

The orders are static: they depend on counts, never on durations, so that faster parts can never make a step slower.
"""

from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

from mainspring.spec import V_SHAPED, Schedule

SPLIT: frozenset[Schedule] = frozenset({"zero_bubble", "zbv", "dualpipev"})  # weight gradients on their own
FILLING_ROUNDS = 4  # of p micro-batches, after which no rank holds more than it did before
STEADY_ROUNDS = 6  # of p micro-batches, after which a static schedule repeats itself

Kind = Literal["F", "B", "W"]
Action = tuple[Kind, int, int]  # what, stage, micro-batch


class StageTimes(NamedTuple):
    """Seconds of one micro-batch in one stage. `weight_s` of the backward may be put off; `send_s` is one hand-over."""

    forward_s: float
    backward_s: float
    weight_s: float
    send_s: float


def rank_of(stage: int, *, pp: int, schedule: Schedule) -> int:
    """Which pipeline rank holds `stage`."""
    turn, place = divmod(stage, pp)
    return pp - 1 - place if turn % 2 and schedule in V_SHAPED else place


@cache
def stage_ranks(stages: int, pp: int, schedule: Schedule) -> tuple[int, ...]:
    """The pipeline rank of each of `stages`."""
    return tuple(rank_of(stage, pp=pp, schedule=schedule) for stage in range(stages))


@cache
def in_flight(schedule: Schedule, *, pp: int, chunks: int, microbatches: int) -> tuple[tuple[int, ...], ...]:
    """The most micro-batches whose activations each pipeline rank holds, chunk by chunk."""
    if pp == 1:
        return ((1,),)
    steady = min(microbatches, FILLING_ROUNDS * pp)
    if schedule == "gpipe":
        return ((microbatches,),) * pp
    return tuple(
        most_held(actions, pp=pp, chunks=chunks, split=schedule in SPLIT)
        for actions in order(schedule, pp, chunks, steady)
    )


def least_held(schedule: Schedule, *, pp: int, microbatches: int) -> list[int]:
    """Micro-batches that each pipeline rank holds at some moment, at least; known without following the schedule."""
    if schedule == "gpipe":
        return [microbatches] * pp
    if schedule in ("1f1b", "zero_bubble"):
        return [min(pp - rank, microbatches) for rank in range(pp)]
    return [1] * pp


def most_held(actions: Sequence[Action], *, pp: int, chunks: int, split: bool) -> tuple[int, ...]:
    """Held per chunk at the moment when most are held in all; a put-off weight gradient holds its activations."""
    last = "W" if split else "B"
    held = [0] * chunks
    most = list(held)
    for kind, stage, _ in actions:
        if kind == "F":
            held[stage // pp] += 1
            if sum(held) > sum(most):
                most = list(held)
        elif kind == last:
            held[stage // pp] -= 1
    return tuple(most)


@cache
def order(schedule: Schedule, pp: int, chunks: int, microbatches: int) -> tuple[tuple[Action, ...], ...]:
    """What each pipeline rank does, in order."""
    if schedule == "gpipe":
        return tuple(_all_forward_first(rank, microbatches) for rank in range(pp))
    if schedule in ("1f1b", "interleaved"):
        return tuple(_one_forward_one_backward(rank, pp, chunks, microbatches) for rank in range(pp))
    if schedule == "zero_bubble":
        return tuple(_weights_apart(rank, pp, chunks, microbatches) for rank in range(pp))
    return _greedy(schedule, pp, chunks, microbatches)


def _all_forward_first(rank: int, microbatches: int) -> tuple[Action, ...]:
    forward: list[Action] = [("F", rank, m) for m in range(microbatches)]
    backward: list[Action] = [("B", rank, m) for m in range(microbatches)]
    return (*forward, *backward)


def _weights_apart(rank: int, pp: int, chunks: int, microbatches: int) -> tuple[Action, ...]:
    """1F1B whose weight gradients come `rank` backwards late, which fills what would be waiting in the drain."""
    late: deque[Action] = deque()
    found: list[Action] = []
    for kind, stage, microbatch in _one_forward_one_backward(rank, pp, chunks, microbatches, step=1):
        found.append((kind, stage, microbatch))
        if kind == "B":
            late.append(("W", stage, microbatch))
            if len(late) > rank:
                found.append(late.popleft())
    return (*found, *late)


def _one_forward_one_backward(
    rank: int, pp: int, chunks: int, microbatches: int, *, step: int = 0
) -> tuple[Action, ...]:
    """Warm up, then alternate, then drain: chunk by chunk in rounds of at most `pp` micro-batches.

    Ranks warm up by `step` more than the next; interleaved ones by two, so that backwards arrive in time.
    """
    forward, backward = _rounds(pp, chunks, microbatches)
    warmup = (chunks - 1) * pp + (step or (2 if chunks > 1 else 1)) * (pp - 1 - rank)
    warmup = min(warmup, len(forward))
    found: list[Action] = [("F", chunk * pp + rank, m) for chunk, m in forward[:warmup]]
    for (chunk, m), (back, k) in zip(forward[warmup:], backward, strict=False):
        found.append(("F", chunk * pp + rank, m))
        found.append(("B", back * pp + rank, k))
    for back, k in backward[len(forward) - warmup :]:
        found.append(("B", back * pp + rank, k))
    return tuple(found)


def _rounds(pp: int, chunks: int, microbatches: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """`(chunk, micro-batch)` of a rank's forwards and backwards."""
    forward: list[tuple[int, int]] = []
    backward: list[tuple[int, int]] = []
    for start in range(0, microbatches, pp):
        batch = range(start, min(start + pp, microbatches))
        forward += [(chunk, m) for chunk in range(chunks) for m in batch]
        backward += [(chunk, m) for chunk in reversed(range(chunks)) for m in batch]
    return forward, backward


@cache
def _greedy(schedule: Schedule, pp: int, chunks: int, microbatches: int) -> tuple[tuple[Action, ...], ...]:
    """List scheduling with passes of one unit: a backward if there is one, else a forward, else a weight gradient.

    A forward waits while a rank holds as many activations as the schedule allows it.
    """
    stages = pp * chunks
    allowed = 2 * pp if schedule == "zbv" else 2 * (pp + 1)
    mine = [[s for s in range(stages) if rank_of(s, pp=pp, schedule=schedule) == rank] for rank in range(pp)]
    done: dict[Action, int] = {}
    todo: list[dict[Kind, dict[int, int]]] = [{kind: dict.fromkeys(own, 0) for kind in ("F", "B", "W")} for own in mine]
    found: list[list[Action]] = [[] for _ in range(pp)]
    left, clock = 3 * stages * microbatches, 0
    while left:
        chosen: list[tuple[int, Action]] = []
        for rank in range(pp):
            action = _next(todo[rank], mine[rank], done, clock=clock, last=stages - 1, count=microbatches, hold=allowed)
            if action is not None:
                chosen.append((rank, action))
        for rank, action in chosen:
            kind, stage, m = action
            done[action] = clock + 1
            todo[rank][kind][stage] = m + 1
            found[rank].append(action)
        left -= len(chosen)
        clock += 1
    return tuple(tuple(actions) for actions in found)


def _next(
    todo: dict[Kind, dict[int, int]],
    mine: Sequence[int],
    done: dict[Action, int],
    *,
    clock: int,
    last: int,
    count: int,
    hold: int,
) -> Action | None:
    """What a rank whose stages are `mine` does at `clock`."""

    def ready(action: Action) -> bool:
        return done.get(action, clock + 1) <= clock

    backward = [
        (m, -stage)
        for stage, m in todo["B"].items()
        if m < count and ready(("F", stage, m)) and (stage == last or ready(("B", stage + 1, m)))
    ]
    if backward:
        m, stage = min(backward)
        return ("B", -stage, m)
    held = sum(todo["F"][stage] - todo["W"][stage] for stage in mine)
    forward = [
        (m // max(1, len(mine)), -stage, m)
        for stage, m in todo["F"].items()
        if m < count and (stage == 0 or ready(("F", stage - 1, m)))
    ]
    if forward and held < hold:
        _, stage, m = max(forward, key=lambda each: (-each[1], -each[2]))
        return ("F", -stage, m)
    weight = [(m, stage) for stage, m in todo["W"].items() if m < count and ready(("B", stage, m))]
    if weight:
        m, stage = min(weight)
        return ("W", stage, m)
    return None


def least_s(times: Sequence[StageTimes], *, pp: int, schedule: Schedule, microbatches: int) -> float:
    """A step that no order can beat: each rank's work, after its first micro-batch arrived and before its last left.

    For equal stages it is what 1F1B, GPipe and interleaved schedules take.
    """
    work = [0.0] * pp
    last = len(times) - 1
    for stage, (place, each) in enumerate(zip(stage_ranks(len(times), pp, schedule), times, strict=True)):
        sends = (stage < last) + (stage > 0)
        work[place] += each.forward_s + each.backward_s + sends * each.send_s
    best = reached = 0.0
    for rank in range(pp):
        best = max(best, reached + microbatches * work[rank])
        first = times[rank]
        back = 0.0 if schedule in SPLIT else first.backward_s + (first.send_s if rank else 0.0)
        reached += first.forward_s + first.send_s + back
    return best
