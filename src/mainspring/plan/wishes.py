"""What a request may not be, and why: each wish that cannot be granted is refused with its own reason.

Most reasons are known before anything is tried. What only shows once wishes meet machines, batch and schedules is
gathered from everything that was in question, and the reason that refused most of it is given.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import get_args

from mainspring.plan.limits import refusal
from mainspring.plan.space import Space, indivisible, looks_along, tensor_parallel
from mainspring.spec import (
    AXES,
    Cluster,
    DoesNotFit,
    Mesh,
    Objective,
    SpecError,
    TrainConfig,
    Unavailable,
)

ASKED = 2000  # frames, of which reasons are gathered


def check(space: Space, objective: Objective) -> None:
    """Refuse a request that makes no sense, with its numbers."""
    model, cluster, config, ranks = space.model, space.cluster, space.config, space.ranks
    if objective not in get_args(Objective):
        raise SpecError(f"no objective {objective!r}", hint="known: " + ", ".join(get_args(Objective)))
    if not model.blocks or model.params < 1:
        raise SpecError(f"model {model.name!r} has no parameters to train")
    for block in model.blocks:
        if block.experts and not block.expert_params:
            raise SpecError(f"block {block.name!r} of {model.name!r} has {block.experts} experts without parameters")
    most = space.capacity()
    if not most:
        raise Unavailable(f"cluster {cluster.name!r} has no healthy device", hint=_sickness(cluster))
    if objective == "cost":
        free = {d.name for node in cluster.nodes for d in node.devices if not d.price_usd_per_hour}
        if free:
            raise SpecError(
                f"no price is known for {', '.join(sorted(free))}, so plans cannot be compared by cost",
                hint="give price_usd_per_hour in the cluster file, or choose by time or energy",
            )
    if ranks is not None:
        _check_ranks(cluster, config, ranks, most, alone=space.limits.axes <= {"dp", "fsdp"})
    for refuse in (_check_axes, _check_context, _check_pipeline, _check_sharding, _check_places):
        refuse(space)


def _check_ranks(cluster: Cluster, config: TrainConfig, ranks: int, most: int, *, alone: bool) -> None:
    if ranks < 1:
        raise SpecError(f"ranks must be at least 1, got {ranks}")
    if ranks > most:
        raise DoesNotFit(
            f"{ranks} ranks were asked for, cluster {cluster.name!r} has room for {most}",
            hint="one rank needs one accelerator, or one core of a host without accelerators",
        )
    if alone and config.global_batch < ranks:
        raise SpecError(
            f"a global batch of {config.global_batch} sequences is smaller than {ranks} ranks",
            hint=f"raise global_batch to a multiple of {ranks}, or use {config.global_batch} ranks",
        )


def _check_axes(space: Space) -> None:
    """Refuse degrees that the model or what can be executed does not have."""
    hints, model, limits = space.hints, space.model, space.limits
    for axis in ("pp", "cp", "ep", "tp"):
        asked: int = getattr(hints, axis)
        if asked > 1 and axis not in limits.axes:
            raise SpecError(f"{axis} {asked} was asked for, and training cannot execute the axis {axis} yet")
    if hints.tp > 1 and tensor_parallel(model, hints.tp, hints) is None:
        raise indivisible(model, hints.tp)
    if hints.sequence_parallel and hints.tp == 1:
        raise SpecError(
            "sequence_parallel was asked for with tp 1: it cuts what lies between blocks that tp divides",
            hint="ask for tp = 2 or more too, or leave sequence_parallel out",
        )
    experts = sorted({block.experts for block in model.blocks if block.experts})
    if hints.ep > 1 and not space.divides_experts(hints.ep):
        said = f"{experts} experts" if experts else "no experts that ranks could share, as MoeDecoder has"
        raise SpecError(f"ep {hints.ep} was asked for, {model.name} has {said}", hint="ep must divide their number")
    replicas = math.prod(max(1, getattr(hints, axis)) for axis in ("dp", "fsdp", "ep"))
    if replicas > space.config.global_batch:
        raise SpecError(
            f"a global batch of {space.config.global_batch} sequences is smaller than {replicas} replicas",
            hint=f"raise global_batch to a multiple of {replicas}",
        )


def _check_context(space: Space) -> None:
    """Refuse to share a sequence that cannot be shared so."""
    cp, model, length = space.hints.cp, space.model, space.config.seq_len
    if cp <= 1:
        return
    if model.unshared:
        raise SpecError(
            f"cp {cp} was asked for, and ranks cannot share a sequence of {model.name}: {model.unshared}",
            hint="leave cp out",
        )
    if not looks_along(model):
        raise SpecError(
            f"cp {cp} was asked for, and no block of {model.name} is known to look along a sequence",
            hint="leave cp out",
        )
    if length % cp:
        degrees = ", ".join(str(1 << power) for power in range(1, 7) if length % (1 << power) == 0) or "none"
        raise SpecError(f"cp {cp} does not divide seq_len {length}", hint=f"powers of two that do: {degrees}")


def _check_pipeline(space: Space) -> None:
    """Refuse pipelines that the model has no blocks for, and schedules that do not run what else was asked for."""
    hints, model = space.hints, space.model
    asked = _pipeline_wishes(space)
    if not asked:
        return
    if hints.pp == 1:
        raise SpecError(
            f"{asked} was asked for with pp 1, which is no pipeline", hint="leave pp out, or ask for pp = 2 or more"
        )
    if not model.chain:
        said = f": {model.unchained}" if model.unchained else ""
        raise SpecError(
            f"{asked} was asked for, {model.name} is no chain of blocks that could be cut{said}",
            hint=f"leave {asked.split()[0]} out, or have the model hand one tensor on through a ModuleList, each entry "
            "called once",
        )
    if hints.pp > space.unit_count:
        raise SpecError(f"{asked} was asked for, {model.name} has {space.unit_count} blocks to cut between")
    pp, zero = max(2, hints.pp), hints.zero or 0
    known = space.chunk_counts(hints.schedule)
    counts = (hints.chunks,) if hints.chunks else known
    recompute = hints.recompute not in (None, "none")
    for count in counts:
        enough = pp * max(2, count)
        schedules = (hints.schedule,) if hints.schedule else space.limits.schedules
        reasons = [
            refusal(Mesh(pp=pp), zero=zero, schedule=each, chunks=count, recompute=recompute, microbatches=(enough,))
            for each in schedules
        ]
        if all(reasons):
            raise SpecError(reasons[0] if hints.schedule else f"no schedule: {'; '.join(reasons)}", hint=CLASH)
    if hints.chunks and hints.chunks not in known:
        stages = ", ".join(map(str, known))
        word = hints.schedule or "any schedule"
        raise SpecError(f"chunks {hints.chunks} was asked for, {word} is planned with {stages} stages a rank")
    if pp * min(counts) > space.unit_count:
        fewest = pp * min(counts)
        raise SpecError(
            f"{asked} makes {fewest} stages at least, {model.name} has {space.unit_count} blocks to cut between"
        )


CLASH = "these wishes exclude each other: leave one of them out"


def _pipeline_wishes(space: Space) -> str:
    """The wishes that only a pipeline can grant."""
    hints = space.hints
    asked = [f"pp {hints.pp}"] if hints.pp > 1 else []
    asked += [f"schedule {hints.schedule}"] if hints.schedule else []
    asked += [f"chunks {hints.chunks}"] if hints.chunks > 1 else []
    return " with ".join(asked)


def _check_sharding(space: Space) -> None:
    """Refuse ZeRO stages that do not go with the degrees that were asked for."""
    hints = space.hints
    spread = [f"{axis} {getattr(hints, axis)}" for axis in ("fsdp", "cp") if getattr(hints, axis) > 1]
    if hints.zero == 0 and spread:
        raise SpecError(
            f"zero 0 was asked for, which spreads nothing, with {' x '.join(spread)}, which says over how many ranks",
            hint=f"ask for zero = 1, 2 or 3, or leave {spread[0].split()[0]} out",
        )
    if hints.zero and hints.fsdp == hints.cp == 1:
        raise SpecError(
            f"zero {hints.zero} was asked for, and fsdp 1 leaves no ranks to spread state over",
            hint="leave fsdp out, or ask for zero = 0",
        )


def _check_places(space: Space) -> None:
    """Refuse degrees that the ranks asked for, or those there are, cannot make up."""
    hints, ranks, most = space.hints, space.ranks, space.capacity()
    degrees = [(axis, getattr(hints, axis)) for axis in AXES if getattr(hints, axis) > 1]
    if not hints.pp and (asked := _pipeline_wishes(space)):
        degrees.insert(0, (f"{asked} on pp", 2))
    if hints.sequence_parallel and not hints.tp:
        degrees.append(("sequence_parallel on tp", 2))
    least = math.prod(degree for _, degree in degrees)
    said = " x ".join(f"{axis} {degree}" for axis, degree in degrees)
    if least > most:
        raise DoesNotFit(
            f"{said} needs {least} ranks, cluster {space.cluster.name!r} has room for {most}",
            hint="ask for lower degrees, or plan for more machines",
        )
    fixed = math.prod(max(1, getattr(hints, axis)) for axis in AXES)
    if ranks is not None and (ranks % fixed or ranks < least):
        below, above = ranks // least * least, -(-(ranks + 1) // least) * least
        near = [str(each) for each in (below, above) if 0 < each <= most]
        raise SpecError(
            f"{ranks} ranks were asked for, which is no multiple of {said}"
            + (f" = {least}" if len(degrees) > 1 else ""),
            hint=f"ask for {' or '.join(near)} ranks, or for other degrees",
        )
    widest = max(kind.most_per_node for kind in space.kinds)
    if hints.tp > widest:
        raise SpecError(
            f"tp {hints.tp} needs as many devices of one node, cluster {space.cluster.name!r} has at most {widest}",
            hint=f"ask for tp = {widest} or less",
        )
    if hints.sequence_parallel and not space.cuts_along():
        raise SpecError(
            f"sequence_parallel was asked for, and no tp that may be used here cuts {space.model.name} with seq_len "
            f"{space.config.seq_len} along the sequence",
            hint="leave sequence_parallel out; it needs a chain of blocks and a seq_len that cp x tp divides",
        )


def impossible(space: Space) -> SpecError:
    """Why there is no choice at all, though each wish alone could be granted."""
    hints, config = space.hints, space.config
    replicas = math.prod(max(1, getattr(hints, axis)) for axis in ("dp", "fsdp", "ep"))
    frames = list(itertools.islice(space.frames(), ASKED))
    if not frames or config.global_batch % (replicas * max(1, config.microbatch)):
        return _indivisible_batch(space)
    arranged = [frame for frame in frames if space.arrangements(frame)]
    reasons = Counter(reason for frame in arranged for reason in _refusals(space, frame.mesh, rows=frame.cut.rows))
    if not reasons:
        return _unarranged(space)
    (reason, _), *_ = reasons.most_common(1)
    return SpecError(reason, hint="ask for less at once, or change global_batch or microbatch")


def _refusals(space: Space, mesh: Mesh, *, rows: int) -> Iterator[str]:
    """Why no schedule runs on `mesh`, however its replicas are arranged."""
    hints = space.hints
    count = space.config.global_batch // rows // mesh.replicas
    if space.config.global_batch % (rows * mesh.replicas):
        yield (
            f"a global batch of {space.config.global_batch} sequences is not a multiple of {mesh.replicas} replicas x "
            f"micro-batches of {rows}"
        )
        return
    if mesh.pp == 1:
        return
    for schedule in (hints.schedule,) if hints.schedule else space.limits.schedules:
        for chunks in (hints.chunks,) if hints.chunks else space.chunk_counts(schedule):
            said = refusal(
                mesh,
                zero=hints.zero or 0,
                schedule=schedule,
                chunks=chunks,
                recompute=hints.recompute not in (None, "none"),
                microbatches=(count,),
            )
            if said:
                yield said


def _unarranged(space: Space) -> SpecError:
    """There are places, and no arrangement of replicas on them."""
    hints = space.hints
    asked = " x ".join(f"{axis} {getattr(hints, axis)}" for axis in AXES if getattr(hints, axis))
    if hints.zero is not None:
        asked += f"{' with ' if asked else ''}zero {hints.zero}"
    where = f"{space.ranks} ranks" if space.ranks else f"the ranks of {space.cluster.name!r}"
    return SpecError(
        f"{asked or 'what was asked for'} does not lie on {where}: axes fit into a node or start on whole ones, and "
        "state is spread over fsdp and cp with zero 1, 2 and 3 alone",
        hint="ask for fewer degrees at once; their product must be the number of ranks",
    )


def _indivisible_batch(space: Space) -> SpecError:
    """No place at all: the batch has no even cut."""
    config, hints, ranks = space.config, space.hints, space.ranks
    batch = config.global_batch
    replicas = max(1, hints.dp) * max(1, hints.fsdp) * max(1, hints.ep)
    inner = max(1, hints.pp) * max(1, hints.tp) * max(1, hints.cp)
    count = replicas if replicas > 1 else (ranks or inner) // inner
    unit = max(1, count) * max(1, config.microbatch)
    word = "replicas" if replicas > 1 or inner > 1 else "ranks"
    said = f"{count} {word}" + (f" x micro-batches of {config.microbatch}" if config.microbatch else "")
    if batch % unit == 0:
        return _unarranged(space)
    below, above = batch // unit * unit, -(-batch // unit) * unit
    near = f"{below} or {above}" if below else str(above)
    return SpecError(
        f"a global batch of {batch} sequences is not a multiple of {said} = {unit}",
        hint=f"set global_batch to {near}, or let the plan choose microbatch and ranks",
    )


def _sickness(cluster: Cluster) -> str:
    said = [f"{h.device}: {', '.join(h.reasons)}" for node in cluster.nodes for h in node.health if h.reasons]
    return "; ".join(said) or "describe machines in a cluster file to plan for them"
