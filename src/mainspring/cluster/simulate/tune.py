"""Finding the policy that suits a workload by playing it ahead of time, on tasks drawn from its typical mix.

No single setting is best everywhere: leaning towards small nodes helps mixed work and hurts where small nodes carry
the scarce models. A shadow simulation of some ten thousand placements takes a fraction of a second, so candidates are
simply tried: coordinate search from the plain policy, every candidate on the same shadow arrivals. A step is taken only
when its gain stands out of how much the trials differ about it, and a small cluster has more of them. The shadow never
sees the order of arrivals it will be judged by, only how often each request occurs.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mainspring.cluster.schedule.fleet import Fleet, build_fleet
from mainspring.cluster.schedule.kernels import Ints
from mainspring.cluster.schedule.mix import alike
from mainspring.cluster.schedule.placer import PLAIN, Policy
from mainspring.cluster.simulate.inflate import Demand, build_demand, capacity, inflate
from mainspring.spec import Machine, Progress, silent

LADDERS: dict[str, tuple[float, ...]] = {
    "scarce": (0.0, 3.0, 6.0, 12.0, 25.0, 50.0, 100.0),
    "skew": (0.0, 5.0, 20.0, 60.0, 200.0),
    "ratio": (0.3, 0.45, 0.6, 0.8, 0.9, 1.0, 1.15, 1.5, 2.0),
    "small": (0.0, 0.1, 0.5),
    "steps": (25.0, 50.0, 100.0, 200.0),
    "lean": (0.0, 1.0, 4.0),
}
ROUNDS = 3
FEWEST, MOST = 3, 60  # trials
ENOUGH_NODES, MOST_ARRIVALS = 3000, 60_000  # in all trials together
MOST_NODES = 1500
SHADOW_SEED = 20_000


@dataclass(frozen=True, slots=True)
class Shadow:
    """A cluster to try things on, the loads to judge it at, and the arrivals of each trial."""

    fleet: Fleet
    demand: Demand
    loads: tuple[float, ...]
    arrivals: tuple[Ints, ...]

    def judge(self, policy: Policy) -> tuple[float, ...]:
        """Allocation in percent of each trial, on average over the loads."""
        trials = (
            inflate(self.fleet.copy(), self.demand, classes, policy=policy, loads=self.loads)
            for classes in self.arrivals
        )
        return tuple(statistics.fmean(point.allocation_percent for point in points) for points in trials)


def is_better(found: Sequence[float], best: Sequence[float]) -> bool:
    """Whether the trials agree that one policy is better than another: its mean gain is above its standard error."""
    steps = [ours - theirs for ours, theirs in zip(found, best, strict=True)]
    return statistics.fmean(steps) > statistics.stdev(steps) / math.sqrt(len(steps))


def build_shadow(machines: Sequence[Machine], demand: Demand, *, loads: Sequence[float]) -> Shadow:
    """The cluster itself, or a sample of its nodes when it is large, and arrivals drawn from the demand."""
    draw = np.random.default_rng(SHADOW_SEED)
    if len(machines) > MOST_NODES:
        kept = np.sort(draw.choice(len(machines), MOST_NODES, replace=False))
        machines = [machines[n] for n in kept]
    fleet = build_fleet(machines)
    kinds = alike(demand.counts)
    if kinds is not demand.counts:  # thousands of kinds would be ranked anew at each of their few arrivals
        demand = build_demand([request for request, count in kinds.items() for _ in range(count)], fleet)
    until = max(loads) * capacity(fleet)
    mean = float(demand.size[demand.tasks].mean())
    trials = []
    length = int(1.05 * until / mean) + 100
    for _ in range(max(FEWEST, min(MOST, ENOUGH_NODES // len(machines), MOST_ARRIVALS // length))):
        classes = draw.choice(len(demand.requests), length, p=demand.shares)
        trials.append(classes[: np.searchsorted(np.cumsum(demand.size[classes]), until, side="right")])
    return Shadow(fleet=fleet, demand=demand, loads=tuple(loads), arrivals=tuple(trials))


def tune(shadow: Shadow, *, start: Policy = PLAIN, progress: Progress = silent) -> Policy:
    """The best policy that coordinate search finds; `start` when nothing is better."""
    best, reached = start, shadow.judge(start)
    tried = {best}
    for _ in range(ROUNDS):
        before = best
        for knob, values in LADDERS.items():
            for value in values:
                candidate = replace(best, **{knob: value})
                if candidate in tried:
                    continue
                tried.add(candidate)
                found = shadow.judge(candidate)
                done = min(0.99, len(tried) / (ROUNDS * sum(map(len, LADDERS.values()))))
                told = f"shadow simulation {len(tried)}: {statistics.fmean(found):.2f} % with {knob} {value:g}"
                progress(done, told)
                if is_better(found, reached):
                    best, reached = candidate, found
        if best == before:
            break
    return best
