"""What one choice of mesh, micro-batch, recomputation and sharding costs in bytes and seconds.

The communication is what `train` performs. Replicas (dp) reduce whole gradients once a step. ZeRO-2 gathers once and
scatters once a step. ZeRO-3 gathers twice and scatters once for each micro-batch; with dp outside, the shards are
then reduced across replicas. Accelerators hide part of it behind arithmetic: scattering behind the backward it
belongs to, gathering behind the forward. A host CPU hides nothing: its cores do both.
"""

import math
from dataclasses import dataclass

from mainspring.plan import network
from mainspring.plan.flops import Work, microbatch_work, work_s
from mainspring.plan.layout import HOST, Offer, even_count, fastest_counts
from mainspring.plan.memory import USABLE, WORD_BYTES, rank_memory, shard_params, units
from mainspring.plan.network import Ring, gather_s, reduce_s
from mainspring.spec import Cluster, MemoryEstimate, Mesh, ModelSpec, Recompute, TimeEstimate, TrainConfig

HIDDEN = 0.8  # the share of the arithmetic beside it that an accelerator's communication can hide behind
BUCKET_BYTES = 25 * 1024**2  # DistributedDataParallel's own
ADAM_TRAFFIC_BYTES = 28  # per parameter: reads it, its gradient and two moments, writes all but the gradient


