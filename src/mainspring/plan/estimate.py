"""What one choice of mesh, micro-batch, recomputation and sharding costs in bytes and seconds.

The communication is what `train` performs. Replicas (dp) reduce whole gradients once a step. ZeRO-2 gathers once and
scatters once a step. ZeRO-3 gathers twice and scatters once for each micro-batch; with dp outside, the shards are
then reduced across replicas. Accelerators hide part of it behind arithmetic: scattering behind the backward it
belongs to, gathering behind the forward. A host CPU hides nothing: its cores do both.
"""

import math
from dataclasses import dataclass

from mainspring.plan import network
from mainspring.plan.flops import microbatch_work, work_s
from mainspring.plan.layout import HOST, Offer, even_counts, fastest_counts
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
    """What a choice costs. `usable_bytes` is what the smallest rank may fill."""

    choice: Choice
    counts: tuple[int, ...]
    memory: MemoryEstimate
    usable_bytes: int
    time: TimeEstimate

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
        self._rings: dict[tuple[Offer, int], tuple[Ring, Ring]] = {}
        root, blocks = units(model)
        self._messages = (1 if root else 0) + sum(count for count, _ in blocks)

    def __call__(self, choice: Choice) -> Estimate | None:
        """Bytes and seconds; None when the batch cannot be cut this way."""
        config, offer = self._config, choice.offer
        total, rest = divmod(config.global_batch, choice.rows)
        if rest or len(offer) > total:
            return None
        each_s = self._microbatch_s(choice)
        alike = max(each_s) == min(each_s)
        counts = even_counts(len(offer), total) if alike else fastest_counts(each_s, total)
        if counts is None or (choice.reshard_after_forward and max(counts) != min(counts)):
            return None  # uneven micro-batches that re-gather would wait for each other for ever
        memory = rank_memory(
            self._model,
            choice.mesh,
            tokens=choice.rows * config.seq_len,
            microbatches=max(counts),
            precision=config.precision,
            recompute=choice.recompute,
            reshard_after_forward=choice.reshard_after_forward,
        )
        return Estimate(
            choice=choice,
            counts=counts,
            memory=memory,
            usable_bytes=int(USABLE * min(rank.memory_bytes for rank in offer)),
            time=self._time(choice, counts, each_s),
        )

    def _microbatch_s(self, choice: Choice) -> list[float]:
        """Seconds of one micro-batch on each rank."""
        config = self._config
        work = microbatch_work(
            self._model,
            rows=choice.rows,
            seq_len=config.seq_len,
            precision=config.precision,
            recompute=choice.recompute,
        )
        known: dict[tuple[int, float], float] = {}
        found: list[float] = []
        for rank in choice.offer:
            key = (id(rank.device), rank.share)
            if key not in known:
                known[key] = work_s(work, rank.device, precision=config.precision, share=rank.share)
            found.append(known[key])
        return found

    def _time(self, choice: Choice, counts: tuple[int, ...], each_s: list[float]) -> TimeEstimate:
        busy_s = [count * each for count, each in zip(counts, each_s, strict=True)]
        slowest = max(range(len(busy_s)), key=busy_s.__getitem__)
        mean_s = min(busy_s[slowest], math.fsum(busy_s) / len(busy_s))
        hidden = 0.0 if any(rank.device.vendor == HOST for rank in choice.offer) else HIDDEN
        shard_bytes = ADAM_TRAFFIC_BYTES * shard_params(self._model, choice.mesh.fsdp)
        return TimeEstimate(
            compute_s=mean_s,
            communication_s=self._exposed_s(choice, microbatches=counts[slowest], each_s=hidden * min(each_s)),
            bubble_s=busy_s[slowest] - mean_s,
            optimizer_s=max(shard_bytes / (rank.device.memory_bytes_per_s * rank.share) for rank in choice.offer),
        )

    def _exposed_s(self, choice: Choice, *, microbatches: int, each_s: float) -> float:
        """Communication of a step that nothing hides, when each micro-batch can hide `each_s` of it."""
        inner, outer = self._ring_pair(choice)
        whole = WORD_BYTES * self._model.params
        forward_s, backward_s = each_s / 3, each_s * 2 / 3
        if choice.mesh.fsdp == 1:
            return max(0.0, reduce_s(outer, whole, messages=math.ceil(whole / BUCKET_BYTES)) - backward_s)
        # Units travel through a flat buffer: packed on one side, unpacked on the other.
        packing = 4 * whole / min(rank.device.memory_bytes_per_s * rank.share for rank in choice.offer)
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
            size = choice.mesh.fsdp
            shards = [choice.offer[start : start + size] for start in range(0, len(choice.offer), size)]
            replicas = [choice.offer[start::size] for start in range(size)]
            self._rings[key] = (
                network.slowest_ring(self._cluster, shards),
                network.slowest_ring(self._cluster, replicas),
            )
        return self._rings[key]
