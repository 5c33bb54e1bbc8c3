"""Small tasks in blocks: an executor takes a block of numbers at a time, so that no task needs a decision of its own.

A block is as many tasks as its holder does in `aim_ms`, by what it has done so far, and never more than its part of
half of what is left, so that all end together (guided self-scheduling, Polychronopoulos and Kuck 1987). A block is
leased: who has not finished it in time loses it, and only one holder's answer is ever taken. Pure; time is told.
"""

from dataclasses import dataclass, field

FIRST = 1  # of an executor that has done nothing yet
SLACK = 8  # how much longer than expected a block may take
GROWTH = 4  # how much larger than its last a block may be


@dataclass(frozen=True, slots=True)
class Lease:
    """Tasks `first` to `first + count - 1`, which are `holder`'s until `until_ms`."""

    first: int
    count: int
    holder: int
    taken_ms: int
    until_ms: int


@dataclass(slots=True)
class Blocks:
    """What is left of `total` tasks for `holders` executors; `again` are blocks that were lost, `done` counts tasks."""

    total: int
    holders: int
    aim_ms: int = 2000
    patience_ms: int = 60_000
    fresh: int = 0
    done: int = 0
    again: list[tuple[int, int]] = field(default_factory=list)
    leases: dict[int, Lease] = field(default_factory=dict)
    pace: dict[int, tuple[int, float]] = field(default_factory=dict)  # of each holder: its last block, ms per task

    @property
    def over(self) -> bool:
        """Whether every task has been finished."""
        return self.done == self.total


def take(blocks: Blocks, holder: int, *, now_ms: int) -> Lease | None:
    """The next block for an executor, or None when there is nothing to take at the moment."""
    for lease in [each for each in blocks.leases.values() if each.until_ms <= now_ms]:
        del blocks.leases[lease.first]
        blocks.again.append((lease.first, lease.count))
    if blocks.again:
        first, count = blocks.again.pop(0)
    else:
        left = blocks.total - blocks.fresh
        if not left:
            return None
        first, count = blocks.fresh, _size(blocks, holder, left)
        blocks.fresh += count
    until_ms = now_ms + max(blocks.patience_ms, round(SLACK * count * blocks.pace.get(holder, (0, 0.0))[1]))
    lease = Lease(first=first, count=count, holder=holder, taken_ms=now_ms, until_ms=until_ms)
    blocks.leases[first] = lease
    return lease


def finish(blocks: Blocks, first: int, holder: int, *, now_ms: int) -> bool:
    """Count a block as done; False when it is not this holder's any more, and its answers must not be used."""
    lease = blocks.leases.get(first)
    if lease is None or lease.holder != holder:
        return False
    del blocks.leases[first]
    blocks.done += lease.count
    each_ms = max(now_ms - lease.taken_ms, 0) / lease.count
    known = blocks.pace.get(holder)
    blocks.pace[holder] = (lease.count, each_ms if known is None else (known[1] + each_ms) / 2)
    return True


def _size(blocks: Blocks, holder: int, left: int) -> int:
    fair = max(1, left // (2 * blocks.holders))
    if holder not in blocks.pace:
        return min(FIRST, left)
    last, each_ms = blocks.pace[holder]
    wanted = int(blocks.aim_ms / each_ms) if each_ms else GROWTH * last
    return max(1, min(wanted, GROWTH * last, fair, left))
