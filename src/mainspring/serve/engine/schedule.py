"""Which sequences compute how many tokens in the next step. Pure: no tensors, no clock, no locks.

One token budget per step (Sarathi-Serve, Agrawal et al. 2024): every decoding sequence first, one token each, then
the prompts in arrival order, cut into chunks, so that a long prompt never stalls the streams of others. When the
blocks run out, the newest sequence is preempted: it gives everything back and is computed again later. The oldest
is therefore never preempted by a newer one, which is why every request finishes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mainspring.serve.engine.blocks import block_count


@dataclass(frozen=True, slots=True)
class Load:
    """What a sequence asks for: `tokens` known so far, of which `computed` have keys, and the blocks it holds.

    For a waiting sequence `computed` is what the prefix cache would give it.
    """

    key: int
    tokens: int
    computed: int
    held: int = 0

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return self.tokens - self.computed


@dataclass(frozen=True, slots=True)
class Limits:
    """The engine's limits; `step_tokens` is at least `max_sequences`, so that a prompt always gets a share."""

    step_tokens: int
    max_sequences: int
    block_tokens: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """`chunks` are (key, tokens to compute); `admit` and `preempt` are applied first, `preempt` newest first."""

    chunks: tuple[tuple[int, int], ...]
    admit: tuple[int, ...]
    preempt: tuple[int, ...]


def plan_step(running: Sequence[Load], waiting: Sequence[Load], *, free: int, limits: Limits) -> StepPlan:
    """Plan one step for `running` and `waiting`, both oldest first, with `free` blocks to hand out."""
    alive = list(running)
    chunks: list[tuple[int, int]] = []
    preempt: list[int] = []
    budget = limits.step_tokens
    for load in [load for load in running if load.remaining == 1]:
        growth = block_count(load.tokens, limits.block_tokens) - load.held
        while growth > free and load.key not in preempt:
            victim = alive.pop()
            preempt.append(victim.key)
            free += victim.held
        if load.key not in preempt:
            free -= growth
            chunks.append((load.key, 1))
            budget -= 1
    for load in alive:
        if load.remaining > 1 and budget > 0:
            chunks.append((load.key, min(load.remaining, budget)))
            budget -= chunks[-1][1]
    admit: list[int] = []
    for load in () if preempt else waiting:
        need = block_count(load.tokens, limits.block_tokens)
        if len(alive) + len(admit) >= limits.max_sequences or budget <= 0 or need > free:
            break
        free -= need
        admit.append(load.key)
        chunks.append((load.key, min(load.remaining, budget)))
        budget -= chunks[-1][1]
    return StepPlan(chunks=tuple(chunks), admit=tuple(admit), preempt=tuple(preempt))
