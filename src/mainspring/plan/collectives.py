"""Which collectives a rank takes part in during one step of `train`, how often, and with how many bytes.

Exact, message by message, for what the executor runs; `traffic` prices the same in seconds. Bytes are of the whole
tensor for a gather and of the input for the others. Two things are left to the reader: how many buckets
DistributedDataParallel forms of more than 25 MiB, and how evenly tokens choose experts: the bytes of an exchange are
the mean over the ranks of its group.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mainspring.plan import blocks
from mainspring.plan.flops import ELEMENT_BYTES
from mainspring.plan.shards import divided, padded, part, rows_of, trained
from mainspring.spec import AXES, BlockSpec, ModelSpec, Operation, Plan, Rows

WORD_BYTES = 4  # parameters and gradients are fp32 at either precision
COUNT_BYTES = 8
STATES = 3  # of a parameter: itself and Adam's two moments
EXPERT_MATRICES = 3  # gate, up and down
ENDS = ("embedding", "head")
STEP_BYTES = 32  # the loss, its count, the square of the gradient's norm and whether to leave, in float64

# Stands at the end of a model that is no chain: all of its blocks are units of their own, what is left comes first.
NOTHING = BlockSpec(
    name="",
    count=1,
    params=0,
    flops_per_token=0.0,
    attention_flops_per_token2=0.0,
    activation_bytes_per_token=0.0,
    output_bytes_per_token=0.0,
)

Key = tuple[Operation, int]
"""An operation and how many ranks take part."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Messages of one kind in a step, and the bytes of all of them."""

    messages: int = 0
    payload_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Stage:
    """A stage of a rank: its units, and where it lies in the chain."""

    number: int
    first: int
    held: tuple[BlockSpec, ...]
    recompute: bool


def collectives(model: ModelSpec, plan: Plan, rank: int) -> dict[Key, Amount]:
    """Everything that `rank` sends or gathers in one step of `plan`, after the first, by kind and size of group."""
    return _Sender(model, plan, rank).all()