@dataclass(frozen=True, slots=True)
class Choice:
    """One point of the search space. `mesh.world` ranks of `offer`, micro-batches of `rows` sequences."""

    offer: Offer
    mesh: Mesh
    rows: int
    recompute: Recompute
    reshard_after_forward: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a choice costs. `usable_bytes` is what the smallest rank may fill.

    `shares` has `(count, extra)` for each group of the offer: micro-batches of every rank, and how many run one more.
    """

    choice: Choice
    shares: tuple[tuple[int, int], ...]
    memory: MemoryEstimate
    usable_bytes: int
    time: TimeEstimate

    @property
    def counts(self) -> tuple[int, ...]:
        """Micro-batches of each rank."""
        found: list[int] = []
        for (_, size), (count, extra) in zip(self.choice.offer.groups, self.shares, strict=True):
            found += [count + 1] * extra + [count] * (size - extra)
        return tuple(found)

    @property
    def fits(self) -> bool:
        """Whether the fullest rank stays within what it may use."""
        return self.memory.total_bytes <= self.usable_bytes


class Estimator:
    """Estimates choices for one model, cluster and configuration; shared parts are worked out once."""

    def __init__(self, model: ModelSpec, cluster: Cluster, config: TrainConfig) -> None:
        self._model = model
        self._cluster = cluster
        self._config = config
        self._work: dict[tuple[int, Recompute], Work] = {}
        self._rings: dict[tuple[Offer, int], tuple[Ring, Ring]] = {}
        root, blocks = units(model)
        self._messages = (1 if root else 0) + sum(count for count, _ in blocks)

    def __call__(self, choice: Choice) -> Estimate | None:
        """Bytes and seconds; None when the batch cannot be cut this way."""
        config, offer = self._config, choice.offer
        total, rest = divmod(config.global_batch, choice.rows)
        if rest or len(offer.ranks) > total:
            return None
        each_s = self._microbatch_s(choice)
        shares = _shares(offer, each_s, total)
        if shares is None or (choice.reshard_after_forward and not _even(shares)):
            return None  # uneven micro-batches that re-gather would wait for each other for ever
        memory = rank_memory(
            self._model,
            choice.mesh,
            tokens=choice.rows * config.seq_len,
            microbatches=max(count + (extra > 0) for count, extra in shares),
            precision=config.precision,
            recompute=choice.recompute,
            reshard_after_forward=choice.reshard_after_forward,
        )
        return Estimate(
            choice=choice,
            shares=shares,
            memory=memory,
            usable_bytes=int(USABLE * min(rank.memory_bytes for rank, _ in offer.groups)),
            time=self._time(choice, shares, each_s),
        )

    def _microbatch_s(self, choice: Choice) -> list[float]:
        """Seconds of one micro-batch on a rank of each group."""
        key = (choice.rows, choice.recompute)
        if key not in self._work:
            self._work[key] = microbatch_work(
                self._model,
                rows=choice.rows,
                seq_len=self._config.seq_len,
                precision=self._config.precision,
                recompute=choice.recompute,
            )
        work, precision = self._work[key], self._config.precision
        return [work_s(work, rank.device, precision=precision, share=rank.share) for rank, _ in choice.offer.groups]

    def _time(self, choice: Choice, shares: tuple[tuple[int, int], ...], each_s: list[float]) -> TimeEstimate:
        groups = choice.offer.groups
        most = [count + (extra > 0) for count, extra in shares]
        busy_s = [count * each for count, each in zip(most, each_s, strict=True)]
        slowest = max(range(len(busy_s)), key=busy_s.__getitem__)
        all_s = math.fsum(
            (count * size + extra) * each
            for (count, extra), (_, size), each in zip(shares, groups, each_s, strict=True)
        )
        mean_s = busy_s[slowest] if len(groups) == 1 else min(busy_s[slowest], all_s / choice.mesh.world)
        hidden = 0.0 if any(rank.device.vendor == HOST for rank, _ in groups) else HIDDEN
        state_bytes = ADAM_TRAFFIC_BYTES * shard_params(self._model, choice.mesh.fsdp)
        return TimeEstimate(
            compute_s=mean_s,
            communication_s=self._exposed_s(choice, microbatches=most[slowest], each_s=hidden * min(each_s)),
            bubble_s=busy_s[slowest] - mean_s,
            optimizer_s=max(state_bytes / (rank.device.memory_bytes_per_s * rank.share) for rank, _ in groups),
        )

    def _exposed_s(self, choice: Choice, *, microbatches: int, each_s: float) -> float:
        """Communication of a step that nothing hides, when each micro-batch can hide `each_s` of it."""
        inner, outer = self._ring_pair(choice)
        whole = WORD_BYTES * self._model.params
        forward_s, backward_s = each_s / 3, each_s * 2 / 3
        if choice.mesh.fsdp == 1:
            return max(0.0, reduce_s(outer, whole, messages=math.ceil(whole / BUCKET_BYTES)) - backward_s)
        # Units travel through a flat buffer: packed on one side, unpacked on the other.
        packing = 4 * whole / min(rank.device.memory_bytes_per_s * rank.share for rank, _ in choice.offer.groups)
        gather = gather_s(inner, whole, messages=self._messages) + packing
        reduce = reduce_s(outer, whole / choice.mesh.fsdp, messages=self._messages)
        if choice.reshard_after_forward:
            once = max(0.0, gather - forward_s) + max(0.0, 2 * gather + reduce - backward_s)
            return microbatches * once
        return max(0.0, gather - forward_s) + max(0.0, gather + reduce - backward_s)

    def _ring_pair(self, choice: Choice) -> tuple[Ring, Ring]:
        """The slowest ring of the sharding groups (consecutive ranks), and of the replicas across them."""
        key = (choice.offer, choice.mesh.fsdp)
        if key not in self._rings:
            ranks, size = choice.offer.ranks, choice.mesh.fsdp
            shards = [ranks[start : start + size] for start in range(0, len(ranks), size)]
            replicas = [ranks[start::size] for start in range(size)]
            self._rings[key] = (
                network.slowest_ring(self._cluster, shards),
                network.slowest_ring(self._cluster, replicas),
            )
        return self._rings[key]


def _shares(offer: Offer, each_s: list[float], total: int) -> tuple[tuple[int, int], ...] | None:
    """Micro-batches for each group: evenly on one kind of device, by speed on several."""
    if len(offer.groups) == 1:
        each = even_count(len(offer.ranks), total)
        return None if each is None else ((each, 0),)
    return fastest_counts([(s, size) for s, (_, size) in zip(each_s, offer.groups, strict=True)], total)


def _even(shares: tuple[tuple[int, int], ...]) -> bool:
    return len({count for count, _ in shares}) == 1 and not any(extra for _, extra in shares)
