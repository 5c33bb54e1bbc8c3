"""What a rank of a plan sends in one step, and what it holds."""

from dataclasses import dataclass

from parallel_pool import Order, trainer_of

from mainspring.spec import Task
from mainspring.train.messages import Counter, Counts
from mainspring.train.parallel import local


@dataclass(frozen=True)
class Sent:
    """What a rank sent in its second step (in the first, pipelines learn their shapes), and what it holds."""

    counts: Counts
    other: dict[str, int]
    held_bytes: int
    moved: frozenset[str]
    """Layers whose experts changed places."""


def send_second_step(task: Task, order: Order) -> Sent:
    with trainer_of(task, order) as trainer:
        steps = trainer.steps()
        next(steps)
        before = trainer._parallel.slots
        with Counter() as counter:
            next(steps)
        moved = frozenset(name for name, slots in trainer._parallel.slots.items() if slots != before[name])
        held = sum(local(p).nbytes for p in trainer._parallel._state.parameters.values())
    return Sent(counter.counts, counter.other, held, moved)
