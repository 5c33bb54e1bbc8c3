"""What a rank of a plan sends in one step, and what it holds."""

from parallel_pool import Order, trainer_of

from mainspring.spec import Task
from mainspring.train.messages import Counter, Counts


def count_second_step(task: Task, order: Order) -> tuple[Counts, dict[str, int], int]:
    """The counts of a rank's second step (in the first, pipelines learn their shapes), other calls, bytes held."""
    with trainer_of(task, order) as trainer:
        steps = trainer.steps()
        next(steps)
        counter = Counter()
        with counter:
            next(steps)
        held = sum(
            (p.to_local() if hasattr(p, "to_local") else p).nbytes for p in trainer._parallel._state.parameters.values()
        )
    return counter.counts, counter.other, held
