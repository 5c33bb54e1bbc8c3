"""Which devices a plan may use, and how many micro-batches each replica gets."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mainspring.plan.blocks import Rank
from mainspring.plan.network import Fabric

Kinds = tuple[tuple[Rank, int], ...]
HOST = "cpu"  # the one vendor whose device several ranks may share


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Replicas on equal devices: `ranks[p]` is what pipeline rank p of each of them runs on.

    `kinds` counts the ranks of each kind.
    """

    replicas: int
    ranks: tuple[Rank, ...]
    kinds: Kinds = ()

    def __post_init__(self) -> None:
        if not self.kinds:
            object.__setattr__(self, "kinds", tuple(Counter(self.ranks).items()))


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where a mesh lies: its replicas by the devices under them, and the links between its ranks."""

    columns: tuple[Column, ...]
    fabric: Fabric

    @property
    def distinct(self) -> list[Rank]:
        """The kinds of rank on it."""
        return list(dict.fromkeys(rank for column in self.columns for rank, _ in column.kinds))


def even_count(replicas: int, total: int) -> int | None:
    """What each of `replicas` runs of `total` micro-batches shared evenly; None when they cannot be."""
    each, rest = divmod(total, replicas)
    return None if rest or not each else each


def fastest_counts(speeds: Sequence[tuple[float, int]], total: int) -> tuple[tuple[int, int], ...] | None:
    """Micro-batches that end soonest on groups of replicas, `(seconds of one, replicas)`; None when some get none.

    The answer has `(count, extra)` for each group: every replica runs `count`, its first `extra` one more. Giving
    each next micro-batch to the replica that would finish it first is optimal for equal jobs on machines of different
    speed; it starts from one each and the whole part of the proportional share, which no optimum goes below.
    """
    left = total - sum(size for _, size in speeds)
    if left < 0:
        return None
    rate = sum(size / seconds for seconds, size in speeds)
    counts = [max(1, int(total / rate / seconds)) for seconds, _ in speeds]
    if sum(count * size for count, (_, size) in zip(counts, speeds, strict=True)) > total:
        counts = [1] * len(speeds)
    left = total - sum(count * size for count, (_, size) in zip(counts, speeds, strict=True))
    extra = [0] * len(speeds)
    queue = [((counts[group] + 1) * seconds, group) for group, (seconds, _) in enumerate(speeds)]
    heapq.heapify(queue)
    while left:
        _, group = queue[0]
        seconds, size = speeds[group]
        if left < size:
            extra[group] = left
            break
        counts[group] += 1
        left -= size
        heapq.heapreplace(queue, ((counts[group] + 1) * seconds, group))
    return tuple(zip(counts, extra, strict=True))
