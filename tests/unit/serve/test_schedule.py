"""The step planner, simulated: budgets hold, the oldest comes first, and every request finishes."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from mainspring.serve.engine.blocks import block_count
from mainspring.serve.engine.schedule import Limits, Load, StepPlan, plan_step

SIZE = 4


@dataclass(slots=True)
class Job:
    key: int
    prompt: int
    answer: int
    tokens: int = 0
    computed: int = 0
    held: int = 0


def simulate(jobs: list[Job], *, blocks: int, limits: Limits) -> list[StepPlan]:
    """Run to the end as the engine would, checking every promise at every step."""
    waiting, running = list(jobs), []
    for job in jobs:
        job.tokens = job.prompt
    plans: list[StepPlan] = []
    while waiting or running:
        free = blocks - sum(job.held for job in running)
        plan = plan_step(
            [Load(job.key, job.tokens, job.computed, job.held) for job in running],
            [Load(job.key, job.tokens, 0) for job in waiting],
            free=free,
            limits=limits,
        )
        plans.append(plan)
        assert plan.chunks, "a step without work is a deadlock"
        assert sum(count for _, count in plan.chunks) <= limits.step_tokens
        known = {job.key: job for job in (*running, *waiting)}
        newest_kept = max((job.key for job in running if job.key not in plan.preempt), default=-1)
        assert all(key > newest_kept for key in plan.preempt), "an older sequence was preempted by a newer one"
        for key in plan.preempt:
            known[key].computed = known[key].held = 0
            running.remove(known[key])
        waiting = sorted([*waiting, *(known[key] for key in plan.preempt)], key=lambda job: job.key)
        for key in plan.admit:
            waiting.remove(known[key])
            running.append(known[key])
        assert len(running) <= limits.max_sequences
        for key, count in plan.chunks:
            job = known[key]
            assert job in running
            assert 1 <= count <= job.tokens - job.computed
            job.held = block_count(job.tokens, SIZE)
            job.computed += count
            job.tokens += job.computed == job.tokens
        assert sum(job.held for job in running) <= blocks
        running = sorted((job for job in running if job.tokens < job.prompt + job.answer), key=lambda job: job.key)
    return plans


@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=12),
    spare=st.integers(0, 10),
    sequences=st.integers(1, 5),
    budget=st.integers(0, 12),
)
def test_every_request_finishes_within_every_budget(
    sizes: list[tuple[int, int]], spare: int, sequences: int, budget: int
) -> None:
    jobs = [Job(key, prompt, answer) for key, (prompt, answer) in enumerate(sizes)]
    blocks = max(block_count(prompt + answer, SIZE) for prompt, answer in sizes) + spare
    simulate(jobs, blocks=blocks, limits=Limits(sequences + budget, sequences, SIZE))
    assert all(job.tokens == job.prompt + job.answer for job in jobs)


def test_a_long_prompt_never_stalls_a_decode() -> None:
    limits = Limits(step_tokens=8, max_sequences=4, block_tokens=SIZE)
    plan = plan_step([Load(0, 10, 9, 3), Load(1, 100, 20, 25)], [Load(2, 5, 0)], free=9, limits=limits)
    assert plan.chunks == ((0, 1), (1, 7))


def test_cached_tokens_cost_no_budget() -> None:
    limits = Limits(step_tokens=8, max_sequences=4, block_tokens=SIZE)
    plan = plan_step([], [Load(0, 100, 96), Load(1, 5, 4)], free=99, limits=limits)
    assert plan.chunks == ((0, 4), (1, 1))
    assert plan.admit == (0, 1)


def test_the_newest_is_preempted_and_nobody_is_admitted_meanwhile() -> None:
    limits = Limits(step_tokens=8, max_sequences=4, block_tokens=SIZE)
    running = [Load(0, 9, 8, 2), Load(1, 6, 5, 2), Load(2, 6, 5, 2)]
    plan = plan_step(running, [Load(3, 1, 0)], free=0, limits=limits)
    assert plan == StepPlan(chunks=((0, 1), (1, 1)), admit=(), preempt=(2,))
