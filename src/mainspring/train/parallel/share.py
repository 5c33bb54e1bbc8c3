"""Which rows of each global batch a rank works on, and which plans are refused before anything starts.

Refused here are the plans whose execution would hang or be silently wrong; the planner does not emit them, but a plan
is a file that anybody may edit.
"""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.spec import AXES, Mesh, Plan, SpecError

# Schedules that compute the gradients of weights apart from those of inputs. With parameters that are dropped after
# forward (ZeRO-3) torch 2.13 then computes wrong gradients without a word: tests/unit/train/parallel has the canary.
SPLIT_BACKWARD = frozenset({"zero_bubble", "zbv", "dualpipev"})
ONE_STAGE_PER_RANK = frozenset({"gpipe", "1f1b"})


@dataclass(frozen=True, slots=True)
class Share:
    """What one data replica does in a step: `count` micro-batches of `rows` rows from row `first` of the batch."""

    first: int
    count: int
    rows: int

    @property
    def all_rows(self) -> int:
        """How many rows of the global batch are this replica's."""
        return self.count * self.rows


def share_of(plan: Plan, rank: int) -> Share:
    """The part of each global batch that `plan` gives `rank`. Raises `SpecError` for a plan that must not run."""
    check_plan(plan)
    replica = replica_of(plan.mesh, rank)
    counts = plan.microbatches
    return Share(first=sum(counts[:replica]) * plan.microbatch, count=counts[replica], rows=plan.microbatch)


def replica_of(mesh: Mesh, rank: int) -> int:
    """The number of the data replica that `rank` belongs to: replicas count row-major over dp, fsdp and ep."""
    at: dict[str, int] = {}
    for axis in reversed(AXES):
        rank, at[axis] = divmod(rank, getattr(mesh, axis))
    return (at["dp"] * mesh.fsdp + at["fsdp"]) * mesh.ep + at["ep"]


def check_plan(plan: Plan) -> None:
    """Raise `SpecError` for a plan that cannot be executed, or would be executed wrongly."""
    _check_batch(plan)
    _check_uneven(plan)
    _check_pipeline(plan)
    _check_copies(plan)
    mesh = plan.mesh
    if plan.seq_len % (mesh.cp * (mesh.tp if plan.sequence_parallel else 1)):
        raise SpecError(
            f"a sequence of {plan.seq_len} tokens is no multiple of the {mesh.label} ranks that share it",
            hint="change seq_len, or lower cp or tp",
        )


def _check_batch(plan: Plan) -> None:
    counts, replicas = plan.microbatches, plan.mesh.replicas
    if len(counts) != replicas or min(counts) < 1:
        raise SpecError(f"the plan gives micro-batches {counts} to {replicas} replicas; each needs at least one")
    if any(stage.microbatches != counts for stage in plan.stages):
        raise SpecError("the stages of the plan run different numbers of micro-batches")
    if sum(counts) * plan.microbatch != plan.global_batch:
        raise SpecError(
            f"micro-batches {counts} of {plan.microbatch} rows make {sum(counts) * plan.microbatch} rows, "
            f"the global batch has {plan.global_batch}"
        )


def _check_uneven(plan: Plan) -> None:
    counts, mesh = plan.microbatches, plan.mesh
    if len(set(counts)) == 1:
        return
    if plan.zero == 3:
        raise SpecError(
            f"uneven micro-batches {counts} cannot re-gather parameters for each one: replicas would wait for ever",
            hint="set zero = 2 in the plan",
        )
    groups = [counts[first : first + mesh.ep] for first in range(0, len(counts), mesh.ep)]
    if any(len(set(group)) > 1 for group in groups):
        raise SpecError(
            f"replicas that share experts exchange tokens in every micro-batch, {counts} are uneven among them",
            hint="make the micro-batches of neighbouring replicas equal, or set ep = 1",
        )


def _check_copies(plan: Plan) -> None:
    if plan.copies == 1:
        return
    mesh = plan.mesh
    if mesh.tp == 1 or mesh.pp * mesh.ep > 1 or plan.zero:
        raise SpecError(
            f"copies of a micro-batch hide the sums of tensor parallelism beside dp and cp alone, the plan is "
            f"{mesh.label} with ZeRO-{plan.zero}",
            hint="set copies = 1 in the plan",
        )
    if plan.microbatch % plan.copies:
        raise SpecError(
            f"a micro-batch of {plan.microbatch} rows cannot be cut into {plan.copies} equal copies",
            hint="set copies = 1 in the plan, or microbatch to a multiple of them",
        )


def _check_pipeline(plan: Plan) -> None:
    if plan.mesh.pp == 1:
        if len(plan.stages) > 1:
            raise SpecError(f"the plan has {len(plan.stages)} stages and no pipeline", hint="set pp in the plan's mesh")
        return
    if plan.schedule in SPLIT_BACKWARD and plan.zero == 3:
        raise SpecError(
            f"the schedule {plan.schedule} computes wrong gradients when ZeRO-3 drops parameters after forward",
            hint="set zero = 2 in the plan, or the schedule to 1f1b or interleaved",
        )
    if plan.schedule in SPLIT_BACKWARD and any(stage.recompute != "none" for stage in plan.stages):
        raise SpecError(
            f"the schedule {plan.schedule} runs backward in two halves, which recomputation would pay for twice",
            hint='set recompute = "none" in the plan, or the schedule to 1f1b or interleaved',
        )
    if plan.schedule in ONE_STAGE_PER_RANK and plan.chunks != 1:
        raise SpecError(f"the schedule {plan.schedule} has one stage on each rank, the plan {plan.chunks}")
    if plan.schedule in ("zbv", "dualpipev") and plan.chunks != 2:
        raise SpecError(f"the schedule {plan.schedule} has two stages on each rank, the plan {plan.chunks}")
    if plan.schedule in ("1f1b", "dualpipev") and min(plan.microbatches) < len(plan.stages):
        raise SpecError(
            f"{plan.schedule} fills {len(plan.stages)} stages with as many micro-batches, a replica has "
            f"{min(plan.microbatches)}",
            hint="lower microbatch, or use gpipe or zbv",
        )
    if plan.schedule in ("interleaved", "zero_bubble"):
        _check_rounds(plan)


def _check_rounds(plan: Plan) -> None:
    for count in set(plan.microbatches):
        rounds = max(1, count // plan.mesh.pp)
        if count % rounds:
            raise SpecError(
                f"the schedule {plan.schedule} goes round {plan.mesh.pp} ranks in {rounds} rounds, "
                f"{count} micro-batches are no multiple of that",
                hint=f"give each replica a multiple of {plan.mesh.pp} micro-batches",
            )