class _Sender:
    """Adds up the messages of one rank."""

    def __init__(self, model: ModelSpec, plan: Plan, rank: int) -> None:
        self._model, self._plan, mesh = model, plan, plan.mesh
        self._at = at = dict[str, int]()
        for axis in reversed(AXES):
            rank, at[axis] = divmod(rank, getattr(mesh, axis))
        self._count = plan.microbatches[(at["dp"] * mesh.fsdp + at["fsdp"]) * mesh.ep + at["ep"]] * plan.copies
        self._units = blocks.units(model) if model.chain else (*blocks.units(model), NOTHING)
        self._stages = tuple(_stages(plan, at["pp"], self._units))
        self._tokens = plan.microbatch // plan.copies * plan.seq_len // mesh.cp
        # Autocast leaves the residual stream and what norms give in float32, and narrows what matrices give.
        self._narrow = ELEMENT_BYTES[plan.precision] / model.element_bytes
        self._wide = WORD_BYTES / model.element_bytes
        self._stream = round(blocks.stream_bytes(model) * self._wide) * self._tokens
        self._sum = round(blocks.stream_bytes(model) * self._narrow) * self._tokens
        self._messages: Counter[Key] = Counter()
        self._bytes: Counter[Key] = Counter()
        # One table of words serves both ends.
        ends = any(fnmatchcase(end, pattern) for end in ENDS for pattern in plan.replicate)
        self._whole = (*plan.replicate, *(ENDS if ends else ()))

    def all(self) -> dict[Key, Amount]:
        """The sums."""
        mesh = self._plan.mesh
        for stage in self._stages:
            self._tensor(stage)
            self._context(stage)
            self._experts(stage)
            self._hand_on(stage)
            self._shards(stage)
        self._loads()
        self._once_over_tensor()
        self._replicas()
        self._ties()
        self._add("all_reduce", mesh.world, 1, STEP_BYTES)
        return self._sums()

    def moving(self, blocks: Collection[int]) -> dict[Key, Amount]:
        """The sums of re-placing the experts of `blocks`."""
        mesh = self._plan.mesh
        for stage in self._stages:
            for place, block in enumerate(stage.held, start=stage.first):
                if place not in blocks:
                    continue
                _, experts = self._local(block)
                # Matrices are of one size; frozen ones have no moments.
                share = part(trained(experts), 1, 0) / max(1, part(experts, 1, 0))
                count = EXPERT_MATRICES + (STATES - 1) * round(share * EXPERT_MATRICES)
                if self._plan.zero:
                    each = WORD_BYTES * mesh.shards * padded(experts, mesh.shards) // EXPERT_MATRICES
                    self._add("all_gather", mesh.shards, count, each)
                self._add("all_to_all", mesh.ep, count, WORD_BYTES * part(experts, 1, 0) // EXPERT_MATRICES)
        return self._sums()

    def _sums(self) -> dict[Key, Amount]:
        return {key: Amount(self._messages[key], self._bytes[key]) for key in self._messages}

    def _add(self, operation: Operation, ranks: int, messages: int, each_bytes: int) -> None:
        if ranks > 1 and messages and each_bytes:
            self._messages[operation, ranks] += messages
            self._bytes[operation, ranks] += messages * each_bytes

    def _divided(self, block: BlockSpec) -> bool:
        tp = self._plan.mesh.tp
        fits = bool(block.divisions) and all(size % tp == 0 for _, size in block.divisions)
        return tp > 1 and fits and not any(fnmatchcase(block.name, pattern) for pattern in self._whole)

    def _tensor(self, stage: _Stage) -> None:
        plan, tp, count = self._plan, self._plan.mesh.tp, self._count
        for place, block in enumerate(stage.held, start=stage.first):
            inside = 0 < place < len(self._units) - 1
            if not self._divided(block):
                continue
            forward, backward = block.reductions
            # Recomputation stops short of the last sum of a block, which nothing in it needs.
            again = forward - 1 if stage.recompute and inside else 0
            if not inside:
                self._add("all_reduce", tp, count * (forward + backward), self._stream)
            elif not plan.sequence_parallel:
                self._add("all_reduce", tp, count * (forward + again), self._sum)
                self._add("all_reduce", tp, count * backward, self._stream)
            else:
                entered = forward if stage.recompute else 0
                self._add("all_gather", tp, count * (forward + entered), self._stream)
                self._add("all_gather", tp, count * backward, self._sum)
                self._add("reduce_scatter", tp, count * (forward + again), self._sum)
                self._add("reduce_scatter", tp, count * backward, self._stream)
            if place == len(self._units) - 1:
                scores = round(block.output_bytes_per_token * self._narrow)
                self._add("all_gather", tp, count, scores * self._tokens)
        if plan.sequence_parallel:
            # The first cut is put together again in backward alone.
            ends = stage.first <= 1 < stage.first + len(stage.held) and self._model.differentiated(self._units[0])
            ends_last = stage.first <= len(self._units) - 2 < stage.first + len(stage.held)
            self._add("all_gather", tp, count * (ends + ends_last), self._stream)

    def _context(self, stage: _Stage) -> None:
        cp, tp = self._plan.mesh.cp, self._plan.mesh.tp
        for block in stage.held:
            each = (
                round(block.kv_bytes_per_token * self._narrow)
                * self._tokens
                * cp
                // (tp if self._divided(block) else 1)
            )
            self._add("all_gather", cp, self._count * (1 + stage.recompute), each)
            self._add("reduce_scatter", cp, self._count, each)

    def _experts(self, stage: _Stage) -> None:
        mesh, plan = self._plan.mesh, self._plan
        for block in stage.held:
            if not block.experts:
                continue
            cut = mesh.tp if plan.sequence_parallel else 1
            rows = self._stream * block.experts_per_token // cut
            self._add("all_to_all", mesh.ep, self._count * (4 + 2 * stage.recompute), rows)
            self._add("all_to_all", mesh.ep, self._count * (1 + stage.recompute), COUNT_BYTES * block.experts)

    def _loads(self) -> None:
        """How many tokens each expert saw."""
        mesh = self._plan.mesh
        counts = sum(block.experts for stage in self._stages for block in stage.held)
        self._add("all_reduce", mesh.world // mesh.pp, 1, COUNT_BYTES * counts)

    def _hand_on(self, stage: _Stage) -> None:
        plan, total = self._plan, len(self._plan.stages)
        here = plan.pipeline_rank(stage.number)
        for other, cut in ((stage.number + 1, stage.first + len(stage.held)), (stage.number - 1, stage.first)):
            if 0 <= other < total and plan.pipeline_rank(other) != here:
                between_blocks = 1 < cut < len(self._units) - 1
                divided = plan.mesh.tp if plan.sequence_parallel and between_blocks else 1
                self._add("send", plan.mesh.pp, self._count, self._stream // divided)

    def _shards(self, stage: _Stage) -> None:
        """What ZeRO exchanges: each block, the rest of the stage, and experts are units of their own."""
        plan, mesh = self._plan, self._plan.mesh
        if not plan.zero:
            return
        even = len(set(plan.microbatches)) == 1
        gathers, scatters = 1, self._count if plan.zero == 2 and even and mesh.pp == 1 else 1
        if plan.zero == 3:
            # In a pipeline parameters are dropped after each forward, not after each backward.
            gathers = self._count + 1 if mesh.pp > 1 else 2 * self._count
            scatters = 1 if mesh.pp > 1 else self._count
        for rows, twice, replicas in self._sharding_units(stage):
            each, reduced = (
                WORD_BYTES * (padded(every, mesh.shards) - padded(once, mesh.shards))
                for every, once in ((rows, twice), (trained(rows), trained(twice)))
            )
            self._add("all_gather", mesh.shards, gathers, mesh.shards * each)
            self._add("reduce_scatter", mesh.shards, scatters, mesh.shards * reduced)
            self._add("all_reduce", replicas, scatters, reduced)

    def _sharding_units(self, stage: _Stage) -> Iterator[tuple[tuple[Rows, ...], tuple[Rows, ...], int]]:
        """The rows of each unit, those of them that are there twice, and over how many replicas shards are added up."""
        mesh, root, tied = self._plan.mesh, (), 0
        for place, block in enumerate(stage.held, start=stage.first):
            dense, experts = self._local(block)
            if 0 < place < len(self._units) - 1:
                yield dense, (), mesh.dp * mesh.ep
                if experts:
                    yield experts, (), mesh.dp
            else:
                root += dense
                tied += place == 0
        both_ends = tied and stage.first + len(stage.held) == len(self._units)
        yield root, self._tied() if both_ends else (), mesh.dp * mesh.ep

    def _local(self, block: BlockSpec) -> tuple[tuple[Rows, ...], tuple[Rows, ...]]:
        """Parameters of a unit on this rank before ZeRO: those that all ranks of `ep` have, and experts."""
        mesh = self._plan.mesh
        rows = divided(rows_of(block), tp=mesh.tp if self._divided(block) else 1, ep=mesh.ep)
        experts = tuple(each for each in rows if each.kind == "experts" and mesh.ep > 1)
        return tuple(each for each in rows if each not in experts), experts

    def _tied(self) -> tuple[Rows, ...]:
        rows = self._model.tied_rows or (Rows(count=self._model.tied_params, width=1, kind="rows"),)
        return divided(rows, tp=self._plan.mesh.tp if self._divided(self._units[-1]) else 1, ep=1)

    def _part(self, rows: Iterable[Rows]) -> int:
        """What ZeRO leaves this rank of `rows`."""
        mesh = self._plan.mesh
        return (
            part(rows, mesh.shards, self._at["fsdp"] * mesh.cp + self._at["cp"])
            if self._plan.zero
            else part(rows, 1, 0)
        )

    def held(self, which: Callable[[Iterable[Rows]], Iterable[Rows]] = tuple) -> tuple[int, int]:
        """Parameters of this rank, a shared one once: those that all ranks of `ep` have, and experts."""
        dense = experts = 0
        ends = 0
        for stage in self._stages:
            for place, block in enumerate(stage.held, start=stage.first):
                mine = self._local(block)
                dense, experts = dense + self._part(which(mine[0])), experts + self._part(which(mine[1]))
                ends += place in (0, len(self._units) - 1)
        return dense - (self._part(which(self._tied())) if ends == 2 else 0), experts

    def _once_over_tensor(self) -> None:
        """Gradients of what all ranks of `tp` hold but know only a part of."""
        plan, mesh = self._plan, self._plan.mesh
        summed = {"whole", "partial", "experts"} if plan.sequence_parallel else {"partial"}
        partial = 0
        for stage in self._stages:
            for place, block in enumerate(stage.held, start=stage.first):
                if 0 < place < len(self._units) - 1:
                    rows = [each for some in self._local(block) for each in some]
                    every = plan.sequence_parallel and not self._divided(block)
                    partial += self._part(each for each in trained(rows) if every or each.kind in summed)
        self._add("all_reduce", mesh.tp, 1, WORD_BYTES * partial)

    def _replicas(self) -> None:
        plan, mesh = self._plan, self._plan.mesh
        if plan.zero:
            return
        dense, experts = (WORD_BYTES * params for params in self.held(trained))
        replicas = mesh.dp * mesh.cp * mesh.ep
        self._add("all_reduce", replicas, 1, dense)
        self._add("all_reduce", mesh.dp * mesh.cp, 1, experts)

    def _ties(self) -> None:
        """A table of words that the first and the last stage both hold."""
        plan = self._plan
        ends = {plan.pipeline_rank(0), plan.pipeline_rank(len(plan.stages) - 1)}
        edges = {place for stage in self._stages for place in (stage.first, stage.first + len(stage.held) - 1)}
        holds = bool(edges & {0, len(self._units) - 1})
        if plan.mesh.pp > 1 and self._model.tied_params and holds:
            self._add("all_reduce", len(ends), 1, WORD_BYTES * self._part(trained(self._tied())))


def held_bytes(model: ModelSpec, plan: Plan, rank: int) -> int:
    """Bytes of parameters that `rank` keeps between steps; a gradient and each moment of Adam are as large."""
    return WORD_BYTES * sum(_Sender(model, plan, rank).held())


def moving(model: ModelSpec, plan: Plan, rank: int, *, blocks: Collection[int]) -> dict[Key, Amount]:
    """What `rank` sends besides in a step that ends with the experts of `blocks` (by place in the model) re-placed.

    All of a rank's experts go into the exchange, also those that come back: weights and Adam's two moments, matrix by
    matrix, each gathered first where ZeRO has cut it.
    """
    return _Sender(model, plan, rank).moving(blocks)


def _stages(plan: Plan, pipeline_rank: int, units: tuple[BlockSpec, ...]) -> Iterator[_Stage]:
    first = 0
    for number, stage in enumerate(plan.stages):
        count = stage.blocks if plan.mesh.pp > 1 else len(units)
        if plan.pipeline_rank(number) == pipeline_rank:
            yield _Stage(number, first, units[first : first + count], stage.recompute != "none")
        first += count
