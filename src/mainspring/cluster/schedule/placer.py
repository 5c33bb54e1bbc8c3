"""Placing single tasks at a high rate: a fleet, the classes of tasks, and how each ranks the nodes.

A stream of starts and ends is replayed by the compiled loop; one core decides tens of thousands of them a second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mainspring.cluster.schedule.fleet import Fleet, build_classes
from mainspring.cluster.schedule.kernels import NOWHERE, Board, Ints, Knobs, Ranks
from mainspring.cluster.schedule.mix import build_mix, proportions, scarcity
from mainspring.cluster.schedule.winners import BLOCK, FAILED, replay, survey_all
from mainspring.spec import Request

SHORTEST_LOG = 1024


@dataclass(frozen=True, slots=True)
class Policy:
    """How a place is scored, see `kernels.Knobs`. Three act through the demand: `ratio` scales its mean proportions,
    `scarce` prices models by their scarcity, `lean` tilts the typical mix towards tasks with many devices."""

    steps: float = 50.0
    skew: float = 20.0
    ratio: float = 1.0
    scarce: float = 12.0
    small: float = 0.1
    pack: float = 0.001
    lean: float = 0.0


PLAIN = Policy()


class Placer:
    """Tasks of `requests` placed on `fleet`, which it changes. Tasks are numbered by the caller."""

    def __init__(
        self, fleet: Fleet, requests: Sequence[Request], *, counts: Mapping[Request, int], policy: Policy
    ) -> None:
        mix = build_mix(counts, fleet.models, lean=policy.lean)
        nodes, levels = len(fleet.names), len(mix.levels)
        kind = _kinds(fleet)
        self.fleet = fleet
        self.board = Board(
            at=fleet.free,
            of=build_classes(requests, fleet.models),
            mix=mix,
            knobs=_knobs(policy, counts, fleet),
            ranks=Ranks(
                score=np.full((len(requests), nodes), NOWHERE, np.float32),
                device=np.zeros((len(requests), nodes), np.int8),
                block=np.full((len(requests), -(-nodes // BLOCK)), NOWHERE, np.float32),
                seen=np.full(len(requests), FAILED, np.int64),
            ),
            kind=kind,
            sample=np.zeros(int(kind.max()) + 1, np.int64),
            free=np.zeros(nodes, np.int64),
            roomy=np.zeros((nodes, levels), np.int64),
            crumbs=np.zeros((nodes, levels), np.int64),
            waste=np.zeros(nodes),
            log=np.zeros(max(SHORTEST_LOG, 2 * nodes), np.int64),
            head=np.zeros(1, np.int64),
            turn=np.zeros(1, np.int64),
            stamp=np.zeros(nodes, np.int64),
            useful=np.zeros(len(mix.number)),
        )
        survey_all(self.board)

    @property
    def waste_milli(self) -> float:
        """Free device capacity that a typical task could not use, over the whole fleet."""
        return float(self.board.waste.sum())

    def replay(self, ops: Ints, *, classes: Ints, nodes: Ints, devices: Ints) -> None:
        """Place task `op`, of class `classes[op]`, or end task `-1 - op`; `nodes` and `devices` say where it went."""
        replay(self.board, ops, classes, nodes, devices)


def _knobs(policy: Policy, counts: Mapping[Request, int], fleet: Fleet) -> Knobs:
    cpu_each, memory_each = proportions(counts)
    price = scarcity(counts, fleet)
    return Knobs(
        steps=float(policy.steps),
        skew=float(policy.skew),
        cpu_each=policy.ratio * cpu_each,
        memory_each=policy.ratio * memory_each,
        price=float(policy.scarce) * (price if len(price) else np.zeros(1)),
        small=float(policy.small),
        pack=float(policy.pack),
    )


def _kinds(fleet: Fleet) -> Ints:
    """Numbers nodes such that those with equal capacity, model and free devices have the same."""
    at = fleet.free
    rows = np.column_stack((at.cpu, at.memory, at.size, at.model, at.devices))
    return np.unique(rows, axis=0, return_inverse=True)[1].ravel().astype(np.int64)
