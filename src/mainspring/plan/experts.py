"""On which rank each expert shall lie, given how many tokens each has seen.

Every rank holds equally many. The busiest expert goes first, to the rank with least to do that has room: the longest
processing time rule (Graham 1969), whose fullest rank has at most 4/3 of what the best placement gives it.
"""

from collections.abc import Sequence


def place_experts(loads: Sequence[int], ranks: int) -> tuple[int, ...]:
    """The slot of each expert; rank `r` has the slots from `r * (experts // ranks)` on. Deterministic."""
    if len(loads) % ranks:
        raise ValueError(f"{len(loads)} experts cannot be shared evenly by {ranks} ranks")
    room = len(loads) // ranks
    held: list[list[int]] = [[] for _ in range(ranks)]
    busy = [0] * ranks
    for expert in sorted(range(len(loads)), key=lambda number: (-loads[number], number)):
        rank = min((r for r in range(ranks) if len(held[r]) < room), key=lambda r: (busy[r], r))
        held[rank].append(expert)
        busy[rank] += loads[expert]
    slots = [0] * len(loads)
    for rank, experts in enumerate(held):
        for place, expert in enumerate(sorted(experts)):
            slots[expert] = rank * room + place
    return tuple(slots)


def imbalance(loads: Sequence[int], slots: Sequence[int], ranks: int) -> float:
    """Tokens of the busiest rank over the mean of all ranks; 1 is even."""
    room = len(loads) // ranks
    busy = [0] * ranks
    for load, slot in zip(loads, slots, strict=True):
        busy[slot // room] += load
    return max(busy) * ranks / max(1, sum(loads))
