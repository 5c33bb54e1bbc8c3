"""Which combinations may run at all, and which of them `train` can execute today: the one place that says so.

`refusal` states hard constraints. Three of them guard against silent damage in torch 2.13: schedules that put weight
gradients off, combined with parameters dropped after forward, give wrong gradients without an error; replicas with
unequal micro-batches that gather parameters for each of them wait for each other for ever. The executor asserts the
same function. `EXECUTABLE` grows with `train.parallel`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mainspring.plan.pipeline import SPLIT
from mainspring.spec import AXES, V_SHAPED, Mesh, Plan, Recompute, Schedule, Zero

MANY_CHUNKS = (2, 3, 4, 6, 8)  # stages of a rank that interleaved schedules are tried with


@dataclass(frozen=True, slots=True)
class Limits:
    """What the search may use. `mixed_stages` allows device kinds to differ between pipeline ranks."""

    axes: frozenset[str]
    zero: tuple[Zero, ...]
    schedules: tuple[Schedule, ...]
    recompute: tuple[Recompute, ...]
    mixed_stages: bool

    def allows(self, mesh: Mesh) -> bool:
        """Whether every axis in use is one of `axes`."""
        return all(getattr(mesh, axis) == 1 or axis in self.axes for axis in AXES)


EVERYTHING = Limits(
    axes=frozenset(AXES),
    zero=(0, 1, 2, 3),
    schedules=("1f1b", "gpipe", "interleaved", "zero_bubble", "zbv", "dualpipev"),
    recompute=("none", "selective", "full"),
    mixed_stages=True,
)
EXECUTABLE = EVERYTHING


def refusal(
    mesh: Mesh, *, zero: Zero, schedule: Schedule, chunks: int, recompute: bool, microbatches: Sequence[int]
) -> str:
    """Why this combination cannot run correctly; empty when it can. `microbatches` are those of each replica."""
    if min(microbatches) < 1:
        return f"a replica runs {min(microbatches)} micro-batches; each needs at least one"
    if zero == 3 and len(set(microbatches)) > 1:
        return "uneven micro-batches cannot gather parameters for each one: replicas would wait for each other for ever"
    if mesh.ep > 1 and len(set(microbatches)) > 1:
        return "replicas that share experts exchange tokens in every micro-batch, so theirs must be equally many"
    if mesh.pp == 1:
        return "" if chunks == 1 else f"{chunks} stages on one pipeline rank"
    if zero == 3 and schedule in SPLIT:
        return f"{schedule} puts weight gradients off, and parameters dropped after forward make them silently wrong"
    if recompute and schedule in SPLIT:
        return f"{schedule} runs backward in two halves, and recomputation would be paid for twice"
    if schedule in V_SHAPED and chunks != 2:
        return f"{schedule} needs exactly 2 stages a rank, not {chunks}"
    if schedule in ("1f1b", "gpipe") and chunks != 1:
        return f"{schedule} runs one stage a rank, not {chunks}"
    if schedule == "interleaved" and chunks < 2:
        return "interleaved needs at least 2 stages a rank"
    fewest = mesh.pp * (chunks if schedule == "dualpipev" else 1)
    if min(microbatches) < fewest:
        return f"{schedule} on {mesh.pp} pipeline ranks needs {fewest} micro-batches, there are {min(microbatches)}"
    if schedule in ("interleaved", "zero_bubble") and any(count % mesh.pp for count in microbatches):
        return f"{schedule} needs a multiple of {mesh.pp} micro-batches, there are {min(microbatches)}"
    return ""


def plan_refusal(plan: Plan) -> str:
    """Why `plan` cannot run correctly; empty when it can."""
    return refusal(
        plan.mesh,
        zero=plan.zero,
        schedule=plan.schedule,
        chunks=plan.chunks,
        recompute=plan.recompute != "none",
        microbatches=plan.microbatches,
    )


def beyond(plan: Plan, limits: Limits = EXECUTABLE) -> str:
    """What `plan` uses that `limits` do not have; empty when nothing."""
    used: list[str] = [a for a in AXES if getattr(plan.mesh, a) > 1 and a not in limits.axes]
    if plan.zero not in limits.zero:
        used.append(f"ZeRO-{plan.zero}")
    if plan.mesh.pp > 1 and plan.schedule not in limits.schedules:
        used.append(plan.schedule)
    used += sorted({stage.recompute for stage in plan.stages} - set(limits.recompute))
    if not limits.mixed_stages and len({stage.device for stage in plan.stages}) > 1:
        used.append("device kinds by stage")
    return ", ".join(used)
